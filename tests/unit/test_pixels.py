"""The pixel threads: what goes first, and what a cancelled or failing caller leaves behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import pytest

from daemon.pixels import PixelPool


@asynccontextmanager
async def busy_pool() -> AsyncIterator[tuple[PixelPool, threading.Event]]:
    """A pool whose only thread is at work until the event is set."""
    begun, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        go_on.wait(10)

    with closing(PixelPool(1)) as pool:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pool.run(hold))
            await asyncio.to_thread(begun.wait, 10)
            try:
                yield pool, go_on
            finally:
                go_on.set()


async def test_work_that_a_paid_call_waits_for_goes_before_drawing() -> None:
    ran: list[str] = []

    async with busy_pool() as (pool, go_on):
        works = [
            asyncio.ensure_future(pool.run(ran.append, name, first=first))
            for name, first in (("draw 1", False), ("call 1", True), ("draw 2", False), ("call 2", True))
        ]
        await asyncio.sleep(0)  # all four have arrived
        go_on.set()
        await asyncio.gather(*works)

    assert ["call 1", "call 2", "draw 1", "draw 2"] == ran


async def test_work_of_a_cancelled_caller_is_left_out() -> None:
    ran: list[str] = []

    async with busy_pool() as (pool, go_on):
        dropped = asyncio.ensure_future(pool.run(ran.append, "dropped", first=True))
        kept = asyncio.ensure_future(pool.run(ran.append, "kept"))
        await asyncio.sleep(0)
        dropped.cancel()
        await asyncio.sleep(0)
        go_on.set()
        await kept

    assert dropped.cancelled()
    assert ["kept"] == ran


async def test_an_error_goes_to_its_caller_and_the_thread_goes_on() -> None:
    with closing(PixelPool(1)) as pool:
        with pytest.raises(ValueError, match="invalid literal"):
            await pool.run(int, "no number")

        assert 7 == await pool.run(int, "7")
