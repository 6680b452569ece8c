"""Blocking calls whose callers leave."""

from __future__ import annotations

import asyncio
import threading

from daemon.providers.threads import AbandonableThreads


async def test_an_answer_that_comes_with_the_cancel_is_told_as_late() -> None:
    """It is neither in the caller's hands nor of one who has left before: its price would be told to nobody."""
    began, may_answer, late = asyncio.Event(), threading.Event(), list[str]()
    loop = asyncio.get_running_loop()

    def work() -> str:
        loop.call_soon_threadsafe(began.set)
        may_answer.wait(20)
        return "paid for"

    task = asyncio.create_task(AbandonableThreads(1, name="answering").run(work, on_late=late.append))
    await began.wait()
    may_answer.set()
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "answering"]
    thread.join()  # on the loop: the answer waits for its next turn, and the cancel behind it
    loop.call_soon(task.cancel)
    await asyncio.wait({task})

    assert (True, ["paid for"]) == (task.cancelled(), late)
