"""Where pictures live: bytes under their own SHA-256, in a directory or in an S3 bucket.

    key = ab/abcdef…   (the first two hex digits, then all 64)

A name that is its content's hash never changes meaning: writing twice is the same as writing once, a
reader can prove what it got, and two jobs with one picture share one file. `put` returns only when the
bytes are there for good: fsynced and linked into place locally, checksummed by the server on S3.
Nothing here knows who owns a file: the tables `assets`, `uploads` and `steps` do, and what none of them
names is an orphan (`list_older_than`, then `delete_older_than`, which looks again before it deletes).
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import math
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import MemoryStore, S3Store

from daemon.errors import Misconfigured, NotFound, TooLarge, Unavailable, first_cause
from daemon.settings import Settings

MAX_READ_BYTES = 160 * 1024 * 1024
"""Largest file that `get` takes into memory, bytes: a cut-out of 40 megapixels that no compression helps fits."""

_CHUNK_BYTES = 256 * 1024
_SMALL_BYTES = 256 * 1024  # hashing this much takes under 1 ms: not worth a thread
_REFRESH_S = 1800.0  # well under the age at which a file may be deleted: its name may be stored minutes later
_HASH = re.compile(r"[0-9a-f]{64}")

Access = Literal["read", "write"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One stored file: its hash, size in bytes and age in seconds."""

    sha256: str
    size_bytes: int
    age_s: float


class _Driver(Protocol):
    """Bytes by key, somewhere. Every `put` is atomic and durable."""

    async def put(self, key: str, data: bytes, content_type: str, /, *, overwrite: bool) -> None: ...
    async def stat(self, key: str, /) -> tuple[int, float]: ...
    async def read(self, key: str, /) -> bytes: ...
    def stream(self, key: str, start: int, end: int, /) -> AsyncIterator[bytes]: ...
    async def delete(self, key: str, /) -> None: ...
    async def delete_older(self, key: str, age_s: float, /) -> bool: ...
    def list(self) -> AsyncIterator[tuple[str, int, float]]: ...
    def path(self, key: str, /) -> Path | None: ...
    async def sign(self, key: str, expires_in: timedelta, /) -> str | None: ...


