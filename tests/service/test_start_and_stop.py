"""How a daemon begins and ends outside of systemd."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running import environment, finish, start

from daemon.embedded import PostgresServer
from tests.fleet import Daemon, Server
from tests.support import eventually


async def test_a_closed_terminal_stops_it_in_good_order(daemon: Callable[..., Daemon]):
    """SIGHUP would end the process on the spot: jobs cut off, the embedded Postgres left behind."""
    one = await daemon("one").start()

    one.send(signal.SIGHUP)

    assert 0 == await one.wait(20)
    assert one.find("service.stopped")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_during_the_start_leaves_no_postgres_behind(tmp_path: Path, number: signal.Signals):
    state = tmp_path / "state"
    process = await start(
        "serve", "--port", "0", env=environment(LISTINGD_STATE_DIR=str(state)), cwd=tmp_path
    )
    await eventually((state / "postgres.new").exists, within_s=30)

    process.send_signal(number)

    ended = await finish(process)
    assert (0, "") == (ended.code, ended.err)
    assert PostgresServer(state / "postgres")._running_pid() is None
    assert not (state / "postgres.new").exists(), "what makes it would still be at work"


async def test_a_server_for_others_without_a_key_is_refused_before_anything_is_made(tmp_path: Path):
    env = environment(LISTINGD_STATE_DIR=str(tmp_path / "state"), LISTINGD_HTTP__HOST="0.0.0.0")

    ended = await finish(await start("serve", "--port", "0", env=env, cwd=tmp_path))

    assert 2 == ended.code, ended.err
    assert "LISTINGD_SERVICE_KEY" in ended.err
    assert ["lock"] == [path.name for path in (tmp_path / "state").iterdir()]


async def test_without_a_database_the_start_and_its_end_say_why(
    tmp_path: Path,
):
    """Once: not every second, and not only in lines that have scrolled away."""
    env = environment(
        LISTINGD_STATE_DIR=str(tmp_path / "state"), LISTINGD_DATABASE_URL="postgresql://u@127.0.0.1:1/x"
    )
    with _manager(tmp_path) as heard:
        process = await start("serve", env=env | {"NOTIFY_SOCKET": str(tmp_path / "notify")}, cwd=tmp_path)
        status = await asyncio.to_thread(heard)
        ended = await finish(process)

    assert "waiting for the database: " in status
    assert "refused" in status
    lines = ended.err.splitlines()
    assert (1, 3) == (ended.code, len(lines)), ended.err
    assert '"database.lost"' in lines[0]
    assert re.match(r"error: The database did not answer within 15 s: .*refused", lines[1])


@pytest.mark.parametrize(
    ("command", "name", "path", "why"),
    [
        ("serve", "sslrootcert", "gone.pem", "No such file or directory"),
        ("migrate", "sslrootcert", "gone.pem", "No such file or directory"),
        ("serve", "sslrootcert", "text.pem", "it holds no certificate"),
        ("serve", "sslcrl", "gone.pem", "No such file or directory"),
        ("serve", "sslcert", "gone.pem", "No such file or directory"),
        ("serve", "sslcert", "", "Is a directory"),
    ],
)
async def test_a_certificate_that_cannot_be_read_is_told_at_once(
    tmp_path: Path, command: str, name: str, path: str, why: str
):
    """It looked like a database that does not answer, for 15 s each time that systemd tried."""
    (tmp_path / "text.pem").write_text("Hello.")
    url = f"postgresql://u@127.0.0.1:1/x?sslmode=require&{name}={tmp_path / path}"
    env = environment(LISTINGD_STATE_DIR=str(tmp_path / "state"), LISTINGD_DATABASE_URL=url)

    ended = await finish(await start(command, env=env, cwd=tmp_path))

    said, hint = ended.err.splitlines()
    assert 2 == ended.code
    assert f"error: {name} {tmp_path / path} cannot be read: {why}." == said
    assert "LISTINGD_DATABASE_URL" in hint


async def test_a_check_of_the_databases_certificate_by_nothing_is_told(tmp_path: Path):
    env = environment(
        LISTINGD_STATE_DIR=str(tmp_path / "state"), HOME=str(tmp_path),
        LISTINGD_DATABASE_URL="postgresql://u@127.0.0.1:1/x?sslmode=verify-full",
    )  # fmt: skip

    ended = await finish(await start("serve", env=env, cwd=tmp_path))

    said, hint = ended.err.splitlines()
    assert 2 == ended.code
    assert "root.crt" in said
    assert "sslrootcert=" in hint


async def test_systemd_is_told_what_is_wrong_while_it_runs(
    server: Server, daemon: Callable[..., Daemon], tmp_path: Path
):
    """`systemctl status` said "serving" through every outage."""
    with _manager(tmp_path) as heard:
        one = daemon("one")
        one.env["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        await one.start()

        server.stop(signal.SIGQUIT)
        try:
            for _ in range(5):
                if "database: not answering" in (status := await asyncio.to_thread(heard)):
                    break
        finally:
            server.start()

    assert "STATUS=not ready at http://" in status
    assert "database: not answering" in status


@contextmanager
def _manager(directory: Path) -> Iterator[Callable[[], str]]:
    """What systemd would be: the next message it hears."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(directory / "notify"))
        manager.settimeout(30)
        yield lambda: manager.recv(4096).decode()


