"""Randomized faults over several daemons with jobs flowing: python -m bench.faults [--faults 200] [--seed 1] [--daemons 3]

A Postgres of its own with real commits; daemons with short leases, each behind a TCP proxy of its own; jobs that fail,
crash, fan out, get cancelled and retried. Every fault is drawn from its own seed (SEED/number), so that a run can be
told again. At the end all daemons stop by SIGTERM, and bench/fault_checks.py reads the database's own journal of
every change and the journal of the server that the jobs called.

    kill           kill -9 of a daemon, started again a moment later
    freeze         SIGSTOP for up to twice the lease, then SIGCONT
    stop           SIGTERM, then started again
    sessions       every session of every daemon terminated
    crash          immediate stop of Postgres, started again after up to four seconds
    cut            all connections of a daemon closed
    swallow        all connections of a daemon stay open, nothing passes for up to four seconds
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg

from bench.fault_checks import check, watch_changes
from tests.fleet import Daemon, Proxy, Server

LEASE_S = 2.0
FAULTS = {"kill": 5, "freeze": 4, "stop": 3, "sessions": 3, "crash": 2, "cut": 3, "swallow": 2}
QUIET_S = 120.0
"""The longest wait for the last job once no more faults are made."""


class Journal:
    """The server that jobs call. One entry a call: (job, attempt, pid); it answers after a while."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self.answered = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled with the loop: the streams of Python 3.11 would call that an error of theirs.
        with suppress(OSError, ValueError, asyncio.CancelledError):
            job, attempt, pid = (await reader.readline()).decode().split()
            self.calls.append((job, int(attempt), int(pid)))
            await asyncio.sleep(UUID(job).int % 700 / 1000)
            writer.write(b"ok\n")
            await writer.drain()
            self.answered += 1
        writer.close()


