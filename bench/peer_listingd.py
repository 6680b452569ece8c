# venv=listingd
"""listingd as one more contestant of the shared queue benchmark: the whole daemon, HTTP listener on, with the
handler of kind `ping` wrapped so that it calls hit(i) at its start. `python -m bench` runs it where it lies; for the shared
driver copy it to peers/listingd.py. LISTINGD_BENCH_ROOT names this checkout."""

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from typing import Any, ClassVar

sys.path.insert(0, os.environ["LISTINGD_BENCH_ROOT"])
from benchlib import DSN, Peer, emit, main, opt

PORT = opt("port", 8787)
KEY = "bench-" + "k" * 40
WORKERS = opt("workers", 2000)
HOW = opt("enqueue", "sql")  # --opt '{"enqueue":"http"}' measures the HTTP door
USERS = opt("users", 1)
TRACE = os.environ.get("BENCH_TRACE") == "1"


def make_settings(**kw: Any) -> Any:
    from daemon.settings import Settings

    return Settings(
        database_url=DSN, state_dir=tempfile.mkdtemp(prefix="ld-bench-"), service_key=KEY,
        http={"port": PORT}, workers={"concurrency": WORKERS}, log={"level": "warning"},
        limits={"requests_per_minute": 1_000_000}, instance=f"bench-{os.getpid()}", **kw,
    )  # fmt: skip


def tell_claims(queue: Any) -> None:
    """Tell the driver how long each statement took that claimed something: `@@S nanoseconds`."""

    def time_claims(statement: Any) -> Any:
        async def timed(*arguments: Any, **more: Any) -> Any:
            began = time.monotonic_ns()
            done = await statement(*arguments, **more)
            if done.claimed:
                emit("S", time.monotonic_ns() - began)
            return done

        return timed

    queue.flush, queue.claim_fresh = time_claims(queue.flush), time_claims(queue.claim_fresh)


class Listingd(Peer):  # type: ignore[misc]
    name = "listingd"
    dists = ("asyncpg", "aiohttp", "uvloop")
    settings: ClassVar = {"enqueue": HOW, "workers": WORKERS, "loop": "uvloop", "log": "warning"}
    bulk_chunk = opt("chunk", 5000 if HOW == "sql" else 1000)
    # Asked while others' clocks run too, so it reads little: jobs run in the order of their fences, WORKERS at once, and
    # the driver counts all of them afterwards.
    sql_unfinished = (
        "select exists(select from listingd.job_states s where s.state in ('pending', 'processing', 'waiting')"
        " and s.kind = 'ping' and s.run_at is null and s.fence > (select f.last_value - 5000 from listingd.fences f)"
        " and s.fence <= (select f.last_value from listingd.fences f))"
    )
    sql_finished = "select count(*) from listingd.job_states where state = 'completed'"
    sql_seed = (
        (
            "create temp table seed as select s.id as old, listingd.new_id() as id from listingd.job_states s"
            " cross join generate_series(1, $K) where s.state = 'completed'"
        ),
        (
            "insert into listingd.jobs (id, user_id, kind, created_at, input)"
            " select t.id, j.user_id, j.kind, j.created_at, j.input from seed t join listingd.jobs j on j.id = t.old"
        ),
        # Stored pending and ended in place, as in life: rows that are stored at their last size leave gaps just wide
        # enough for one new row, and the drain's rows would lie in as many pages as there are rows.
        (
            "insert into listingd.job_states (id, kind, user_id)"
            " select t.id, s.kind, s.user_id from seed t join listingd.job_states s on s.id = t.old"
        ),
        (
            "update listingd.job_states as own set state = s.state, version = s.version, attempt = s.attempt,"
            " started_at = s.started_at, finished_at = s.finished_at, result = s.result"
            " from seed t join listingd.job_states s on s.id = t.old where own.id = t.id"
        ),
        # a daemon that has run for so long has raised its mark
        "update listingd.queue_mark set fence = (select f.last_value from listingd.fences f)",
        "drop table seed",
    )

    async def setup(self) -> None:
        from daemon.migrate import migrate

        await migrate(DSN)

    async def open(self) -> None:
        self.api = None
        if HOW == "sql":
            import asyncpg

            self.connection = await asyncpg.connect(DSN)
            return
        from bench.http_api import Client

        if not await self.is_up():
            self.api = await asyncio.create_subprocess_exec(
                sys.executable, __file__, "worker", env=os.environ
            )
        while not await self.is_up():  # noqa: ASYNC110 -- another process's state: there is nothing to wait on
            await asyncio.sleep(0.05)
        self.client = await Client(f"http://127.0.0.1:{PORT}", KEY).open()

    async def is_up(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", PORT)
        except OSError:
            return False
        writer.close()
        return True

    async def close(self) -> None:
        if HOW == "sql":
            await self.connection.close()
            return
        self.client.writer.close()
        if self.api is not None:
            self.api.terminate()
            await self.api.wait()

    async def one(self, i: int) -> None:
        if HOW == "sql":
            await self.connection.fetchval(
                "select listingd.enqueue_job($1, $2::jsonb)", "ping", json.dumps({"echo": i})
            )
            return
        await self.client.call("POST", "/v1/jobs", {"kind": "ping", "input": {"echo": i}})

    async def many(self, ids: Any) -> None:
        jobs: list[dict[str, Any]] = [{"kind": "ping", "input": {"echo": i}} for i in ids]
        if USERS > 1:
            for i, job in zip(ids, jobs, strict=True):
                job["user_id"] = f"user-{i % USERS}"
        if HOW == "sql":
            await self.connection.fetch("select listingd.enqueue_jobs($1::jsonb)", json.dumps(jobs))
            return
        await self.client.call("POST", "/v1/jobs/batch", {"jobs": jobs})

    async def work(self, hit: Any) -> None:
        from daemon import handlers, logs, service
        from daemon.handlers.context import JobContext

        answer_ping = handlers.HANDLERS["ping"]

        async def counted(ctx: JobContext) -> Any:
            hit(ctx.input.echo)  # type: ignore[attr-defined]
            return await answer_ping(ctx)

        handlers.HANDLERS["ping"] = counted
        settings = make_settings()
        writer = logs.configure(settings)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        async with service.run_service(settings) as running:
            service.calm_collector()  # as `listingd serve` does
            if TRACE:
                tell_claims(running.queue)
            await stop.wait()
        writer.close()


main(Listingd)
