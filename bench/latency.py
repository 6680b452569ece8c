"""How soon a job starts: picked up, with a snapshot held, from a cold start; and what an idle worker costs."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable

import asyncpg

from bench import processes
from bench.campaign import Campaign, Figures, find_percentiles
from bench.contestants import Contestant
from bench.processes import Meter, Producer, Worker
from bench.throughput import ELSEWHERE, TOMORROW, park, seed_finished

PACE_MS = 15
SLOW_PACE_MS = 30
HELD_RATE = 200  # jobs a second


async def pickup(campaign: Campaign) -> None:
    """An idle worker, single jobs 15 ms apart (30 for the slow peers) from another process, until each one's handler starts.

    p50 … from the answer of the enqueue call (its commit), call_p50 … from the call itself.
    """
    sizes, make = campaign.sizes, campaign.make_listingd
    by_http = make(enqueue="http")

    async def pend(database: str) -> None:
        await park(campaign, *TOMORROW, database)
        await park(campaign, *ELSEWHERE, database)

    async def finish(database: str) -> None:
        await seed_finished(campaign, campaign.listingd, database)

    fills = {
        f"{sizes.pending:,} pending due tomorrow and as many to be run elsewhere": ("pending", pend),
        f"{sizes.finished:,} finished": ("finished", finish),
    }
    filled: dict[str, str] = {}
    for case, (name, fill) in fills.items():
        database = f"pickup_{name}"

        async def take(
            d: str = database, f: Callable[[str], Awaitable[None]] = fill, c: str = case
        ) -> Figures:
            began = time.monotonic()
            await campaign.server.create(d)
            await campaign.run_setup(campaign.listingd, d)
            await f(d)
            await campaign.server.settle(d)
            filled[c] = d
            return {"seconds": round(time.monotonic() - began, 1)}

        await campaign.measure("fill", case, campaign.listingd.name, 0, take, within_s=300)
    for number in campaign.numbers(at_most=2):
        for contestant, case in [
            (campaign.listingd, "by SQL"), (by_http, "by HTTP"), *((peer, "") for peer in campaign.fast[1:]),
            *((peer, "") for peer in campaign.slow if number == 0),
        ]:  # fmt: skip
            slow = contestant in campaign.slow
            samples, pace_ms = (sizes.samples // 2, SLOW_PACE_MS) if slow else (sizes.samples, PACE_MS)

            async def take_fresh(
                c: Contestant = contestant, n: int = samples, ms: float = pace_ms
            ) -> Figures:
                async with campaign.fresh(c) as database:
                    return await measure_pickup(campaign, c, database, n, ms)

            await campaign.measure("pickup", case, contestant.name, number, take_fresh)
        for case, database in filled.items():
            for contestant, door in ((campaign.listingd, "SQL"), (by_http, "HTTP")):
                await campaign.measure(
                    "pickup", f"by {door}, {case}", contestant.name, number,
                    functools.partial(measure_pickup, campaign, contestant, database, sizes.samples, PACE_MS),
                )  # fmt: skip


async def measure_pickup(
    campaign: Campaign, contestant: Contestant, database: str, samples: int, pace_ms: float,
    *, last: int | None = None, besides: int = 0,
) -> Figures:  # fmt: skip
    """Percentiles in milliseconds; of the last so many samples when said. besides: connections of others."""
    dsn = campaign.server.dsn(database)
    async with Worker(contestant, dsn, campaign.log, more={"BENCH_TRACE": "1"}) as worker:
        await campaign.wait_connected(worker, database, besides)
        await asyncio.sleep(1)  # an idle worker: what a start leaves to do is done
        meter = Meter(campaign.server.pid, worker.pid)
        lines = await Producer(contestant, dsn, campaign.log, "paced", samples, pace_ms).run(
            samples * pace_ms / 500 + 60
        )
        asked = [(int(i), int(called), int(answered)) for i, called, answered in lines[b"P"]][
            -(last or samples) :
        ]
        end = time.monotonic() + 20
        while time.monotonic() < end and any(i not in worker.starts for i, _, _ in asked):  # noqa: ASYNC110 -- its lines come by themselves
            await asyncio.sleep(0.05)
        cost = meter.stop()
        missing = sum(i not in worker.starts for i, _, _ in asked)
        if missing:
            raise RuntimeError(f"{missing} of {len(asked)} jobs did not start")
        claims_ms = worker.claims_ms[-(last or samples) :]
    from_answer = [(worker.starts[i] - answered) / 1e6 for i, _, answered in asked]
    from_call = [(worker.starts[i] - called) / 1e6 for i, called, _ in asked]
    claims = find_percentiles(claims_ms, prefix="claim_") if claims_ms else {}
    return {
        **find_percentiles(from_answer), **find_percentiles(from_call, prefix="call_"), **claims,
        "other_percent": cost.other_percent,
    }  # fmt: skip


async def held(campaign: Campaign) -> None:
    """200 jobs a second while a snapshot is held, so that no dead row goes away; and without, for as long at most
    as ten seconds. The last quarter counts. claim_p99: the statement that claims (and finishes), as the daemon sees it.
    """
    seconds = campaign.sizes.held_s
    for case, length, hold in (
        ("no snapshot held", min(10.0, seconds), False),
        (f"held for {seconds:g} s", seconds, True),
    ):

        async def take(length: float = length, hold: bool = hold) -> Figures:
            samples = int(length * HELD_RATE)
            async with campaign.fresh(campaign.listingd) as database:
                holder = await asyncpg.connect(campaign.server.dsn(database))
                try:
                    if hold:
                        await holder.execute("begin isolation level repeatable read")
                        await holder.fetchval("select count(*) from listingd.job_states")
                    figures = await measure_pickup(
                        campaign,
                        campaign.listingd,
                        database,
                        samples,
                        1000 / HELD_RATE,
                        last=samples // 4,
                        besides=1,
                    )
                    dead = await campaign.server.fetch_value(
                        database, "select n_dead_tup from pg_stat_user_tables where relname = 'job_states'"
                    )
                    return figures | {"dead_rows": dead}
                finally:
                    await holder.close()

        await campaign.measure("held", case, campaign.listingd.name, 0, take, within_s=2 * length + 120)


async def cold(campaign: Campaign) -> None:
    """From the start of the process until its first job starts, one job waiting; the second start and later ones."""
    for number, contestants in campaign.each_round():
        for contestant in contestants:

            async def take(c: Contestant = contestant) -> Figures:
                async with campaign.fresh(c) as database:
                    dsn = campaign.server.dsn(database)
                    await Producer(c, dsn, campaign.log, "bulk", 1).run()
                    await campaign.server.settle(database)
                    meter = Meter(campaign.server.pid)
                    async with Worker(c, dsn, campaign.log) as worker:
                        await worker.wait_first()
                        used_s = processes.cpu_s(worker.pid)
                        other = meter.stop()
                return {
                    "seconds": round((worker.first_ns - worker.spawned_ns) / 1e9, 3), "cpu_s": round(used_s, 2),
                    "wall": round(other.wall, 3),
                }  # fmt: skip

            await campaign.measure("cold", "", contestant.name, number, take)


async def idle(campaign: Campaign) -> None:
    """Memory, CPU, transactions and connections of a worker that has run a few jobs and has nothing to do."""
    for contestant in campaign.fast + campaign.slow:

        async def take(c: Contestant = contestant) -> Figures:
            async with campaign.fresh(c) as database:
                return await _measure_idle(campaign, c, database)

        await campaign.measure("idle", "", contestant.name, 0, take)


async def _measure_idle(campaign: Campaign, contestant: Contestant, database: str) -> Figures:
    server, dsn = campaign.server, campaign.server.dsn(database)
    transactions = "select xact_commit + xact_rollback from pg_stat_database where datname = $1"
    async with Worker(contestant, dsn, campaign.log) as worker:
        await Producer(contestant, dsn, campaign.log, "paced", 5, 20).run()
        await worker.wait_first()
        await asyncio.sleep(1.5)
        before = await server.fetch_value(database, transactions, database)
        meter = Meter(server.pid, worker.pid)
        await asyncio.sleep(campaign.sizes.idle_s)
        cost = meter.stop()
        after = await server.fetch_value(database, transactions, database)
        connections = await server.fetch_value(
            database,
            "select count(*) from pg_stat_activity where datname = $1 and pid <> pg_backend_pid()",
            database,
        )
        return {
            "rss_mb": round(processes.memory_mb(worker.pid, "VmRSS"), 1),
            "worker_percent": round(100 * cost.worker / cost.wall, 2),
            "postgres_percent": round(100 * cost.postgres / cost.wall, 2),
            "transactions_s": round((after - before) / cost.wall, 1),
            "connections": connections,
        }
