"""`listingd demo`: a whole listing from one photo, or a plain refusal; nothing stays running."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import zipfile
from pathlib import Path

import asyncpg
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from running import Finished, environment, finish, start

from daemon.cli import commands
from daemon.demo import plan_settings, read_subject
from daemon.demo_folder import LIST_NAME, open_folder
from daemon.embedded import PostgresServer
from daemon.errors import Misconfigured
from daemon.settings import Settings

SKU = "TIDEVANE-650-TEAL"
PICTURES = [f"{SKU}.{code}.jpg" for code in ("MAIN", "PT01", "PT02", "PT03", "PT04", "PT05")]


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Path]:
    """The demo of the sample photo, run once: it is twenty seconds of work on two processors."""
    home = tmp_path_factory.mktemp("demo")
    env = environment(LISTINGD_STATE_DIR=str(home / "state"))

    async def run() -> Finished:
        return await finish(await start("demo", env=env, cwd=home), within_s=300)

    return asyncio.run(run()), home


def test_six_pictures_a_document_a_page_and_a_zip_are_written(listing: tuple[Finished, Path]):
    ended, home = listing
    out = home / "listingd-demo"

    assert 0 == ended.code, ended.out + ended.err
    for name in PICTURES:
        with Image.open(out / name) as picture:
            assert ("JPEG", (2000, 2000)) == (picture.format, picture.size)
    document = json.loads((out / "aplus/document.json").read_bytes())
    assert len(document["contentDocument"]["contentModuleList"]) >= 3
    names = set(zipfile.ZipFile(io.BytesIO((out / "listing.zip").read_bytes())).namelist())
    assert {*PICTURES, "aplus/document.json", "aplus/preview.html"} < names
    assert names <= {path.relative_to(out).as_posix() for path in out.rglob("*")}


def test_the_page_holds_all_it_shows(listing: tuple[Finished, Path]):
    """It is mailed around: nothing may be missing without its folder, nothing may be fetched."""
    page = (listing[1] / "listingd-demo/index.html").read_text(encoding="utf-8")

    assert all(name in page for name in PICTURES)
    assert "Product fill" in page
    assert 'src="http' not in page
    assert 7 == page.count('<img src="data:image/')
    assert "Example facts" not in page


def test_the_table_names_every_slot(listing: tuple[Finished, Path]):
    ended, _ = listing

    for slot in ("main", "angle", "lifestyle", "infographic", "detail", "dimensions", "A+ content"):
        assert any(line.startswith(slot) and " pass" in line for line in ended.out.splitlines()), ended.out


def test_nothing_of_the_demo_goes_on_running(listing: tuple[Finished, Path]):
    assert [] == _servers(listing[1] / "state")


async def test_what_another_release_left_is_not_in_the_way(listing: tuple[Finished, Path], tmp_path: Path):
    """The demo's database is worth nothing: a newer or changed schema in it must not end every later demo."""
    state = listing[1] / "state"
    server = PostgresServer(state / "demo/postgres")
    await asyncio.to_thread(server.start)
    connection = await asyncpg.connect(server.dsn)
    await connection.execute("update listingd.schema_migrations set checksum = 'other' where number = 1")
    await connection.close()
    await asyncio.to_thread(server.stop)
    _save_noise(tmp_path / "noise.png")

    env = environment(LISTINGD_STATE_DIR=str(state))
    ended = await finish(await start("demo", "noise.png", env=env, cwd=tmp_path))

    assert "is up at" in ended.out, ended.err
    assert "cutout_unreliable" in ended.out
    assert [] == _servers(state)


