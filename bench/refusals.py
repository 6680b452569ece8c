"""What a provider's refusals cost: calls to an account without money, the wait that a 429 asks for, and what other
kinds of jobs notice of either.

    python -m bench.refusals --exhausted 1000 --watch-s 130     pictures that wait for an empty account
    python -m bench.refusals --retry-after                      429 with 7 s, a date, nothing, an absurd wait

A real daemon and the protocol servers, in a temporary directory. Prints one JSON line a measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg

from bench.packs import write
from daemon.client import Client
from tests.fleet import Daemon, Server
from tests.protocol_servers import Fault
from tests.shop import PRODUCT, Shop, finish, open_shop_client, upload
from tests.support import eventually
from tests.work.products import photo

PINGS = 4000
DATE_S = 20
HUGE_S = 99_999_999
EMPTY = Fault(status=429, code="insufficient_quota", type="insufficient_quota")


class Buyer:
    """Orders pictures of one photo whose cut-out is bought already."""

    def __init__(self, client: Client, upload_id: str) -> None:
        self._client = client
        self._upload_id = upload_id
        self._count = 0

    @classmethod
    async def open(cls, client: Client) -> Buyer:
        buyer = cls(client, await upload(client, photo(), user_id="ada"))
        await finish(client, await buyer.order(slot="main"))
        return buyer

    async def order(self, *, slot: str = "lifestyle") -> str:
        """A picture for which nothing of another job can be reused; its job's id."""
        self._count += 1
        product = {**PRODUCT, "title": f"Mug {self._count}"}
        asked = {"photo": {"upload_id": self._upload_id}, "product": product, "slot": slot, "size_px": 1000}
        return str((await self._client.create_job("image", asked, user_id="ada"))["id"])


async def measure_exhausted(shop: Shop, sql: asyncpg.Pool, buyer: Buyer, count: int, watch_s: float) -> bool:
    """Pictures by the hundreds for an account without money; whether it was asked at most five times a minute."""
    free = await drain_pings(sql)
    shop.openai.always = EMPTY
    base, began = len(shop.paid_calls(shop.openai)), time.monotonic()
    for first in range(0, count, 50):
        await asyncio.gather(*(buyer.order() for _ in range(min(50, count - first))))
    ordered_s = time.monotonic() - began
    await asyncio.sleep(watch_s / 2 - ordered_s)
    busy = await drain_pings(sql)
    await asyncio.sleep(began + watch_s - time.monotonic())
    called_s = [call.started_s - began for call in shop.paid_calls(shop.openai)[base:]]
    most = max((sum(at <= other < at + 60 for other in called_s) for at in called_s), default=0)
    jobs = await sql.fetch(
        "select state, attempt, error->>'code' as code, count(*) from listingd.job_states"
        " where kind = 'image' and state <> 'completed' group by 1, 2, 3"
    )
    write(
        exhausted=count, watched_s=round(time.monotonic() - began), ordered_s=round(ordered_s, 1), calls=len(called_s),
        most_calls_a_minute=most, called_s=[round(at, 1) for at in called_s], jobs=[dict(row) for row in jobs],
        pings_s={"before": free, "meanwhile": busy, "ratio": round(busy / free, 2)},
    )  # fmt: skip
    shop.openai.always = None
    return 1 <= most <= 5 and {row["attempt"] for row in jobs} == {0}


async def measure_retry_after(shop: Shop, sql: asyncpg.Pool, buyer: Buyer, how: str) -> bool:
    """One 429; when the next call came, or is due, and how fast other jobs ran in between."""
    date = datetime.now(UTC) + timedelta(seconds=DATE_S)
    value = {"seconds": "7", "date": format_datetime(date, usegmt=True), "absent": "", "huge": str(HUGE_S)}[
        how
    ]
    free = await drain_pings(sql)
    base = len(shop.paid_calls(shop.openai))
    headers = {"Retry-After": value} if value else {}
    shop.openai.faults.append(Fault(status=429, code="rate_limit_exceeded", headers=headers))
    job_id = await buyer.order()
    await eventually(lambda: len(shop.paid_calls(shop.openai)) > base)
    busy = await drain_pings(sql)
    line: dict[str, Any] = {"retry_after": value or None}
    if how == "huge":
        due_s: float = await sql.fetchval(
            "select extract(epoch from run_at - now())::float8 from listingd.job_states where id = $1::uuid",
            job_id,
        )
        line |= {"next_call_due_s": round(due_s)}
        is_good = 3000 < due_s < 4000
    else:
        await eventually(lambda: len(shop.paid_calls(shop.openai)) > base + 1, within_s=60)
        first, second = shop.paid_calls(shop.openai)[base:]
        waited_s = second.started_s - first.ended_s
        line |= {"next_call_after_s": round(waited_s, 2)}
        # A date has whole seconds only.
        is_good = {"seconds": waited_s >= 7, "date": waited_s >= DATE_S - 2, "absent": waited_s >= 0}[how]
    write(**line, good=is_good, pings_s={"before": free, "meanwhile": busy, "ratio": round(busy / free, 2)})
    return is_good


async def drain_pings(sql: asyncpg.Pool) -> float:
    """Pings a second, from one enqueue by SQL until the last has ended."""
    began = time.monotonic()
    pings = json.dumps([{"kind": "ping", "input": {}}] * PINGS)
    ids = [row[0] for row in await sql.fetch("select listingd.enqueue_jobs($1::jsonb)", pings)]

    async def have_ended() -> bool:
        left = "select exists (select from listingd.job_states where id = any ($1) and state <> 'completed')"
        return not await sql.fetchval(left, ids)

    await eventually(have_ended, within_s=60)
    return round(PINGS / (time.monotonic() - began))


async def with_daemon(
    directory: Path, dsn: str, measure: Callable[[Shop, asyncpg.Pool, Buyer], Awaitable[bool]]
) -> bool:
    """What `measure` says of a fresh daemon and fresh providers."""
    async with Shop() as shop, asyncpg.create_pool(dsn, min_size=1, max_size=2) as sql:
        daemon = await Daemon(
            directory, dsn, limits__requests_per_minute=100_000, limits__open_jobs_per_user=100_000,
            **shop.settings(),
        ).start()  # fmt: skip
        try:
            async with open_shop_client(daemon) as client:
                return await measure(shop, sql, await Buyer.open(client))
        finally:
            daemon.kill()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.refusals")
    parser.add_argument(
        "--exhausted", type=int, default=0, help="pictures that wait for an account without money"
    )
    parser.add_argument("--watch-s", type=float, default=130, help="seconds that they are watched")
    parser.add_argument("--retry-after", action="store_true", help="429 in four forms")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ld-refusals-") as name:
        directory = Path(name)
        server = Server(directory / "server").create().start()
        try:
            is_good = True
            for how in ("seconds", "date", "absent", "huge") if asked.retry_after else ():
                measure = partial(measure_retry_after, how=how)
                is_good &= asyncio.run(with_daemon(directory / how, server.create_database(how), measure))
            if asked.exhausted:
                measure = partial(measure_exhausted, count=asked.exhausted, watch_s=asked.watch_s)
                is_good &= asyncio.run(
                    with_daemon(directory / "empty", server.create_database("empty"), measure)
                )
        finally:
            server.stop()
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
