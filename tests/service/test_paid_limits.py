"""Limits that hold for all daemons together: budgets, calls a minute, calls at once; and what waits meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from daemon.client import CallRefused, Client
from tests.fleet import Daemon
from tests.protocol_servers import Fault
from tests.shop import PRODUCT, Shop, finish, open_shop_client, shop_service, upload
from tests.support import eventually
from tests.work.products import photo

EMPTY = Fault(status=429, code="insufficient_quota", type="insufficient_quota")


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    async with Shop() as opened:
        yield opened


async def order(client: Client, upload_id: str, number: int = 0, slot: str = "lifestyle") -> str:
    """A picture of its own: nothing of another job can be reused for it."""
    asked = {"photo": {"upload_id": upload_id}, "product": {**PRODUCT, "title": f"Mug {number}"}, "slot": slot,
             "size_px": 1000}  # fmt: skip
    return str((await client.create_job("image", asked, user_id="ada"))["id"])


async def cut_out_once(client: Client) -> str:
    """A photo whose cut-out is bought already; its upload_id."""
    upload_id = await upload(client, photo(), user_id="ada")
    assert "completed" == (await finish(client, await order(client, upload_id, slot="main")))["state"]
    return upload_id


async def test_two_daemons_never_have_more_calls_at_once_or_in_a_minute_than_allowed(
    daemon: Callable[..., Daemon], shop: Shop, tmp_path: Path
) -> None:
    """Twenty pictures want to be painted; the account takes six a minute, and we two at a time."""
    shop.openai.latency_s = 0.4
    store = {"storage_url": (tmp_path / "assets").as_uri()}
    limits = shop.settings(openai__images_per_minute=6, openai__concurrency=2, **store)
    one, two = await asyncio.gather(daemon("one", **limits).start(), daemon("two", **limits).start())
    async with open_shop_client(one) as first, open_shop_client(two) as second:
        upload_id = await cut_out_once(first)
        await asyncio.gather(*(order((first, second)[n % 2], upload_id, n) for n in range(20)))

        await eventually(lambda: len(shop.paid_calls(shop.openai)) >= 6, within_s=60)
        await asyncio.sleep(5)  # what must not happen: more calls in this minute

    calls = shop.paid_calls(shop.openai)
    assert 6 == len(calls)
    assert 2 == shop.openai.journal.most_at_once
    assert one.find("job.released")
    assert two.find("job.released")


async def test_fifty_creates_race_for_a_budget_of_ten_over_two_daemons(
    sql: asyncpg.Pool, daemon: Callable[..., Daemon], shop: Shop, tmp_path: Path
) -> None:
    """A cut-out costs 0.20 USD. Those that come too late are refused (402), or wait and say so."""
    store = {"storage_url": (tmp_path / "assets").as_uri()}
    budget = shop.settings(budgets__user_usd_per_day="2.00", **store)
    one, two = await asyncio.gather(daemon("one", **budget).start(), daemon("two", **budget).start())
    async with open_shop_client(one) as first, open_shop_client(two) as second:
        photos = await asyncio.to_thread(lambda: [photo(200 + n, 240) for n in range(50)])
        uploads = [await upload(first, data, user_id="ada") for data in photos]
        ends = await asyncio.gather(
            *(order((first, second)[n % 2], uploads[n], n, slot="main") for n in range(50)),
            return_exceptions=True,
        )
        created = [end for end in ends if isinstance(end, str)]
        refused = [end for end in ends if isinstance(end, CallRefused)]

        async def jobs_are_settled() -> bool:
            jobs = [await first.read_job(job_id) for job_id in created]
            waiting = [job for job in jobs if (job["error"] or {}).get("code") == "budget_spent"]
            done = [job for job in jobs if job["state"] == "completed"]
            return len(done) + len(waiting) == len(jobs)

        await eventually(jobs_are_settled, within_s=90)
        jobs = [await first.read_job(job_id) for job_id in created]

    assert 50 == len(created) + len(refused)
    assert all(402 == refusal.data["status"] for refusal in refused)
    assert 10 == len(shop.removebg.journal.billed)
    assert 10 == sum(job["state"] == "completed" for job in jobs)
    assert not any(job["attempt"] for job in jobs if job["state"] == "pending")
    spent = await sql.fetchrow(
        "select reserved_usd, spent_usd from listingd.spend where scope = 'user' and period = 'day'"
    )
    assert spent is not None
    assert (0, 2) == tuple(spent)


async def test_an_empty_account_costs_few_calls_and_no_attempt(
    database: str, tmp_path: Path, shop: Shop
) -> None:
    """Two hundred pictures wait for an account without money, and none of them pays for trying."""
    async with (
        shop_service(shop, database, tmp_path) as (_, client),
        asyncpg.create_pool(database, min_size=1, max_size=2) as sql,
    ):
        upload_id = await cut_out_once(client)
        shop.openai.always = EMPTY
        await asyncio.gather(*(order(client, upload_id, n) for n in range(200)))

        async def all_were_looked_at() -> bool:
            return not await sql.fetchval(
                "select exists (select from listingd.job_states where state = 'processing'"
                " or state = 'pending' and error is null)"
            )

        await eventually(all_were_looked_at, within_s=90)
        attempts = await sql.fetch("select distinct attempt from listingd.job_states where state = 'pending'")

    assert 1 <= len(shop.paid_calls(shop.openai)) <= 5
    assert [0] == [row["attempt"] for row in attempts]


async def test_a_job_that_waits_for_its_lane_holds_no_slot(database: str, tmp_path: Path, shop: Shop) -> None:
    """Two slots, a lane for one call, a call that takes long: the other slot stays free for other work."""
    limits = {"openai__concurrency": 1, "workers__concurrency": 2}
    async with shop_service(shop, database, tmp_path, **limits) as (_, client):
        upload_id = await cut_out_once(client)
        shop.openai.latency_s = 600
        for number in range(6):
            await order(client, upload_id, number)
        await shop.openai.journal.until(2)  # the picture that takes long

        async with asyncio.timeout(30):
            for _ in range(5):
                ping = await client.create_job("ping", {})
                assert "completed" == (await finish(client, ping["id"]))["state"]

    assert 1 == shop.openai.journal.most_at_once


@pytest.mark.parametrize("how", ["seconds", "date", "absent", "huge"])
async def test_the_servers_delay_is_kept_and_delays_nobody_else(
    database: str, tmp_path: Path, shop: Shop, how: str
) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=600), usegmt=True)
    headers = {"seconds": {"Retry-After": "3"}, "date": {"Retry-After": soon}, "absent": {},
               "huge": {"Retry-After": "99999999"}}[how]  # fmt: skip
    async with (
        shop_service(shop, database, tmp_path) as (_, client),
        asyncpg.create_pool(database, min_size=1, max_size=2) as sql,
    ):
        upload_id = await cut_out_once(client)
        shop.openai.faults.append(Fault(status=429, code="rate_limit_exceeded", headers=headers))
        job_id = await order(client, upload_id)
        await eventually(lambda: len(shop.paid_calls(shop.openai)) == 1)

        async def told() -> Any:
            job = await client.read_job(job_id)
            return job if job["attempt"] == 1 and job["error"] else job["state"] == "completed"

        await eventually(told)
        ping = await client.create_job("ping", {})
        assert "completed" == (await finish(client, ping["id"]))["state"]
        if how in ("seconds", "absent"):
            assert "completed" == (await finish(client, job_id, within_s=30))["state"]
            first, second = shop.paid_calls(shop.openai)
            assert second.started_s - first.ended_s >= (3 if how == "seconds" else 0)
        else:
            due_s = await sql.fetchval(
                "select extract(epoch from run_at - now())::float8 from listingd.job_states where id = $1::uuid",
                job_id,
            )
            assert (550 < due_s <= 610) if how == "date" else (3500 < due_s <= 3700)


async def test_the_line_of_a_picture_tells_what_it_took(daemon: Callable[..., Daemon], shop: Shop) -> None:
    """Who reads the log sees what an attempt cost without asking the ledger, also one that failed."""
    shop.openai.latency_s = 0.2
    one = await daemon("one", **shop.settings()).start()
    async with open_shop_client(one) as client:
        upload_id = await cut_out_once(client)
        shop.openai.faults.append(Fault(status=500, code="server_error"))
        job = await finish(client, await order(client, upload_id))

    failed, completed = [
        await one.wait_for(event, job_id=job["id"]) for event in ("job.retry_scheduled", "job.completed")
    ]
    assert failed["duration_s"] > failed["provider_s"] > 0
    assert "0" == failed["cost_usd"]
    assert "openai" == failed["error"]["provider"]  # an object that `jq` can look into
    assert completed["duration_s"] > completed["provider_s"] >= 0.2
    assert job["cost"]["actual_usd"] == completed["cost_usd"]
    assert completed["bytes"] > 0


async def test_the_line_of_a_job_tells_how_long_it_waited(daemon: Callable[..., Daemon]) -> None:
    """A slow answer is the queue's fault or the handler's: the log tells which."""
    one = await daemon("one", workers__concurrency=1).start()
    async with open_shop_client(one) as client:
        first = await client.create_job("ping", {"sleep_s": 0.6})
        second = await client.create_job("ping", {"fail_times": 1})
        assert "completed" == (await finish(client, second["id"]))["state"]

    lines = [
        await one.wait_for(event, job_id=job["id"])
        for event, job in (
            ("job.completed", first), ("job.retry_scheduled", second), ("job.completed", second)
        )
    ]  # fmt: skip
    born, waited, due = [line["wait_s"] for line in lines]
    assert 0 == born
    assert 0.2 < waited < 5
    assert 0 <= due < 0.5  # the wait until the repetition is the backoff's
