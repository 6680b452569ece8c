"""Writes that must survive a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def settle(work: Awaitable[T], *, within_s: float = 5.0) -> T:
    """The result of `work`, which goes on for up to `within_s` seconds when the caller is cancelled meanwhile.

    The cancellation is raised afterwards in any case, whatever became of the work.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            await asyncio.wait({task}, timeout=within_s)
        if not task.done():
            task.cancel()
        elif not task.cancelled():
            task.exception()  # seen: the cancellation is what the caller must hear of
        raise
