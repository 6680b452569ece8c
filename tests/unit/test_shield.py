"""What a cancellation must not take away."""

from __future__ import annotations

import asyncio

import pytest

from daemon.shield import finish


async def test_a_cancelled_caller_gets_the_result_first_and_the_cancellation_then() -> None:
    is_read, got = asyncio.Event(), []

    async def read() -> str:
        await is_read.wait()
        return "paid for"

    async def call() -> None:
        got.append(await finish(read()))
        got.append(await finish(read()))  # a result that takes two steps is no less paid for
        await asyncio.sleep(0)
        got.append("never")

    task = asyncio.create_task(call())
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    is_read.set()
    await asyncio.wait({task})

    assert (["paid for", "paid for"], True, 3) == (got, task.cancelled(), task.cancelling())


async def test_an_error_comes_before_the_cancellation_too() -> None:
    """It may say what the call has cost."""
    is_read = asyncio.Event()

    async def read() -> None:
        await is_read.wait()
        raise ValueError("no picture")

    async def call() -> None:
        with pytest.raises(ValueError, match="no picture"):
            await finish(read())
        await asyncio.sleep(0)

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    is_read.set()
    await asyncio.wait({task})

    assert task.cancelled()


async def test_a_deadline_around_it_is_told_as_one() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await finish(asyncio.sleep(0.05))
            await asyncio.sleep(0)
