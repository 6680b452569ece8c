"""Jobs a second: drained, enqueued, sustained; and the WAL that a job costs."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable

from bench import processes
from bench.bare import drain_bare, enqueue_bare
from bench.campaign import Campaign, Figures, count_finished, wait_finished
from bench.contestants import Contestant
from bench.processes import Meter, Producer, Worker

_PARK = """
select count(*) from listingd.enqueue_jobs((
    select jsonb_agg(jsonb_build_object('kind', '{kind}', 'user_id', 'other-' || i % 1000, 'run_at', {run_at}))
    from generate_series(1, {count}) as i
))
"""
TOMORROW = ("ping", "now() + interval '1 day'")
ELSEWHERE = ("done_elsewhere", "null")


async def drain_once(campaign: Campaign, contestant: Contestant, database: str, jobs: int) -> Figures:
    """Enqueue, settle, start a worker: from the first handler's start until nothing is unfinished."""
    server, dsn = campaign.server, campaign.server.dsn(database)
    before = await count_finished(server, database, contestant)
    await Producer(contestant, dsn, campaign.log, "bulk", jobs).run()
    await server.settle(database)
    profile = campaign.profile if contestant is campaign.listingd else None
    more = {"BENCH_PROFILE": profile} if profile else {}
    async with Worker(contestant, dsn, campaign.log, jobs=jobs, more=more) as worker:
        await worker.wait_first()
        meter = Meter(server.pid, worker.pid)
        await worker.wait_all(120)
        ended_ns = await wait_finished(server, database, contestant)
        cost = meter.stop()
        peak_mb = processes.memory_mb(worker.pid, "VmHWM")
    after = await count_finished(server, database, contestant)
    if before is not None and after is not None and after - before != jobs:
        raise RuntimeError(f"{after - before} jobs recorded as finished, not {jobs}")
    return {
        "jobs": jobs,
        "jobs_s": round(jobs / ((ended_ns - worker.first_ns) / 1e9)),
        "worker_us": round(cost.worker / jobs * 1e6, 1),
        "postgres_us": round(cost.postgres / jobs * 1e6, 1),
        "peak_mb": round(peak_mb, 1),
        "start_s": round((worker.first_ns - worker.spawned_ns) / 1e9, 3),
        "other_percent": cost.other_percent,
    }


async def drain(campaign: Campaign) -> None:
    """Every contestant on an empty table, and the bare loops beside them."""
    for number, contestants in campaign.each_round():
        for contestant in contestants:
            await _drain_fresh(campaign, "drain", "", contestant, number)
        await drain_bare(campaign, number)


async def _drain_fresh(
    campaign: Campaign, section: str, case: str, contestant: Contestant, number: int
) -> None:
    async def take() -> Figures:
        jobs = min(contestant.jobs or campaign.sizes.jobs, campaign.sizes.jobs)
        async with campaign.fresh(contestant) as database:
            return await drain_once(campaign, contestant, database, jobs)

    await campaign.measure(section, case, contestant.name, number, take)


async def full(campaign: Campaign) -> None:
    """The drain beside rows that have nothing to do with it, and beside none."""
    filled = await _fill(campaign)
    for number in campaign.numbers():
        for contestant in campaign.fast:
            if contestant.name not in filled:
                continue
            await _drain_fresh(campaign, "full", "empty", contestant, number)
            for case, database in filled[contestant.name].items():
                await campaign.measure(
                    "full", case, contestant.name, number,
                    functools.partial(drain_once, campaign, contestant, database, campaign.sizes.jobs),
                )  # fmt: skip


async def _fill(campaign: Campaign) -> dict[str, dict[str, str]]:
    """contestant -> case -> database that is full already. The peer that deletes finished jobs has none."""
    sizes = campaign.sizes
    finished = f"{sizes.finished:,} finished"
    full: dict[str, dict[str, str]] = {}

    async def fill(
        contestant: Contestant, case: str, database: str, work: Callable[[str], Awaitable[None]]
    ) -> None:
        async def take() -> Figures:
            began = time.monotonic()
            await campaign.server.create(database)
            await campaign.run_setup(contestant, database)
            await work(database)
            full.setdefault(contestant.name, {})[case] = database
            return {"seconds": round(time.monotonic() - began, 1)}

        await campaign.measure("fill", case, contestant.name, 0, take, within_s=600)

    for contestant in campaign.fast:
        if contestant.info["sql_seed"]:
            await fill(
                contestant, finished, f"full_{contestant.name}",
                functools.partial(seed_finished, campaign, contestant),
            )  # fmt: skip
    for case, (kind, run_at) in {"due tomorrow": TOMORROW, "to be run elsewhere": ELSEWHERE}.items():
        await fill(
            campaign.listingd, f"{sizes.pending:,} pending, {case}", f"pending_{kind}",
            functools.partial(park, campaign, kind, run_at),
        )  # fmt: skip
    return full