async def test_a_photo_that_cannot_be_cut_out_is_refused_and_leaves_no_listing(tmp_path: Path):
    """A killed demo comes first: its Postgres must not be in the way of the next one, nor its jobs."""
    _save_noise(tmp_path / "noise.png")
    env = environment(LISTINGD_STATE_DIR=str(tmp_path / "state"))
    killed = await start("demo", "noise.png", env=env, cwd=tmp_path)
    await _until_it_is_up(killed)
    killed.kill()
    await killed.communicate()

    ended = await finish(await start("demo", "noise.png", env=env, cwd=tmp_path))

    assert 1 == ended.code, ended.out + ended.err
    assert "cutout_unreliable" in ended.out
    assert "hint:" in ended.out
    assert "Traceback" not in ended.out + ended.err
    assert {LIST_NAME, "demo.log"} == {path.name for path in (tmp_path / "listingd-demo").iterdir()}
    assert [] == _servers(tmp_path / "state")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_everything(number: int, tmp_path: Path):
    env = environment(LISTINGD_STATE_DIR=str(tmp_path / "state"))
    running = await start("demo", env=env, cwd=tmp_path)
    await _until_it_is_up(running)

    running.send_signal(number)
    ended = await finish(running, within_s=60)

    assert 130 == ended.code, ended.out + ended.err
    assert "nothing is left running" in ended.err
    assert "Traceback" not in ended.err
    assert {LIST_NAME, "demo.log"} == {path.name for path in (tmp_path / "listingd-demo").iterdir()}
    assert [] == _servers(tmp_path / "state")


def test_what_cannot_work_is_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "facts.json").write_text('{"title": "x", "colour": "red"}')
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("keep me")
    env = {"LISTINGD_STATE_DIR": str(tmp_path / "state")}
    refused = {
        ("missing.jpg",): 2, ("words.jpg",): 1, ("empty.jpg",): 1, ("mine",): 2, ("--facts", "facts.json"): 1,
        ("--facts", "missing.json"): 2, ("--out", "mine"): 2,
    }  # fmt: skip

    for arguments, code in refused.items():
        ended = CliRunner().invoke(commands, ["demo", *arguments], env=env)
        assert code == ended.exit_code, (arguments, ended.output)
        assert "rror: " in ended.stderr
    assert "keep me" == (tmp_path / "mine/letter.txt").read_text()
    assert not (tmp_path / "state").exists()


def test_an_installed_service_is_not_touched(tmp_path: Path):
    """A demo on the production database would claim its jobs."""
    installed = Settings(
        state_dir=tmp_path, database_url="postgresql://production/db", storage_url="s3://production",
        http={"host": "0.0.0.0", "port": 8787, "allowed_hosts": ("api.example.com",)},
        openai={"api_key": "sk-kept"},
    )  # fmt: skip

    own = plan_settings(installed)

    assert (None, None) == (own.database_url, own.storage_url)
    assert (tmp_path / "demo") == own.state_dir
    assert ("127.0.0.1", 0, ()) == (own.http.host, own.http.port, own.http.allowed_hosts)
    assert installed.openai == own.openai


def test_made_up_facts_say_that_they_are_examples(tmp_path: Path):
    photo = tmp_path / "IMG_0042 (red) & <b>.png"
    Image.new("RGB", (1200, 1200), "white").save(photo)

    subject = read_subject(photo, None, max_bytes=1 << 20)

    assert subject.made_up
    shown = [
        subject.product["title"],
        subject.product["brand"],
        *subject.product["bullets"],
        *subject.product["in_the_box"],
    ]
    assert all("example" in text.lower() for text in shown)
    assert "dimensions" not in subject.product


def test_only_what_a_demo_made_is_removed(tmp_path: Path):
    out = tmp_path / "out"
    with open_folder(out) as folder:
        folder.write("index.html", b"old")
        folder.write("aplus/image.jpg", b"old")
    (out / "notes.txt").write_text("mine")
    with (out / LIST_NAME).open("a") as listing:
        listing.write("../outside.txt\n/etc/hostname\n")
    (tmp_path / "outside.txt").write_text("mine")

    with open_folder(out) as folder:
        left = {path.name for path in out.iterdir()}
        with pytest.raises(Misconfigured, match="Another demo"), open_folder(out):
            pass

    assert {LIST_NAME, "notes.txt"} == left
    assert (tmp_path / "outside.txt").exists()


async def _until_it_is_up(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while line := await process.stdout.readline():
            if b"is up at" in line:
                return
    raise AssertionError("it ended before it was up")


def _save_noise(path: Path) -> None:
    """A photo without a product."""
    noise = np.random.default_rng(7).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((900, 900)).save(path)


def _servers(state_dir: Path) -> list[int]:
    """Processes that work inside the state dir: a Postgres that was left behind."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            inside = (entry / "cwd").readlink().is_relative_to(state_dir)
        except OSError:
            continue
        if inside and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found
