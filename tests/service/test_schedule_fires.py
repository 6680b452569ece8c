"""Whole daemons and the clock: what was missed while all were dead is made up for, once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import aiohttp
import asyncpg

from tests.fleet import HEADERS, Daemon
from tests.support import eventually


async def test_two_daemons_make_up_for_what_was_missed_once(sql: asyncpg.Pool, daemon: Callable[..., Daemon]):
    """Killed while the schedule waited; both come back at once, see the same missed times, and race."""
    pair = [daemon("one"), daemon("two")]
    await pair[0].start()
    # Four times, the last 20 minutes ago: none of them is just now, whatever the hour.
    missed = (datetime.now(UTC) - timedelta(hours=3, minutes=20)).replace(second=0, microsecond=0)
    wanted = {"kind": "ping", "input": {}, "cron": f"{missed.minute} * * * *", "missed": "all"}
    async with aiohttp.ClientSession(headers=HEADERS) as client:
        async with client.put(f"{pair[0].url}/v1/admin/schedules/hourly", json=wanted) as answer:
            assert 200 == answer.status, await answer.text()
    pair[0].kill()
    await sql.execute("update listingd.schedules set next_at = $1", missed)

    for one in pair:
        one.launch()
    for one in pair:
        await one.wait_for("service.ready")

    async def all_completed() -> bool:
        return bool(
            await sql.fetchval(
                "select count(*) = 4 and bool_and(state = 'completed') from listingd.job_states"
            )
        )

    await eventually(all_completed, within_s=30)
    due = await sql.fetch("select metadata ->> 'scheduled_at' as at from listingd.jobs order by 1")
    assert [missed + timedelta(hours=n) for n in range(4)] == [
        datetime.fromisoformat(row["at"]) for row in due
    ]
    assert [4] == [line["count"] for one in pair for line in one.find("schedule.fired", schedule="hourly")]
    assert [] == [line for one in pair for line in one.find("service.task_failed")]
