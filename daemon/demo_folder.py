"""The folder a demo writes to: it removes what an earlier demo made there, and touches nothing else.

    DIR/.listingd-demo     one relative path a line, written before the file it names; locked while in use

A run that was killed half-way has therefore listed all it made. A folder that holds other people's files and
no such list is refused.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TextIO

from daemon.errors import Misconfigured

LIST_NAME = ".listingd-demo"


class DemoFolder:
    """Use it through `open_folder`."""

    def __init__(self, path: Path, listing: TextIO) -> None:
        self.path = path
        self._listing = listing

    def write(self, name: str, data: bytes) -> Path:
        """Write a file under its relative path. Errors: Misconfigured (disk full, no permission)."""
        target = self.path / _inside(name)
        try:
            self._listing.write(f"{name}\n")
            self._listing.flush()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        except OSError as exc:
            raise _unusable(self.path, exc) from exc
        return target

    def clear(self, keep: tuple[str, ...] = ()) -> None:
        """Remove all files that demos made here but those of `keep`, and folders left empty by that."""
        self._listing.seek(0)
        names = [name for name in dict.fromkeys(self._listing.read().splitlines()) if name]
        kept = [name for name in names if name in keep]
        try:
            for name in names:
                if name not in keep:
                    with suppress(ValueError):  # a line that somebody else wrote
                        self._remove(_inside(name))
            self._listing.seek(0)
            self._listing.truncate()
            self._listing.writelines(f"{name}\n" for name in kept)
            self._listing.flush()
        except OSError as exc:
            raise _unusable(self.path, exc) from exc

    def _remove(self, name: PurePosixPath) -> None:
        with suppress(FileNotFoundError, IsADirectoryError):
            (self.path / name).unlink()
        for parent in name.parents[:-1]:
            with suppress(OSError):
                (self.path / parent).rmdir()


@contextmanager
def open_folder(path: Path) -> Iterator[DemoFolder]:
    """The folder, made when missing, emptied of earlier demos, ours until the end of the block.

    Errors: Misconfigured (holds other files, is in use, cannot be written).
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()) and not (path / LIST_NAME).exists():
            raise Misconfigured(
                f"{path} holds files that no demo made.", hint="Name a new or empty folder with --out."
            )
        descriptor = os.open(path / LIST_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as exc:
        raise _unusable(path, exc) from exc
    with os.fdopen(descriptor, "r+", encoding="utf-8") as listing:
        try:
            fcntl.flock(listing, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Misconfigured(
                f"Another demo is writing to {path}.", hint="Wait for it, or name another folder with --out."
            ) from None
        folder = DemoFolder(path, listing)
        folder.clear()
        yield folder


def _inside(name: str) -> PurePosixPath:
    """Errors: ValueError for a name that leads out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{name!r} is no path inside the folder")
    return path


def _unusable(path: Path, exc: OSError) -> Misconfigured:
    return Misconfigured(
        f"The folder {path} cannot be used: {exc.strerror or exc}.",
        hint="Name a folder that you may write with --out.",
    )
