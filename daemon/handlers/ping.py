"""Kind `ping`, the self-test: echoes, sleeps, fails as often as it is asked to."""

from __future__ import annotations

from typing import Any

from daemon.errors import Retry
from daemon.handlers.context import JobContext
from daemon.payloads import PingInput


async def answer_ping(ctx: JobContext) -> dict[str, Any]:
    """{echo, attempt}. Errors: Retry ping_failed on the first `fail_times` attempts."""
    wanted = ctx.input
    assert isinstance(wanted, PingInput)
    if wanted.sleep_s > 0:  # one that ends at once has no progress that anybody could see
        ctx.progress(0, 1, "ping")
        await ctx.sleep(wanted.sleep_s)
    if ctx.attempt <= wanted.fail_times:
        raise Retry(
            f"The ping fails {wanted.fail_times} times, as asked; this was attempt {ctx.attempt}.",
            code="ping_failed",
        )
    return {"echo": wanted.echo, "attempt": ctx.attempt}
