"""What tests share and pytest does not give."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")


@overload
async def eventually(condition: Callable[[], Awaitable[T | None]], within_s: float = 15.0) -> T: ...


@overload
async def eventually(condition: Callable[[], T | None], within_s: float = 15.0) -> T: ...


async def eventually(condition: Callable[[], Any], within_s: float = 15.0) -> Any:
    """The first truthy value of `condition` (plain or async); AssertionError after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    pause_s = 0.002
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {inspect.getsource(condition).strip()}")
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.1)
