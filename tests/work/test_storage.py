"""Bytes under their own hash: the same promises in a directory and in an S3 bucket over a real socket."""

from __future__ import annotations

import hashlib
import os
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import obstore
import pytest
from obstore.store import S3Store
from pydantic import SecretStr

from daemon.errors import Misconfigured, NotFound, TooLarge, Unavailable
from daemon.housekeeping import FILE_AGE_S
from daemon.imaging.codec import MAX_PIXELS
from daemon.settings import Settings
from daemon.settings import Storage as StorageSettings
from daemon.storage import MAX_READ_BYTES, Storage, name_store, open_storage

PICTURE = bytes(range(256)) * 3000
HASH = hashlib.sha256(PICTURE).hexdigest()
KEY = f"{HASH[:2]}/{HASH}"


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The address of an S3 server of moto's."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_settings(s3_server: str, tmp_path: Path) -> Settings:
    """A bucket of the test's own."""
    bucket = f"bucket-{os.urandom(6).hex()}"
    request = urllib.request.Request(f"{s3_server}/{bucket}", method="PUT")
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200
    return Settings(
        state_dir=tmp_path,
        storage_url=f"s3://{bucket}/some/prefix",
        storage=StorageSettings(
            endpoint=s3_server, access_key=SecretStr("key"), secret_key=SecretStr("secret")
        ),
    )