async def test_daemons_that_keep_their_pictures_apart_are_told_so(daemon: Callable[..., Daemon]):
    """A job that is taken where its photo is not fails: each has a directory of its own unless one is set."""
    one = await daemon("one").start()

    two = await daemon("two").start()
    alike = await daemon("three", storage_url=f"file://{two.directory}/shared").start()
    (two.directory / "link").symlink_to(two.directory / "shared")
    also_alike = await daemon("four", storage_url=f"file://{two.directory}/./link/").start()
    at_ones = await daemon("five", storage_url=f"file://{one.directory}/state/assets").start()

    assert ["one"] == [line["other"] for line in two.find("storage.apart")]
    assert ["one", "two"] == [line["other"] for line in alike.find("storage.apart")]
    assert ["one", "two"] == [line["other"] for line in also_alike.find("storage.apart")]
    assert ["two", "three", "four"] == [line["other"] for line in at_ones.find("storage.apart")]
    assert [] == one.find("storage.apart")


_HEAVY = {"numpy", "cv2", "PIL", "fontTools", "rich", "jwt", "cryptography", "openai", "httpx2", "google.generativeai",
          "daemon.amazon.aplus_modules"}  # fmt: skip
_START = """
import sys
import daemon.cli, daemon.service
from daemon.providers.factory import build_providers
from daemon.settings import Settings

build_providers(Settings())
build_providers(Settings(**{name: {"api_key": "k" * 32} for name in ("openai", "cutout", "gemini")}))
print(*sys.modules)
"""


def test_a_start_loads_neither_pixels_nor_vendors_nor_cryptography():
    """They were half of the CPU of a start, and the first second needs none of them, with keys or without."""
    shown = subprocess.run(
        [sys.executable, "-c", _START], env=environment(), capture_output=True, text=True, check=True
    )

    assert set() == _HEAVY & set(shown.stdout.split())


def test_a_command_without_standard_files_ends_in_good_order(tmp_path: Path):
    """libuv aborts when it closes a descriptor below 3, and what is opened as number 2 would be sent the log."""
    command = [sys.executable, "-m", "daemon", "openapi", "--config", "/dev/null"]

    ended = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], env=environment(), cwd=tmp_path, check=False
    )

    assert 0 == ended.returncode


def test_a_terminal_that_cannot_show_a_sign_gets_a_question_mark(tmp_path: Path):
    ended = subprocess.run(
        [sys.executable, "-m", "daemon", "--help"], env=environment(PYTHONIOENCODING="latin-1"), cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert 0 == ended.returncode, ended.stderr
    assert "LISTINGD_? variables" in ended.stdout


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["--help", "version", "openapi"])
def test_an_output_that_cannot_be_written_is_one_sentence(
    command: str, unbuffered: str, tmp_path: Path
) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "daemon", command], env=environment(PYTHONUNBUFFERED=unbuffered), cwd=tmp_path,
            check=False, timeout=60, stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    assert (1, "error: The output cannot be written: No space left on device.\n") == (
        ended.returncode,
        ended.stderr,
    )


def test_who_reads_no_further_hears_nothing(tmp_path: Path) -> None:
    """`listingd openapi | head -1`."""
    with subprocess.Popen(
        [sys.executable, "-m", "daemon", "openapi"], env=environment(), cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        said = running.stderr.read()

    assert (1, b"") == (running.returncode, said)
