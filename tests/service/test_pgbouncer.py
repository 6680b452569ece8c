"""The daemon behind PgBouncer in transaction mode: found out at the start, nothing prepared, nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import pytest
from running import environment, finish, start

from tests.fleet import HEADERS, Daemon, Server, find_port
from tests.nursery import die_with_parent
from tests.support import eventually

MakeDaemon = Callable[..., Daemon]
PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")

CONFIG = """
[databases]
{database} = host=127.0.0.1 port={server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = {auth}
auth_file = {directory}/users
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 500
"""


@pytest.fixture
def pooled(
    server: Server, dsn: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., str]]:
    """`pooled(4)` gives the DSN of the test's database through a PgBouncer with so many server sessions.

    database: what it pools; auth: how it tells who comes, postgres by the password "right".
    """
    if PROGRAM is None:
        pytest.skip("pgbouncer is not installed")
    bouncers: list[subprocess.Popen[bytes]] = []

    def start(pool_size: int, *, database: str = "*", auth: str = "trust") -> str:
        directory = tmp_path_factory.mktemp("pgbouncer")
        for parent in (directory, *directory.parents[:2]):
            parent.chmod(parent.stat().st_mode | 0o055)
        port = find_port()
        (directory / "users").write_text('"postgres" "right"\n')
        config = directory / "pgbouncer.ini"
        config.write_text(
            CONFIG.format(
                server=server.port,
                port=port,
                directory=directory,
                pool_size=pool_size,
                database=database,
                auth=auth,
            )
        )
        user = {"user": pwd.getpwnam("nobody").pw_uid} if os.geteuid() == 0 else {}
        bouncers.append(
            subprocess.Popen(
                [str(PROGRAM), "-q", str(config)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                preexec_fn=die_with_parent(signal.SIGKILL), **user,  # noqa: PLW1509 -- prctl takes no locks
            )
        )  # fmt: skip
        return dsn.replace(f":{server.port}/", f":{port}/")

    yield start
    for bouncer in bouncers:
        bouncer.kill()
        bouncer.wait()


async def connect(dsn: str) -> asyncpg.Connection:
    async def try_it() -> asyncpg.Connection | None:
        try:
            return await asyncpg.connect(dsn, statement_cache_size=0)
        except OSError:
            return None

    return await eventually(try_it, 15)


async def wait_until_done(sql: asyncpg.Pool, within_s: float = 60) -> dict[str, int]:
    async def states() -> dict[str, int] | None:
        rows = await sql.fetch("select state, count(*) as n from listingd.job_states group by 1")
        found = {row["state"]: row["n"] for row in rows}
        return None if {"pending", "processing", "waiting"} & set(found) else found

    return await eventually(states, within_s)


async def test_320_lives_of_jobs_through_four_sessions(
    pooled: Callable[[int], str], daemon: MakeDaemon, sql: asyncpg.Pool, dsn: str
) -> None:
    """Creates by HTTP and SQL, failures, retries, cancels; LISTEN by a direct DSN."""
    through = pooled(4)
    watcher = await connect(through)
    one = await daemon("one", dsn=through, listen_database_url=dsn, retry__base_s=0.05).start()
    assert one.find("service.ready", pooled=True)
    await one.wait_for("listener.connected")

    async with aiohttp.ClientSession(one.url, headers=HEADERS) as http:

        async def create(n: int) -> str:
            body = {"kind": "ping", "input": {"echo": n, "fail_times": n % 3}}
            async with http.post("/v1/jobs", json=body) as answer:
                assert answer.status == 201, await answer.text()
                return str((await answer.json())["id"])

        await asyncio.gather(*(create(n) for n in range(160)))
        await watcher.fetch(
            "select listingd.enqueue_jobs((select jsonb_agg(jsonb_build_object('kind', 'ping', 'input',"
            " jsonb_build_object('echo', n, 'fail_times', n % 3))) from generate_series(1, 120) as n))"
        )
        long = [
            str(await watcher.fetchval("select listingd.enqueue_job('ping', '{\"sleep_s\": 60}')"))
            for _ in range(40)
        ]

        async def running() -> bool:
            return 40 == await sql.fetchval(
                "select count(*) from listingd.job_states where state = 'processing' and id = any($1::uuid[])",
                long,
            )

        await eventually(running, 60)
        for job in long:
            async with http.post(f"/v1/jobs/{job}/cancel") as answer:
                assert answer.status in {200, 202}
        states = await wait_until_done(sql)

    assert {"completed": 280, "cancelled": 40} == states
    await assert_nothing_is_left(watcher, sql)
    await watcher.close()


async def assert_nothing_is_left(watcher: asyncpg.Connection, sql: asyncpg.Pool) -> None:
    """What other clients of the pooler would find in the sessions they share with us."""
    kept = {
        json.dumps(dict(await watcher.fetchrow(LEFTOVERS)))  # type: ignore[arg-type]
        for _ in range(20)
    }
    assert kept == {
        json.dumps({"statement_timeout": "0", "seqscan": "on", "plans": "auto", "prepared": 0, "heard": 0})
    }
    assert 0 == await sql.fetchval(
        "select count(*) from pg_locks join pg_stat_activity using (pid)"
        " where locktype = 'advisory' and datname = current_database()"
    )


LEFTOVERS = """
select
    current_setting('statement_timeout') as statement_timeout,
    current_setting('enable_seqscan') as seqscan,
    current_setting('plan_cache_mode') as plans,
    (select count(*) from pg_prepared_statements where not from_sql)::int as prepared,
    (select count(*) from pg_listening_channels())::int as heard
"""


async def test_without_a_direct_dsn_jobs_start_by_polling_and_one_line_says_so(
    pooled: Callable[[int], str], daemon: MakeDaemon, sql: asyncpg.Pool
) -> None:
    """Also through a single server session, which one waiting transaction would block."""
    through = pooled(1)
    await (await connect(through)).close()
    one = await daemon("one", dsn=through, poll_s=0.5).start()

    job = await sql.fetchval("select listingd.enqueue_job('ping')")
    await wait_until_done(sql)

    assert "completed" == await sql.fetchval("select state from listingd.job_states where id = $1", job)
    (told,) = one.find("database.pooled")
    assert "LISTINGD_LISTEN_DATABASE_URL" in told["listen"]
    assert [] == one.find("listener.connected")


async def test_a_cancel_needs_no_notification_on_the_daemon_that_runs_the_job(
    pooled: Callable[[int], str], daemon: MakeDaemon, sql: asyncpg.Pool
) -> None:
    """Polling would take a minute here."""
    through = pooled(4)
    await (await connect(through)).close()
    one = await daemon("one", dsn=through, poll_s=60).start()
    async with aiohttp.ClientSession(one.url, headers=HEADERS) as http:
        async with http.post("/v1/jobs", json={"kind": "ping", "input": {"sleep_s": 60}}) as answer:
            job = (await answer.json())["id"]
        async with http.post(f"/v1/jobs/{job}/cancel") as answer:
            assert answer.status in {200, 202}
        await eventually(lambda: one.find("job.cancelled", job_id=job), 20)


@pytest.mark.parametrize(
    ("pooler", "change", "why"),
    [
        ({"database": "another"}, ("", ""), "no such database: ld_"),
        ({}, ("/ld_", "/gone_"), 'database "gone_.*" does not exist'),
        ({}, ("postgres@", "nobody@"), "authentication failed"),
        ({"auth": "md5"}, ("postgres@", "postgres:wrong@"), "password authentication failed"),
        ({"auth": "scram-sha-256"}, ("postgres@", "postgres:wrong@"), "authentication failed"),
    ],
    ids=["no database here", "none at the server", "no user", "md5", "scram"],
)
async def test_a_refusal_by_the_pooler_is_told_as_the_servers_own(
    pooled: Callable[..., str], tmp_path: Path, pooler: dict[str, str], change: tuple[str, str], why: str
) -> None:
    """Nothing heals it: systemd must not start the daemon for ever, nor anybody wait for 15 s."""
    through = pooled(4, **pooler).replace(*change)
    await eventually(lambda: is_open(through), 15)
    env = environment(LISTINGD_STATE_DIR=str(tmp_path / "state"), LISTINGD_DATABASE_URL=through)

    ended = await finish(await start("serve", env=env, cwd=tmp_path))

    said, hint = ended.err.splitlines()
    assert 2 == ended.code
    assert re.search(f"^error: The database refuses us: .*{why}", said)
    assert "LISTINGD_DATABASE_URL" in hint


def is_open(dsn: str) -> bool:
    parts = urlsplit(dsn)
    with socket.socket() as probe:
        return probe.connect_ex((parts.hostname, parts.port)) == 0