@pytest.fixture(params=["directory", "s3"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    if request.param == "directory":
        yield await open_storage(Settings(state_dir=tmp_path / "a state dir"))
    else:
        yield await open_storage(request.getfixturevalue("s3_settings"))


def make_old(directory: Path, age_s: float) -> None:
    then = time.time() - age_s
    os.utime(directory / "assets" / KEY, (then, then))


async def test_bytes_come_back_by_their_hash(storage: Storage) -> None:
    sha256 = await storage.put(PICTURE, "image/png")

    assert HASH == sha256
    assert PICTURE == await storage.get(sha256)
    assert len(PICTURE) == (await storage.stat(sha256)).size_bytes


async def test_putting_twice_is_putting_once(storage: Storage) -> None:
    await storage.put(PICTURE, "image/png")
    await storage.put(PICTURE, "image/png")

    assert [HASH] == [file.sha256 async for file in storage.list_older_than(-1)]


async def test_a_range_streams_exactly_its_bytes(storage: Storage) -> None:
    await storage.put(PICTURE, "image/png")

    part = b"".join([chunk async for chunk in storage.stream(HASH, 1000, 600_001)])
    rest = b"".join([chunk async for chunk in storage.stream(HASH, 767_000)])

    assert PICTURE[1000:600_001] == part
    assert PICTURE[767_000:] == rest


async def test_an_empty_range_streams_nothing(storage: Storage) -> None:
    await storage.put(PICTURE, "image/png")

    assert [] == [chunk async for chunk in storage.stream(HASH, 5, 5)]


async def test_empty_bytes_are_stored_too(storage: Storage) -> None:
    sha256 = await storage.put(b"", "text/plain")

    assert b"" == await storage.get(sha256)


async def test_what_is_deleted_is_not_found(storage: Storage) -> None:
    await storage.put(PICTURE, "image/png")

    await storage.delete(HASH)
    await storage.delete(HASH)

    assert not await storage.exists(HASH)
    with pytest.raises(NotFound):
        await storage.get(HASH)


async def test_a_name_that_is_no_hash_is_not_found(storage: Storage) -> None:
    """A path that a caller makes up never reaches the disk."""
    for name in ("../../etc/passwd", "", "A" * 64, HASH + "/.."):
        with pytest.raises(NotFound):
            await storage.get(name)


async def test_a_file_over_the_limit_is_not_read(storage: Storage) -> None:
    await storage.put(PICTURE, "image/png")

    with pytest.raises(TooLarge):
        await storage.get(HASH, max_bytes=len(PICTURE) - 1)


def test_the_heaviest_cut_out_can_be_read_again() -> None:
    """40 megapixels of a woven product took 69 MiB: the first picture of a pack was made, the others failed."""
    assert MAX_READ_BYTES > 4 * MAX_PIXELS * 1.001


async def test_the_probe_leaves_nothing_behind(storage: Storage) -> None:
    await storage.check()

    assert [] == [file async for file in storage.list_older_than(-1)]


async def test_a_young_file_is_no_candidate_of_the_sweep(storage: Storage) -> None:
    await storage.put(PICTURE, "image/png")

    assert [] == [file async for file in storage.list_older_than(60)]
    assert not await storage.delete_older_than(HASH, 60)
    assert await storage.exists(HASH)


async def test_putting_again_leaves_time_to_store_the_name(tmp_path: Path) -> None:
    """A file just under the age at which it may be deleted, and a database that takes two minutes to store its name."""
    storage = await open_storage(Settings(state_dir=tmp_path))
    await storage.put(PICTURE, "image/png")
    make_old(tmp_path, FILE_AGE_S - 60)

    await storage.put(PICTURE, "image/png")
    make_old(tmp_path, (await storage.stat(HASH)).age_s + 120)

    assert not await storage.delete_older_than(HASH, FILE_AGE_S)


async def test_putting_an_old_orphan_again_saves_it_from_the_sweep(tmp_path: Path) -> None:
    """The sweep has listed the file when a job stores the same picture: the job must not lose it."""
    storage = await open_storage(Settings(state_dir=tmp_path))
    await storage.put(PICTURE, "image/png")
    make_old(tmp_path, 100_000)
    listed = [file.sha256 async for file in storage.list_older_than(86_400)]

    await storage.put(PICTURE, "image/png")
    is_gone = await storage.delete_older_than(listed[0], 86_400)

    assert [HASH] == listed
    assert not is_gone
    assert PICTURE == await storage.get(HASH)


async def test_a_file_that_is_put_again_when_the_sweep_is_about_to_take_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep has seen how old it is by then. A name in the database would stand without its file."""
    storage = await open_storage(Settings(state_dir=tmp_path))
    await storage.put(PICTURE, "image/png")
    make_old(tmp_path, 100_000)
    remove, rename = Path.unlink, Path.rename

    def put_first(path: Path) -> None:
        if path == storage.path(HASH):
            make_old(tmp_path, 0)

    monkeypatch.setattr(Path, "unlink", lambda path, **options: (put_first(path), remove(path, **options)))
    monkeypatch.setattr(Path, "rename", lambda path, target: (put_first(path), rename(path, target)))
    is_gone = await storage.delete_older_than(HASH, 86_400)

    assert not is_gone
    assert PICTURE == await storage.get(HASH)
    assert [] == list((tmp_path / "assets" / "drafts").iterdir())


async def test_a_file_that_is_swept_while_it_is_put_again_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A paid result would be lost with "The file is not in storage."."""
    storage = await open_storage(Settings(state_dir=tmp_path))
    await storage.put(PICTURE, "image/png")
    stat = Path.stat

    def sweep_first(path: Path, **options: bool) -> os.stat_result:
        if path.name == HASH:
            monkeypatch.setattr(Path, "stat", stat)
            path.unlink()
        return stat(path, **options)

    monkeypatch.setattr(Path, "exists", lambda path: os.path.exists(path))  # noqa: PTH110 -- calls no Path.stat
    monkeypatch.setattr(Path, "stat", sweep_first)

    await storage.put(PICTURE, "image/png")

    assert PICTURE == await storage.get(HASH)


async def test_an_old_orphan_is_swept(tmp_path: Path) -> None:
    storage = await open_storage(Settings(state_dir=tmp_path))
    await storage.put(PICTURE, "image/png")
    make_old(tmp_path, 100_000)

    assert await storage.delete_older_than(HASH, 86_400)
    assert not await storage.exists(HASH)


async def test_damaged_bytes_are_never_given_out(tmp_path: Path) -> None:
    storage = await open_storage(Settings(state_dir=tmp_path))
    await storage.put(PICTURE, "image/png")
    (tmp_path / "assets" / KEY).write_bytes(b"x" + PICTURE[1:])

    with pytest.raises(Unavailable) as caught:
        await storage.get(HASH)

    assert "storage_corrupt" == caught.value.code


async def test_a_cut_off_file_is_healed_by_the_next_put(tmp_path: Path) -> None:
    storage = await open_storage(Settings(state_dir=tmp_path))
    await storage.put(PICTURE, "image/png")
    (tmp_path / "assets" / KEY).write_bytes(PICTURE[:100])

    await storage.put(PICTURE, "image/png")

    assert PICTURE == await storage.get(HASH)


async def test_a_local_file_can_be_sent_by_its_path(tmp_path: Path) -> None:
    storage = await open_storage(Settings(state_dir=tmp_path))
    await storage.put(PICTURE, "image/png")

    path = storage.path(HASH)

    assert path is not None
    assert PICTURE == path.read_bytes()
    assert await storage.sign_url(HASH) is None


async def test_drafts_of_a_killed_process_are_removed_at_the_next_start(tmp_path: Path) -> None:
    await open_storage(Settings(state_dir=tmp_path))
    old, young = (tmp_path / "assets" / "drafts" / name for name in ("old", "young"))
    for draft in (old, young):
        draft.write_bytes(b"half a pict")
    os.utime(old, (time.time() - 90_000,) * 2)

    await open_storage(Settings(state_dir=tmp_path))

    assert not old.exists()
    assert young.exists()  # another daemon may be writing it


async def test_a_directory_that_cannot_be_made_is_a_setting_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(Misconfigured, match="cannot be used"):
        await open_storage(Settings(state_dir=tmp_path / "file"))


async def test_a_signed_link_works_without_credentials(s3_settings: Settings) -> None:
    storage = await open_storage(s3_settings)
    await storage.put(PICTURE, "image/png")

    url = await storage.sign_url(HASH)

    assert url is not None
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert (200, "image/png") == (answer.status, answer.content_type)
        assert PICTURE == await answer.read()
    assert storage.path(HASH) is None


async def test_damaged_bytes_in_a_bucket_are_never_given_out(s3_settings: Settings) -> None:
    storage = await open_storage(s3_settings)
    bucket = S3Store(
        s3_settings.effective_storage_url.split("/")[2], prefix="some/prefix", endpoint=s3_settings.storage.endpoint,
        access_key_id="key", secret_access_key="secret", region="us-east-1", client_options={"allow_http": True},
    )  # fmt: skip
    await obstore.put_async(bucket, KEY, b"y" + PICTURE[1:])

    with pytest.raises(Unavailable) as caught:
        await storage.get(HASH)

    assert "storage_corrupt" == caught.value.code


async def test_a_store_that_is_away_is_unavailable_and_names_no_secret(tmp_path: Path) -> None:
    settings = Settings(
        state_dir=tmp_path,
        storage_url="s3://bucket/prefix",
        storage=StorageSettings(
            endpoint="http://127.0.0.1:9",
            access_key=SecretStr("AKIAEXAMPLE"),
            secret_key=SecretStr("hush"),
            timeout_s=0.5,
        ),
    )
    storage = await open_storage(settings)

    with pytest.raises(Unavailable) as caught:
        await storage.put(PICTURE, "image/png")

    assert "storage_unavailable" == caught.value.code
    assert "AKIAEXAMPLE" not in str(caught.value)
    assert "hush" not in str(caught.value)


async def test_a_bucket_that_is_not_there_is_unavailable(s3_server: str, tmp_path: Path) -> None:
    settings = Settings(
        state_dir=tmp_path,
        storage_url="s3://nobodys-bucket",
        storage=StorageSettings(
            endpoint=s3_server, access_key=SecretStr("key"), secret_key=SecretStr("secret")
        ),
    )

    storage = await open_storage(settings)
    with pytest.raises(Unavailable):
        await storage.put(PICTURE, "image/png")
    with pytest.raises(Unavailable):
        await storage.get(HASH)


async def test_a_directory_that_is_gone_has_no_missing_files(tmp_path: Path) -> None:
    """A volume that is not mounted: "not there" fails a job for good, and has what was paid paid again."""
    storage = await open_storage(Settings(state_dir=tmp_path))
    await storage.put(PICTURE, "image/png")
    turns: list[tuple[str, bool]] = []
    storage.on_turn = lambda access, why: turns.append((access, why is None))

    (tmp_path / "assets").rename(tmp_path / "unmounted")
    for _ in range(2):
        with pytest.raises(Unavailable, match="its directory is gone"):
            await storage.get(HASH)
        with pytest.raises(Unavailable):
            await storage.put(b"new", "image/png")
        with pytest.raises(Unavailable):
            await anext(storage.stream(HASH, 0, 1))
    (tmp_path / "unmounted").rename(tmp_path / "assets")

    assert PICTURE == await storage.get(HASH)
    assert [("read", False), ("write", False), ("read", True)] == turns
    await storage.put(PICTURE, "image/png")
    assert 3 == len(turns), "nothing was written: the file is there"
    await storage.put(b"new", "image/png")
    assert ("write", True) == turns[-1]


S3 = "s3://pictures/listings"


@pytest.mark.parametrize(
    ("url", "endpoint", "other_url", "other_endpoint", "is_same"),
    [
        (S3, None, f"{S3}/", None, True),
        (S3, None, S3, "https://s3.eu-central-1.amazonaws.com", True),
        (S3, "https://store.example", S3, "https://STORE.example:443/", True),
        (S3, "https://store.example", S3, None, False),
        (S3, "https://store.example", S3, "https://other.example", False),
        (S3, "http://127.0.0.1:9000", S3, "http://127.0.0.1:9001", False),
        (S3, None, "s3://pictures/others", None, False),
        ("file:///srv/a", None, "file:///srv//b/../a/", None, True),
        ("file:///srv/an%20album", None, "file:///srv/an album", None, True),
        ("file:///srv/a", None, "file:///srv/b", None, False),
    ],
)
def test_a_store_has_one_name_however_it_is_written(
    tmp_path: Path, url: str, endpoint: str | None, other_url: str, other_endpoint: str | None, is_same: bool
) -> None:
    """Daemons whose names differ are told that their pictures are apart."""

    def name(url: str, endpoint: str | None) -> str:
        return name_store(
            Settings(state_dir=tmp_path, storage_url=url, storage=StorageSettings(endpoint=endpoint))
        )

    assert is_same is (name(url, endpoint) == name(other_url, other_endpoint))
