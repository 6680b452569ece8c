"""What the README tells a newcomer to type works as it stands."""

from __future__ import annotations

import asyncio
import io
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from running import REPOSITORY, environment, finish, service

from daemon.service import Service
from daemon.settings_sources import ALIASES, list_settings

__all__ = ["service"]

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


async def test_the_walk_through_makes_a_pack(service: Service, tmp_path: Path):
    """Verbatim, but for the port and the home directory."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (commands,) = [block for block in _shell_blocks() if "curl" in block]
    (tmp_path / ".local/share").mkdir(parents=True)
    (tmp_path / ".local/share/listingd").symlink_to(service.settings.state_dir)
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")

    shell = await asyncio.create_subprocess_exec(
        "sh", "-euc", commands.replace("http://127.0.0.1:8787", service.url),
        env=environment(HOME=str(tmp_path)), cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    ended = await finish(shell)

    assert 0 == ended.code, ended.out + ended.err
    assert "event: done" in ended.out
    with Image.open(tmp_path / "main.jpg") as picture:
        assert (2000, 2000) == picture.size
    pictures = zipfile.ZipFile(io.BytesIO((tmp_path / "pack.zip").read_bytes())).namelist()
    assert "TIDEVANE-650-TEAL.MAIN.jpg" in pictures


def test_the_make_targets_it_names_are_there():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")

    named = set(re.findall(r"make ([a-z]+)(?=`| +#| *$)", README, flags=re.MULTILINE))

    assert {"demo", "test", "serve", "check", "help"} <= named
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in named)


def test_the_settings_it_names_are_there():
    known = {setting.variable for setting in list_settings()} | set(ALIASES)

    named = set(re.findall(r"`([A-Z]+(?:_+[A-Z]+)+)`", README))

    assert named
    assert named <= known


def test_the_files_it_names_are_there_and_it_is_short():
    for name in re.findall(r"\]\(([^)]+)\)", README):
        assert (REPOSITORY / name).exists(), name
    assert README.count("\n") <= 150


def _shell_blocks() -> list[str]:
    return re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