class Trial:
    """One run of the whole thing."""

    def __init__(self, directory: Path, *, seed: str, faults: int, daemons: int) -> None:
        self.seed, self.faults = seed, faults
        self.server = Server(directory / "server")
        self.journal = Journal()
        self._names = [f"d{n}" for n in range(daemons)]
        self._directory = directory
        self.daemons: list[tuple[Daemon, Proxy]] = []
        self.made: set[UUID] = set()
        self.retried = 0
        self.cancelled = 0
        self.done: Counter[str] = Counter()
        self._flowing = True

    async def run(self) -> dict[str, Any]:
        """What was done and what was found; "violations" must be empty."""
        await asyncio.to_thread(self.server.create)
        self.server.start()
        self.dsn = await asyncio.to_thread(self.server.create_database, "faults")
        await watch_changes(self.dsn)
        journal = await asyncio.start_server(self.journal.serve, "127.0.0.1", 0)
        host, port = journal.sockets[0].getsockname()
        try:
            for name in self._names:
                proxy = await Proxy(self.server.port).__aenter__()
                dsn = self.dsn.replace(f":{self.server.port}/", f":{proxy.port}/")
                daemon = Daemon(
                    self._directory / name, dsn, name=name, kinds="tests.fault_kinds", lease_s=LEASE_S,
                    heartbeat_s=0.4, poll_s=0.5, workers__concurrency=24, workers__soft_stop_s=0.3,
                    workers__hard_stop_s=1, log__level="info", retry__base_s=0.2, queue__max_rescues=3,
                    database__connect_timeout_s=2, database__statement_timeout_s=5, journal=f"{host}:{port}",
                )  # fmt: skip
                self.daemons.append((daemon, proxy))
                daemon.launch()
            for daemon, _ in self.daemons:
                await daemon.wait_for("service.ready", 120)
            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                flow = [group.create_task(task) for task in (self._create(), self._meddle())]
                await self._make_faults()
                self._flowing = False
                await asyncio.wait(flow)
            took_s = time.monotonic() - began
            unfinished = await self._settle()
            codes = await self._stop_all()
        finally:
            for daemon, proxy in self.daemons:
                daemon.kill()
                await proxy.__aexit__()
            journal.close()
        found = await check(self.dsn, self.made, self.journal.calls, max_rescues=3)
        self.server.stop()
        found["violations"] += [f"{n} jobs have not ended" for n in [unfinished] if n]
        found["violations"] += [f"{name} ended with {code}" for name, code in codes.items() if code != 0]
        return {
            "seed": self.seed, "faults": dict(self.done), "took_s": round(took_s, 1), "created": len(self.made),
            "cancels": self.cancelled, "retries": self.retried, "answered": self.journal.answered, **found,
        }  # fmt: skip

    # -- jobs -------------------------------------------------------------------------------------------

    async def _create(self) -> None:
        """Jobs flow all the time, written by SQL; only what was certainly committed counts as made."""
        while self._flowing:
            try:
                connection = await asyncpg.connect(self.dsn, timeout=2)
                try:
                    while self._flowing:
                        kind = "family" if random.random() < 0.15 else "member"
                        rows = await connection.fetch(
                            "select listingd.enqueue_job($1, '{}', 'u' || n, max_attempts => 4)"
                            " from generate_series(1, 3) as n", kind, timeout=5,
                        )  # fmt: skip
                        self.made.update(row[0] for row in rows)
                        await asyncio.sleep(0.06)
                finally:
                    connection.terminate()
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(0.1)

    async def _meddle(self) -> None:
        """Users cancel what runs and retry what ended."""
        while self._flowing:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection = await asyncpg.connect(self.dsn, timeout=2)
                try:
                    rows = await connection.fetch(
                        "select listingd.cancel_job(id) from (select id from listingd.job_states"
                        " where state in ('pending', 'processing', 'waiting') order by random() limit 2) as s"
                    )
                    self.cancelled += len(rows)
                    rows = await connection.fetch(
                        "select listingd.retry_job(id) from (select id from listingd.job_states"
                        " where state in ('failed', 'cancelled') order by random() limit 1) as s"
                    )
                    self.retried += len(rows)
                finally:
                    connection.terminate()
            await asyncio.sleep(0.5)

    # -- faults ---------------------------------------------------------------------------------------

    async def _make_faults(self) -> None:
        for number in range(self.faults):
            chance = random.Random(f"{self.seed}/{number}")
            kind = chance.choices(list(FAULTS), list(FAULTS.values()))[0]
            daemon, proxy = chance.choice(self.daemons)
            await asyncio.sleep(chance.uniform(0.1, 0.9))
            await self._make(kind, daemon, proxy, chance)
            self.done[kind] += 1
            if (number + 1) % 20 == 0:
                print(f"{number + 1} faults, {len(self.made)} jobs created, {dict(self.done)}", flush=True)

    async def _make(self, kind: str, daemon: Daemon, proxy: Proxy, chance: random.Random) -> None:
        match kind:
            case "kill":
                daemon.kill()
                await asyncio.sleep(chance.choice([0, 0.3, 1.5 * LEASE_S]))
                daemon.launch()
            case "freeze":
                daemon.send(signal.SIGSTOP)
                await asyncio.sleep(chance.uniform(0.2, 2 * LEASE_S))
                daemon.send(signal.SIGCONT)
            case "stop":
                daemon.send(signal.SIGTERM)
                await self._end(daemon, 10)
                daemon.launch()
            case "sessions":
                connection = await asyncpg.connect(self.dsn)
                await connection.fetch(
                    "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'listingd%'"
                )
                await connection.close()
            case "crash":
                self.server.stop(signal.SIGQUIT)
                await asyncio.sleep(chance.uniform(0, 2 * LEASE_S))
                self.server.start()
            case "cut":
                proxy.cut()
            case "swallow":
                proxy.swallowing = True
                await asyncio.sleep(chance.uniform(0.2, 2 * LEASE_S))
                proxy.swallowing = False
                proxy.cut()
        self._restart_ended()

    def _restart_ended(self) -> None:
        """A daemon that gave up by itself is started by whoever watches it, as systemd does."""
        for daemon, _ in self.daemons:
            if daemon.has_ended():
                self.done[f"{daemon.name} had ended by itself"] += 1
                daemon.launch()

    async def _end(self, daemon: Daemon, within_s: float) -> None:
        try:
            await daemon.wait(within_s)
        except AssertionError:
            self.done["stops that were cut"] += 1
            daemon.kill()

    async def _settle(self) -> int:
        """Wait until every job has ended; the number of those that have not."""
        connection = await asyncpg.connect(self.dsn)
        until = time.monotonic() + QUIET_S
        try:
            while left := await connection.fetchval(
                "select count(*) from listingd.job_states where state in ('pending', 'processing', 'waiting')"
            ):
                if time.monotonic() > until:
                    return int(left)
                self._restart_ended()
                await asyncio.sleep(0.2)
            return 0
        finally:
            await connection.close()

    async def _stop_all(self) -> dict[str, int]:
        for daemon, _ in self.daemons:
            await daemon.wait_for("service.ready", 60)
            daemon.send(signal.SIGTERM)
        return {daemon.name: await daemon.wait(30) for daemon, _ in self.daemons}


def run_trial(*, seed: str, faults: int, daemons: int, keep: bool = False) -> dict[str, Any]:
    """One trial in a directory of its own, kept with its logs when asked to. Figures and "violations"."""
    directory = Path(tempfile.mkdtemp(prefix="ld-faults-"))
    directory.chmod(0o755)  # Postgres runs as a user of its own
    try:
        return asyncio.run(Trial(directory, seed=seed, faults=faults, daemons=daemons).run())
    finally:
        if keep:
            print(f"kept: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--faults", type=int, default=200)
    options.add_argument("--seed", default="1")
    options.add_argument("--daemons", type=int, default=3)
    options.add_argument("--keep", action="store_true", help="keep the directory with databases and logs")
    arguments = options.parse_args()
    found = run_trial(**vars(arguments))
    print(json.dumps(found, indent=2))
    print(f"seeds: {arguments.seed}/0 to {arguments.seed}/{arguments.faults - 1}")
    raise SystemExit(1 if found["violations"] else 0)


if __name__ == "__main__":
    main()
