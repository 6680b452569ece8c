"""Blocking calls in threads that their callers may leave behind.

    await run(work) --> daemon thread --> result
         | cancelled         |
         +--- left behind ---+--> on_late(result)

A thread cannot be stopped from outside. The executors of the standard library join theirs at exit, which
would hold a stopping service up for as long as a provider is silent; these threads end with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

from daemon.errors import Unavailable

T = TypeVar("T")


class AbandonableThreads:
    """At most `size` calls at a time, those left behind included."""

    def __init__(self, size: int, name: str) -> None:
        self._free = asyncio.Semaphore(size)
        self._name = name

    async def run(self, work: Callable[[], T], *, on_late: Callable[[T], None]) -> T:
        """The result of `work`, run in a thread. on_late gets it (on the loop, in the caller's context) when
        the caller was cancelled meanwhile; what `work` raises then is dropped.

        Errors: Unavailable when the machine gives no thread: `work` was not begun.
        """
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()

        def finish(settle: Callable[[], None], late: Callable[[], None]) -> None:
            self._free.release()
            late() if future.done() else settle()

        def report(settle: Callable[[], None], late: Callable[[], None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(finish, settle, late, context=context)

        def body() -> None:
            try:
                result = work()
            except BaseException as exc:  # a thread has no caller above it: all goes to the awaiting task
                error = exc
                report(lambda: future.set_exception(error), lambda: None)
            else:
                report(lambda: future.set_result(result), lambda: on_late(result))

        thread = threading.Thread(target=context.copy().run, args=(body,), name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as exc:
            self._free.release()
            raise Unavailable("The machine gives no thread.") from exc
        try:
            return await future
        except asyncio.CancelledError:
            # The answer came in the same turn of the loop as the cancel: `finish` has settled it for a caller who goes.
            if not future.cancelled() and future.exception() is None:
                on_late(future.result())
            raise
