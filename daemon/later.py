"""Modules that a start does without: pixels, fonts, cryptography. Named where they are used, imported at first use.

    codec = later("daemon.imaging.codec")     stands for the module; nothing is imported
    codec.inspect(data)                       imports it, once; whoever does so on the event loop stops it
    load_all()                                imports every module named so far: the service does it in a thread
                                              as soon as it is ready, so that jobs find them there

A third of the CPU of a start went into modules that the first second does not need (2 cores, 2026-11-28). The
type checker and the import floors see the plain import beside it, under TYPE_CHECKING.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

_named: dict[str, None] = {}  # in the order in which they were named


class Later:
    """Has what the module has. Looks it up each time: 0.5 µs, and a test may replace it in the module."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)


def later(name: str) -> Any:
    """Stands for the module of this name."""
    _named.setdefault(name)
    return Later(name)


def is_loaded(name: str) -> bool:
    """Whether using it costs nothing any more. A module that is half imported is not."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return spec is not None and not getattr(spec, "_initializing", False)


@contextmanager
def without(name: str) -> Iterator[None]:
    """What is imported in the block finds no such package, unless it is in memory already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # how the import system marks what is not there
    try:
        yield
    finally:
        del sys.modules[name]


def load_all() -> None:
    """Import all of them. Blocks, for half a second at the first time."""
    for name in list(_named):
        import_module(name)
