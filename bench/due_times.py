"""How late a job with a run_at starts: python -m bench.due_times [--jobs 500]

One daemon with an idle pool, Postgres with default durability. The jobs are enqueued by SQL with random due
times, four fifths within 10 s, and one fifth beyond the 30 s for which times are held in memory. Late is the
database's time of the claim minus run_at; it is never negative.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

import asyncpg

from tests.fleet import Daemon, Server
from tests.support import eventually

ENQUEUE = (
    "select listingd.enqueue_job('ping', user_id => 'u' || n % 7, run_at => now() + make_interval(secs => "
    "case when n % 5 = 0 then 31 + 10 * random() else 1 + 10 * random() end)) from generate_series(1, $1::int) as n"
)
LATE = (
    "select min(ms) as least, percentile_cont(array[0.5, 0.99]) within group (order by ms) as parts, max(ms) as most, "
    "count(*) as jobs from (select extract(epoch from s.started_at - j.run_at)::float8 * 1000 as ms "
    "from listingd.jobs as j join listingd.job_states as s on s.id = j.id where s.state = 'completed') as l"
)
LEFT = "select count(*) from listingd.job_states where state <> 'completed'"


async def has_ended(connection: asyncpg.Connection) -> bool:
    return bool(await connection.fetchval(LEFT) == 0)


async def run(directory: Path, jobs: int) -> None:
    server = Server(directory / "server", fsync="on", full_page_writes="on").create().start()
    dsn = await asyncio.to_thread(server.create_database, "due")
    daemon = Daemon(directory / "daemon", dsn, name="due", poll_s=5)
    try:
        await daemon.start()
        connection = await asyncpg.connect(dsn)
        await connection.fetch(ENQUEUE, jobs)
        await eventually(lambda: has_ended(connection), within_s=120)
        row = await connection.fetchrow(LATE)
        await connection.close()
        p50, p99 = row["parts"]
        print(
            f"{row['jobs']} jobs late by: least {row['least']:.2f} ms, p50 {p50:.2f}, p99 {p99:.2f}, most {row['most']:.2f}"
        )
    finally:
        daemon.kill()
        server.stop()


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--jobs", type=int, default=500)
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="ld-due-") as directory:
        Path(directory).chmod(0o755)  # Postgres runs as a user of its own
        asyncio.run(run(Path(directory), arguments.jobs))


if __name__ == "__main__":
    main()
