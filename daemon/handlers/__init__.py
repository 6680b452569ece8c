"""Which handler does which kind of job."""

from __future__ import annotations

import asyncio
from typing import Any

from daemon.handlers.context import Handler, JobContext
from daemon.handlers.ping import answer_ping
from daemon.later import is_loaded, later


def _in(module: str, name: str) -> Handler:
    """The handler of this name. Its module draws: the first job that needs it imports it, in a thread."""
    maker = later(module)

    async def handle(ctx: JobContext) -> Any:
        if not is_loaded(module):
            await asyncio.to_thread(getattr, maker, name)
        return await getattr(maker, name)(ctx)

    return handle


HANDLERS: dict[str, Handler] = {
    "image": _in("daemon.handlers.image", "make_image"),
    "pack": _in("daemon.handlers.pack", "make_pack"),
    "aplus": _in("daemon.handlers.aplus", "handle"),
    "ping": answer_ping,
}
"""Kind -> handler."""