async def seed_finished(campaign: Campaign, contestant: Contestant, database: str) -> None:
    """Rows of finished jobs, cloned from some that the contestant finished itself."""
    own = 1000
    await drain_once(campaign, contestant, database, own)
    copies = str(max(1, campaign.sizes.finished // own - 1))
    statements = [sql.replace("$K", copies) for sql in contestant.info["sql_seed"]]
    await campaign.server.execute(database, "set session_replication_role = replica", *statements)


async def park(campaign: Campaign, kind: str, run_at: str, database: str) -> None:
    """Pending jobs of 1000 other users that this worker does not run now."""
    left = campaign.sizes.pending
    while left > 0:
        count = min(left, 5000)
        await campaign.server.execute(database, _PARK.format(kind=kind, run_at=run_at, count=count))
        left -= count


async def backlog(campaign: Campaign) -> None:
    """The rate with so many jobs waiting, all due: over the first three windows of a drain's size, or 20 s. As the
    peers have them, of nobody; and of 1 000 users, between whom only we are fair.
    """
    due = f"{campaign.sizes.pending:,} due"
    for number in campaign.numbers(at_most=2):
        contestants = [(contestant, due) for contestant in campaign.fast]
        for contestant, case in [
            *contestants, (campaign.make_listingd(users=1000), f"{due}, of 1,000 users")
        ]:  # fmt: skip

            async def take(c: Contestant = contestant) -> Figures:
                async with campaign.fresh(c) as database:
                    return await _drain_backlog(campaign, c, database)

            await campaign.measure("backlog", case, contestant.name, number, take)


async def _drain_backlog(campaign: Campaign, contestant: Contestant, database: str) -> Figures:
    dsn = campaign.server.dsn(database)
    enqueued = await Producer(contestant, dsn, campaign.log, "bulk", campaign.sizes.pending).result()
    await campaign.server.settle(database)
    wanted = min(3 * campaign.sizes.jobs, campaign.sizes.pending - 100)
    async with Worker(contestant, dsn, campaign.log) as worker:
        await worker.wait_first()
        meter = Meter(campaign.server.pid, worker.pid)
        end = time.monotonic() + 20
        while time.monotonic() < end and worker.count < wanted:  # noqa: ASYNC110 -- its lines come by themselves
            await asyncio.sleep(0.005)
        cost = meter.stop()
        at_ns, count = worker.marks[-1]
    return {
        "jobs_s": round((count - 1) / ((at_ns - worker.first_ns) / 1e9)),
        "worker_us": round(cost.worker / count * 1e6, 1),
        "postgres_us": round(cost.postgres / count * 1e6, 1),
        "enqueue_s": round(enqueued["secs"], 1),
        "start_s": round((worker.first_ns - worker.spawned_ns) / 1e9, 3),
    }


async def enqueue(campaign: Campaign) -> None:
    """One call after the other on one connection; and many jobs a call."""
    for number, contestants in campaign.each_round():
        for contestant in contestants:

            async def take_single(c: Contestant = contestant) -> Figures:
                async with campaign.fresh(c) as database:
                    await campaign.server.settle(database)
                    seconds = campaign.sizes.enqueue_s
                    said = await Producer(
                        c, campaign.server.dsn(database), campaign.log, "single", seconds
                    ).result()
                return {
                    "jobs_s": round(said["n"] / said["secs"]), "p50": round(said["p50"], 3), "p99": round(said["p99"], 3)
                }  # fmt: skip

            async def take_bulk(c: Contestant = contestant) -> Figures:
                jobs = min(c.jobs or campaign.sizes.bulk, campaign.sizes.bulk)
                async with campaign.fresh(c) as database:
                    await campaign.server.settle(database)
                    said = await Producer(
                        c, campaign.server.dsn(database), campaign.log, "bulk", jobs
                    ).result()
                return {"jobs_s": round(said["n"] / said["secs"]), "jobs_a_call": c.info["bulk_chunk"]}

            await campaign.measure("enqueue", "one by one", contestant.name, number, take_single)
            await campaign.measure("enqueue", "in bulk", contestant.name, number, take_bulk)
        if number == 0:
            await enqueue_bare(campaign, number)


async def sustained(campaign: Campaign) -> None:
    """A producer (100 jobs a call, at most 2000 outstanding) and the worker together; the first fifth is left out."""
    for number in campaign.numbers(at_most=2):
        for contestant in campaign.fast:

            async def take(c: Contestant = contestant) -> Figures:
                async with campaign.fresh(c) as database:
                    # Else the first one waits for the disk to write what was measured before.
                    await campaign.server.settle(database)
                    return await _sustain(campaign, c, database)

            await campaign.measure("sustained", "", contestant.name, number, take)


async def _sustain(campaign: Campaign, contestant: Contestant, database: str) -> Figures:
    dsn, seconds = campaign.server.dsn(database), campaign.sizes.sustained_s
    async with Worker(contestant, dsn, campaign.log) as worker:
        producer = await asyncio.create_subprocess_exec(
            *contestant.command, "feed", env=contestant.environment | {"BENCH_DSN": dsn},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=campaign.log,
        )  # fmt: skip
        assert producer.stdin is not None
        assert producer.stdout is not None
        open_calls, fed = 0, 0

        async def read() -> None:
            nonlocal open_calls
            assert producer.stdout is not None
            async for line in producer.stdout:
                open_calls -= line.startswith(b"@@D")

        try:
            async with asyncio.timeout(processes.START_S):
                while not (await producer.stdout.readline()).startswith(b"@@Y"):
                    continue
            reading = asyncio.create_task(read(), name="producer-lines")
            open_calls, fed = 1, 100
            producer.stdin.write(b"100\n")
            await worker.wait_first()
            began, meter, mark = time.monotonic(), None, (0.0, 0)
            while (now := time.monotonic()) < began + seconds:
                if open_calls < 2 and fed - worker.count < 2000:  # two calls queued: it never waits for us
                    open_calls += 1
                    fed += 100
                    producer.stdin.write(b"100\n")
                if meter is None and now >= began + seconds / 5:
                    meter, mark = Meter(campaign.server.pid, worker.pid), (now, worker.count)
                await asyncio.sleep(0.001)  # a pace, not a wait
            assert meter is not None
            cost, done, took = meter.stop(), worker.count - mark[1], time.monotonic() - mark[0]
            producer.stdin.close()
            await producer.wait()
            await reading
        finally:
            if producer.returncode is None:
                producer.kill()
                await producer.wait()
    done = max(done, 1)
    return {
        "jobs_s": round(done / took),
        "worker_us": round(cost.worker / done * 1e6, 1),
        "postgres_us": round(cost.postgres / done * 1e6, 1),
    }


async def wal(campaign: Campaign) -> None:
    """Bytes of WAL from enqueue to recorded end, after a first drain has touched the pages since the checkpoint."""
    jobs = campaign.sizes.jobs
    for contestant in campaign.fast:

        async def take(c: Contestant = contestant) -> Figures:
            async with campaign.fresh(c) as database:
                dsn = campaign.server.dsn(database)
                await campaign.server.settle(database)
                positions = []
                for _ in range(3):
                    positions.append(
                        await campaign.server.fetch_value(database, "select pg_current_wal_lsn() - '0/0'")
                    )
                    await Producer(c, dsn, campaign.log, "bulk", jobs).run()
                    async with Worker(c, dsn, campaign.log, jobs=jobs) as worker:
                        await worker.wait_all(120)
                        await wait_finished(campaign.server, database, c)
                last = await campaign.server.fetch_value(database, "select pg_current_wal_lsn() - '0/0'")
            return {
                "bytes": round(float(last - positions[1]) / 2 / jobs),
                "after_checkpoint_bytes": round(float(positions[1] - positions[0]) / jobs),
            }

        await campaign.measure("wal", "", contestant.name, 0, take)
