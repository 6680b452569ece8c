"""The threads for image work. What a paid call waits for goes before drawing, so that calls begin early.

    run(work, first=True)  ──▶ ┐ heap by (rank, arrival) ──▶ a free thread takes the foremost
    run(work)              ──▶ ┘

Work that has begun is never interrupted. A caller that is cancelled leaves the heap; a thread already at its
work finishes it for nobody.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any


class PixelPool:
    """At most `threads` pieces of work at once."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="pixels")
        self._arrivals = itertools.count()
        self._waiting: queue.PriorityQueue[tuple[int, int, Future[Any], Callable[[], Any]]] = (
            queue.PriorityQueue()
        )

    async def run(self, work: Callable[..., Any], /, *args: Any, first: bool = False, **kw: Any) -> Any:
        """What work(*args, **kw) gives. first: go before all work that is not. Errors: those of work."""
        done: Future[Any] = Future()
        self._waiting.put((0 if first else 1, next(self._arrivals), done, partial(work, *args, **kw)))
        self._threads.submit(self._run_foremost)  # one turn for each piece of work, whichever it will be
        return await asyncio.wrap_future(done)

    def close(self) -> None:
        """Give up what has not begun, without waiting for what has."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run_foremost(self) -> None:
        _, _, done, work = self._waiting.get()
        if not done.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except BaseException as exc:  # whatever it is belongs to the caller, who would wait for ever
            done.set_exception(exc)
        else:
            done.set_result(result)
