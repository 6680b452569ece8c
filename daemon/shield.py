"""Work that must survive a cancellation: writes, and the reading of what was paid for."""

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


async def finish(work: Awaitable[T]) -> T:
    """The result of `work`, also when the caller is cancelled meanwhile: it is told at its next wait, with the result
    in its hands. However often it is cancelled, `work` goes on; so that must end by itself.
    """
    caller = asyncio.current_task()
    assert caller is not None  # a coroutine runs in a task
    task = asyncio.ensure_future(work)
    is_cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            is_cancelled = True
    if is_cancelled:
        caller.uncancel()  # what is told again counts once
        caller.cancel()
    return task.result()