class Storage:
    """Content-addressed bytes. Errors of every method: Unavailable when the store does not answer in time."""

    def __init__(self, driver: _Driver, *, timeout_s: float, signed_url_s: float) -> None:
        self._driver = driver
        self._timeout_s = timeout_s
        self._signed_url = timedelta(seconds=signed_url_s)
        self._lost: set[Access] = set()
        self.on_turn: Callable[[Access, str | None], None] = lambda _what, _why: None
        """Told when reading or writing stops working, and why; with None when it works again."""

    async def put(self, data: bytes, content_type: str) -> str:
        """Store bytes for good and return their SHA-256 (64 hex digits). Idempotent."""
        sha256 = await hash_bytes(data)
        key = _key(sha256)
        with self._asking("write"):
            async with asyncio.timeout(self._timeout_s):
                try:
                    await self._driver.put(key, data, content_type, overwrite=False)
                    self._answered("write")
                    return sha256
                except (FileExistsError, AlreadyExistsError):
                    try:
                        size_bytes, age_s = await self._driver.stat(key)
                    except (FileNotFoundError, NotFoundError):
                        size_bytes, age_s = 0, math.inf  # swept in between: store it after all
                # A sweep may be looking at an old file that nobody owned until now: make it young again.
                # A wrong size is damage from outside: heal it.
                if size_bytes != len(data) or age_s > _REFRESH_S:
                    await self._driver.put(key, data, content_type, overwrite=True)
                    self._answered("write")
        return sha256

    async def get(self, sha256: str, *, max_bytes: int = MAX_READ_BYTES) -> bytes:
        """The bytes, proven to be those of the hash.

        Errors: NotFound; TooLarge over `max_bytes`; Unavailable (code storage_corrupt) when they are not.
        """
        key = _key(sha256)
        with self._asking("read"):
            async with asyncio.timeout(self._timeout_s):
                size_bytes, _ = await self._driver.stat(key)
                if size_bytes > max_bytes:
                    raise TooLarge(f"The stored file has {size_bytes} bytes, the limit is {max_bytes}.")
                data = await self._driver.read(key)
        if await hash_bytes(data) != sha256:
            raise Unavailable(
                "A stored file is damaged: its bytes do not have the hash they are stored under.",
                code="storage_corrupt",
                hint="Restore it from a backup, or delete it and run the job again.",
                data={"sha256": sha256},
            )
        return data

    async def stat(self, sha256: str) -> StoredFile:
        """Size and age. Errors: NotFound."""
        with self._asking("read"):
            async with asyncio.timeout(self._timeout_s):
                size_bytes, age_s = await self._driver.stat(_key(sha256))
        return StoredFile(sha256, size_bytes, age_s)

    async def exists(self, sha256: str) -> bool:
        try:
            await self.stat(sha256)
        except NotFound:
            return False
        return True

    async def stream(self, sha256: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` up to but without `end`, in chunks; each chunk has the deadline of a request."""
        if end is None:
            end = (await self.stat(sha256)).size_bytes
        if start >= end:
            return
        chunks = aiter(self._driver.stream(_key(sha256), start, end))
        while True:
            with self._asking("read"):
                async with asyncio.timeout(self._timeout_s):
                    chunk = await anext(chunks, None)
            if chunk is None:
                return
            yield chunk

    def path(self, sha256: str) -> Path | None:
        """The local file, for sendfile; None when the bytes are elsewhere."""
        return self._driver.path(_key(sha256))

    async def sign_url(self, sha256: str) -> str | None:
        """A download link that works for a while without credentials; None for a local store."""
        with self._asking("read"):
            async with asyncio.timeout(self._timeout_s):
                return await self._driver.sign(_key(sha256), self._signed_url)

    async def delete(self, sha256: str) -> None:
        """Gone afterwards, whether or not it was there."""
        with _translated(), suppress(FileNotFoundError, NotFoundError):
            async with asyncio.timeout(self._timeout_s):
                await self._driver.delete(_key(sha256))

    async def list_older_than(self, age_s: float) -> AsyncIterator[StoredFile]:
        """Every file older than so many seconds, in no order: candidates of the sweep for orphans."""
        entries = aiter(self._driver.list())
        while True:
            with self._asking("read"):
                async with asyncio.timeout(self._timeout_s):
                    entry = await anext(entries, None)
            if entry is None:
                return
            key, size_bytes, file_age_s = entry
            sha256 = key[3:]
            if file_age_s > age_s and _HASH.fullmatch(sha256) and key == _key(sha256):
                yield StoredFile(sha256, size_bytes, file_age_s)

    async def delete_older_than(self, sha256: str, age_s: float) -> bool:
        """Delete an orphan unless a `put` has made it young since it was listed; whether it is gone."""
        try:
            with _translated():
                async with asyncio.timeout(self._timeout_s):
                    return await self._driver.delete_older(_key(sha256), age_s)
        except NotFound:
            return True

    async def check(self) -> None:
        """Write, read and delete a few random bytes: proves rights, space and the connection."""
        data = b"listingd probe " + secrets.token_bytes(16)
        sha256 = await self.put(data, "application/octet-stream")
        try:
            await self.get(sha256)
        finally:
            await self.delete(sha256)

    @contextmanager
    def _asking(self, what: Access) -> Iterator[None]:
        """Errors as ours, and `on_turn` told. Apart for both: from a full disk one can still read."""
        try:
            with _translated():
                yield
        except Unavailable as exc:
            if what not in self._lost:
                self._lost.add(what)
                self.on_turn(what, first_cause(exc))
            raise
        except NotFound:
            self._answered(what)
            raise
        if what == "read":  # a `put` whose file is there already has written nothing
            self._answered(what)

    def _answered(self, what: Access) -> None:
        if what in self._lost:
            self._lost.discard(what)
            self.on_turn(what, None)


async def open_storage(settings: Settings) -> Storage:
    """The store that the settings name. Errors: Misconfigured (unusable URL, directory not writable)."""
    url = urlsplit(settings.effective_storage_url)
    own = settings.storage
    driver: _Driver
    if url.scheme == "file":
        driver = _Directory(Path(unquote(url.path)))
        await driver.open()
    elif url.scheme == "memory":
        driver = _Bucket(MemoryStore())
    else:
        if not url.netloc:
            raise Misconfigured("LISTINGD_STORAGE_URL names no bucket.", hint="Write s3://bucket/prefix.")
        secret = {
            "access_key_id": own.access_key,
            "secret_access_key": own.secret_key,
            "session_token": own.session_token,
        }
        config: dict[str, Any] = {k: v.get_secret_value() for k, v in secret.items() if v is not None}
        if own.endpoint:
            config["endpoint"] = own.endpoint
        store = S3Store(
            url.netloc,
            prefix=url.path.strip("/") or None,
            region=own.region,
            virtual_hosted_style_request=own.virtual_hosted,
            checksum_algorithm="sha256",  # the server refuses bytes that changed on the way
            client_options={
                "allow_http": bool(own.endpoint and own.endpoint.startswith("http://")),
                "timeout": timedelta(seconds=own.timeout_s),
                "connect_timeout": timedelta(seconds=min(5.0, own.timeout_s)),
            },
            # A put that is sent again after a lost answer finds its own object: safe by content address.
            retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=own.timeout_s)},
            **config,
        )
        driver = _Bucket(store)
    return Storage(driver, timeout_s=own.timeout_s, signed_url_s=own.signed_url_s)


def name_store(settings: Settings) -> str:
    """The one name of a store, however it is written; without secrets.

    A directory that nobody has set is its host's own (`host:/path`); one that was set may be shared by hosts.
    """
    url = urlsplit(settings.effective_storage_url)
    if url.scheme == "file":
        path = os.path.realpath(unquote(url.path))
        return f"file://{path}" if settings.storage_url else f"{os.uname().nodename}:{path}"
    name = f"{url.scheme}://{url.netloc}/{url.path.strip('/')}"
    endpoint = urlsplit(settings.storage.endpoint or "")
    # A bucket of AWS is one everywhere.
    if endpoint.hostname and not endpoint.hostname.endswith(".amazonaws.com"):
        name += f" at {endpoint.hostname}:{endpoint.port or (443 if endpoint.scheme == 'https' else 80)}"
    return name


async def hash_bytes(data: bytes) -> str:
    """SHA-256 as 64 hex digits; big inputs in a thread (hashlib lets go of the interpreter lock)."""
    if len(data) <= _SMALL_BYTES:
        return hashlib.sha256(data).hexdigest()
    return await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())


def _key(sha256: str) -> str:
    if not _HASH.fullmatch(sha256):
        raise NotFound("No file has this name.")  # and never a path that a caller made up
    return f"{sha256[:2]}/{sha256}"


@contextmanager
def _translated() -> Iterator[None]:
    """Vendor and system errors as ours. The vendor's text stays in the cause: it names hosts and buckets."""
    try:
        yield
    except (FileNotFoundError, NotFoundError) as exc:
        raise NotFound("The file is not in storage.") from exc
    except (PermissionError, PermissionDeniedError, UnauthenticatedError) as exc:
        raise Unavailable(
            "The object store refuses access.",
            code="storage_refused",
            hint="Check the storage credentials and the rights on the directory or bucket.",
        ) from exc
    except (BaseError, OSError, TimeoutError) as exc:
        why = f" ({exc.strerror})" if isinstance(exc, OSError) and exc.strerror else ""
        raise Unavailable(
            f"The object store does not answer{why}.",
            code="storage_unavailable",
            hint="Check LISTINGD_STORAGE_URL, the free space and the network.",
            data={"retry_after_s": 5},
        ) from exc


class _Directory:
    """Files under one directory. Work happens in threads: a disk can block for seconds.

    A file is missing only where the folder of drafts stands: without it the volume is gone, and to say of every file
    that it does not exist would fail the jobs for good and have their paid results paid again.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._drafts = root / "drafts"

    async def open(self) -> None:
        try:
            await asyncio.to_thread(self._prepare)
        except OSError as exc:
            raise Misconfigured(
                f"The assets directory {self._root} cannot be used: {exc.strerror}.",
                hint="Set LISTINGD_STATE_DIR or LISTINGD_STORAGE_URL to a directory the daemon may write.",
            ) from exc

    def _prepare(self) -> None:
        self._drafts.mkdir(mode=0o700, parents=True, exist_ok=True)
        for draft in self._drafts.iterdir():  # what a killed process left half written
            with suppress(FileNotFoundError):
                if time.time() - draft.stat().st_mtime > 86_400:
                    draft.unlink()

    async def _in_thread(self, act: Callable[..., T], *args: Any) -> T:
        try:
            return await asyncio.to_thread(act, *args)
        except FileNotFoundError as exc:
            if await asyncio.to_thread(self._drafts.is_dir):
                raise
            raise OSError(errno.ENODEV, "its directory is gone", str(self._root)) from exc

    async def put(self, key: str, data: bytes, _content_type: str, /, *, overwrite: bool) -> None:
        await self._in_thread(self._write, key, data, overwrite)

    def _write(self, key: str, data: bytes, overwrite: bool) -> None:
        target = self._root / key
        if not overwrite and target.exists():
            raise FileExistsError(key)
        draft = self._drafts / secrets.token_hex(16)
        try:
            with draft.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                self._move(draft, target, overwrite)
            except FileNotFoundError:
                target.parent.mkdir(mode=0o700, exist_ok=True)
                _sync_directory(self._root)
                self._move(draft, target, overwrite)
        finally:
            draft.unlink(missing_ok=True)
        _sync_directory(target.parent)

    @staticmethod
    def _move(draft: Path, target: Path, overwrite: bool) -> None:
        if overwrite:
            draft.replace(target)
        else:
            target.hardlink_to(draft)  # unlike a rename it fails when the name is taken

    async def stat(self, key: str) -> tuple[int, float]:
        found = await self._in_thread((self._root / key).stat)
        return found.st_size, time.time() - found.st_mtime

    async def read(self, key: str) -> bytes:
        return await self._in_thread((self._root / key).read_bytes)

    async def stream(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        file = await self._in_thread(lambda: (self._root / key).open("rb"))
        try:
            await asyncio.to_thread(file.seek, start)
            left = end - start
            while left > 0:
                chunk = await asyncio.to_thread(file.read, min(left, _CHUNK_BYTES))
                if not chunk:
                    return
                left -= len(chunk)
                yield chunk
        finally:
            file.close()

    async def delete(self, key: str) -> None:
        await self._in_thread((self._root / key).unlink)

    async def delete_older(self, key: str, age_s: float) -> bool:
        return await self._in_thread(self._take_older, self._root / key, age_s)

    def _take_older(self, target: Path, age_s: float) -> bool:
        """Away first, then looked at: a `put` that comes after its first look would make it young and lose it."""
        if time.time() - target.stat().st_mtime <= age_s:
            return False
        taken = self._drafts / secrets.token_hex(16)
        target.rename(taken)
        is_old = time.time() - taken.stat().st_mtime > age_s
        if not is_old:
            with suppress(FileExistsError):  # put once more since: the same bytes
                self._move(taken, target, overwrite=False)
            _sync_directory(target.parent)
        taken.unlink()
        return is_old

    async def list(self) -> AsyncIterator[tuple[str, int, float]]:
        for folder in await asyncio.to_thread(lambda: sorted(self._root.glob("[0-9a-f][0-9a-f]"))):
            for entry in await asyncio.to_thread(_scan, folder):
                yield entry

    def path(self, key: str) -> Path | None:
        return self._root / key

    async def sign(self, _key: str, _expires_in: timedelta, /) -> str | None:
        return None


class _Bucket:
    """Objects in S3 or something that speaks its protocol (or in memory, for tests)."""

    def __init__(self, store: S3Store | MemoryStore) -> None:
        self._store = store

    async def _told_apart(self, asking: Awaitable[T]) -> T:
        """S3 says of a bucket that is not there what it says of a missing object; a listing knows the difference."""
        try:
            return await asking
        except (FileNotFoundError, NotFoundError):
            with suppress(PermissionDeniedError):  # the right to list is only there for the sweep
                await anext(aiter(obstore.list(self._store)), None)
            raise

    async def put(self, key: str, data: bytes, content_type: str, /, *, overwrite: bool) -> None:
        await self._told_apart(
            obstore.put_async(
                self._store,
                key,
                data,
                mode="overwrite" if overwrite else "create",
                attributes={"Content-Type": content_type},
                use_multipart=False,
            )
        )
        size_bytes, _ = await self.stat(key)
        if size_bytes != len(data):
            raise OSError(f"stored {size_bytes} of {len(data)} bytes")

    async def stat(self, key: str) -> tuple[int, float]:
        found = await self._told_apart(obstore.head_async(self._store, key))
        return found["size"], _age_s(found["last_modified"])

    async def read(self, key: str) -> bytes:
        found = await self._told_apart(obstore.get_async(self._store, key))
        return bytes(await found.bytes_async())

    async def stream(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        found = await self._told_apart(obstore.get_async(self._store, key, options={"range": (start, end)}))
        async for chunk in found.stream(min_chunk_size=_CHUNK_BYTES):
            yield bytes(chunk)

    async def delete(self, key: str) -> None:
        await obstore.delete_async(self._store, key)

    async def delete_older(self, key: str, age_s: float) -> bool:
        """No request of S3's that obstore knows does both: a `put` between the two, of a file that had no owner for an
        hour, is lost.
        """
        _, file_age_s = await self.stat(key)
        if file_age_s <= age_s:
            return False
        await self.delete(key)
        return True

    async def list(self) -> AsyncIterator[tuple[str, int, float]]:
        async for page in obstore.list(self._store):
            for found in page:
                yield found["path"], found["size"], _age_s(found["last_modified"])

    def path(self, _key: str, /) -> Path | None:
        return None

    async def sign(self, key: str, expires_in: timedelta) -> str | None:
        if isinstance(self._store, S3Store):
            return await obstore.sign_async(self._store, "GET", key, expires_in)
        return None


def _age_s(modified: datetime) -> float:
    return (datetime.now(UTC) - modified).total_seconds()


def _scan(folder: Path) -> list[tuple[str, int, float]]:
    now = time.time()
    found: list[tuple[str, int, float]] = []
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):
            stat = entry.stat()
            found.append((f"{folder.name}/{entry.name}", stat.st_size, now - stat.st_mtime))
    return found


def _sync_directory(path: Path) -> None:
    """A new name is durable only when its directory is on disk too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
