"""Kinds of jobs for the tests of faults, registered in a daemon process (tests/nursery.py).

stubborn  swallows every cancellation, for ever
member    asks the journal at FAULTS_JOURNAL (host:port) and waits for its answer; some fail, some crash
family    fans out three members and, when they have ended, says how many there were

A result carries the pid of the process that made it: whoever checks can tell whether it was its job's holder.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from daemon.errors import Retry
from daemon.handlers import HANDLERS
from daemon.handlers.context import JobContext
from daemon.jobs import Child, FannedOut

SISTERS = 3


async def refuse_to_stop(_: JobContext) -> None:
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue


async def ask_the_journal(ctx: JobContext) -> dict[str, Any]:
    host, port = os.environ["FAULTS_JOURNAL"].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        ctx.progress(0, 1, "asking")
        writer.write(f"{ctx.job_id} {ctx.attempt} {os.getpid()}\n".encode())
        await reader.readline()
    finally:
        writer.close()
    chance = ctx.job_id.int % 20
    if chance == 0 and ctx.attempt == 1:
        raise Retry("The first attempt fails.", after_s=0.1)
    if chance == 1 and ctx.attempt <= 2:
        raise RuntimeError("a bug")
    return {"pid": os.getpid()}


async def gather_a_family(ctx: JobContext) -> Any:
    if ctx.children is None:
        return FannedOut([Child("member", str(n), {}) for n in range(SISTERS)])
    return {"pid": os.getpid(), "children": len(ctx.children)}


def register() -> None:
    from daemon.attempt import with_children

    HANDLERS["stubborn"] = refuse_to_stop
    HANDLERS["member"] = ask_the_journal
    HANDLERS["family"] = with_children(gather_a_family)
