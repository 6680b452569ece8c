"""Packs and A+ documents bought from protocol servers by a real daemon: how long, how many calls, and whether a
kill -9 at any moment ever pays for anything twice.

    python -m bench.packs --slow-s 8              a pack, then an A+ job, each picture takes 8 s
    python -m bench.packs --kills 200 --seed 1    a pack each time, the daemon killed in its middle

Everything runs on this machine in a temporary directory. Prints one JSON line a measurement; exits with 1
when a kill repeated a call that had its checkpoint, wasted more than was in flight, or the books differ.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg

from bench.processes import cpu_s
from tests.fleet import Daemon, Server, find_port
from tests.shop import PACK_CALLS, PRODUCT, Shop, finish, key_of, open_shop_client, order_pack, upload
from tests.support import eventually
from tests.work.products import photo

MOMENTS = ("arrived", "answered", "later")
LATER_S = 0.8
"""A kill "later" comes up to so many seconds after the answer: while it is stored, drawn on, saved."""


class ForkedDaemon(Daemon):
    """A daemon forked from a process that has all modules loaded: a restart in a tenth of the time.

    It is killed like any other; only the imports before its first line are not repeated.
    """

    _modules = ("daemon.cli", "daemon.service", "daemon.providers.openai_images", "openai", "cv2", "uvloop")

    def launch(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(self._modules))
        self._offset = self._log.stat().st_size
        process = context.Process(
            target=_serve, args=(self.env, str(self.directory), str(self._log)), daemon=True
        )
        process.start()
        self.process = _Forked(process)  # type: ignore[assignment]


@dataclass(frozen=True)
class _Forked:
    """What fleet.Daemon asks of a subprocess."""

    process: Any

    def poll(self) -> int | None:
        code: int | None = self.process.exitcode
        return code

    def kill(self) -> None:
        self.process.kill()

    def wait(self) -> None:
        self.process.join()


def _serve(env: dict[str, str], directory: str, log: str) -> None:
    """The life of a forked daemon."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(directory)
    with Path(log).open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from daemon.cli import commands

    commands(["serve"])


@dataclass
class Round:
    """One pack with one kill. before: steps with a checkpoint when it died; in_flight: paid calls open then;
    repeated: calls of the next life that such a checkpoint had made needless; wasted: calls beyond the four that
    a pack needs; books: providers whose ledger and journal differ.
    """

    number: int
    call: int
    moment: str
    state: str = ""
    before: int = 0
    in_flight: int = 0
    unknown: int = 0
    repeated: int = 0
    wasted: int = 0
    books: list[str] = field(default_factory=list)
    code: str = ""

    @property
    def is_good(self) -> bool:
        return (
            self.state == "completed" and not self.repeated and not self.books
            and self.wasted <= self.unknown <= self.in_flight
        )  # fmt: skip


class Killer:
    """Orders packs of one daemon and kills it in their middle."""

    def __init__(self, shop: Shop, daemon: Daemon, sql: asyncpg.Pool, seed: int) -> None:
        self._shop = shop
        self._daemon = daemon
        self._sql = sql
        self._seed = seed
        self._chance = random.Random(seed)
        self._photo = photo()

    async def play(self, number: int) -> Round:
        """One pack of a user of its own, so that nothing of an earlier one can be reused."""
        played = Round(number, self._chance.randint(1, PACK_CALLS), self._chance.choice(MOMENTS))
        user_id = f"kill-{self._seed}-{number}"
        bases = [len(self._shop.paid_calls(server)) for server in self._shop.servers]
        async with open_shop_client(self._daemon) as client:
            pack_id = await order_pack(client, self._photo, user_id=user_id, size_px=1000)
            await self._wait_for(played, bases)
        self._daemon.kill()
        await eventually(self._has_no_session)  # the server ends what the dead process had sent
        seen = self._calls_since(bases)
        done = await self._sql.fetch(
            "select request_id from listingd.steps where user_id = $1 and state = 'done'", user_id
        )
        played.before = len(done)
        played.in_flight = await self._sql.fetchval(
            "select count(*) from listingd.steps where user_id = $1 and state = 'open'", user_id
        )
        await self._daemon.start()
        async with open_shop_client(self._daemon) as client:
            job = await finish(client, pack_id)
        return await self._judge(played, job, user_id, bases, seen, {row["request_id"] for row in done})

    async def _has_no_session(self) -> bool:
        return not await self._sql.fetchval(
            "select exists (select from pg_stat_activity where datname = current_database()"
            " and application_name like 'listingd%')"
        )

    async def _wait_for(self, played: Round, bases: list[int]) -> None:
        """Until the chosen moment: the first call is the cut-out, the others are pictures, all at once."""
        server = self._shop.removebg if played.call == 1 else self._shop.openai
        base = sum(call.method == "GET" for call in server.journal.calls)
        base += bases[0] if server is self._shop.openai else bases[1]
        count = base + max(1, played.call - 1)
        async with asyncio.timeout(60):
            await server.journal.until(count)
            if played.moment != "arrived":
                await server.journal.until_ended(count)
        if played.moment == "later":
            await asyncio.sleep(self._chance.uniform(0, LATER_S))

    def _calls_since(self, bases: list[int]) -> list[Any]:
        return [
            call
            for server, base in zip(self._shop.servers, bases, strict=True)
            for call in self._shop.paid_calls(server)[base:]
        ]

    async def _judge(
        self,
        played: Round,
        job: dict[str, Any],
        user_id: str,
        bases: list[int],
        seen: list[Any],
        done: set[str],
    ) -> Round:
        calls = self._calls_since(bases)
        checkpointed = {key_of(call) for call in seen if call.request_id in done}
        known = {id(call) for call in seen}
        steps = await self._sql.fetch(
            "select state, request_id, actual_usd from listingd.steps where user_id = $1", user_id
        )
        booked = {row["request_id"]: row["actual_usd"] for row in steps if row["state"] == "done"}
        played.state = job["state"]
        played.code = (job["error"] or {}).get("code", "")
        played.unknown = sum(row["state"] == "unknown" for row in steps)
        played.repeated = sum(key_of(call) in checkpointed for call in calls if id(call) not in known)
        played.wasted = len(calls) - PACK_CALLS
        played.books = [
            call.request_id for call in calls
            if call.request_id in booked and call.cost_usd != booked[call.request_id]
        ]  # fmt: skip
        if len(booked) != PACK_CALLS or not booked.keys() <= {call.request_id for call in calls}:
            played.books.append("another number of results than of calls")
        if any(row["state"] == "open" for row in steps):
            played.books.append("a step is still open")
        return played


async def measure_kills(directory: Path, dsn: str, count: int, seed: int) -> bool:
    """Whether all went well. Prints each round."""
    async with Shop() as shop, asyncpg.create_pool(dsn, min_size=1, max_size=2) as sql:
        shop.openai.latency_s, shop.removebg.latency_s = 0.25, 0.1
        daemon = ForkedDaemon(
            directory / "one", dsn, http__port=find_port(),
            **shop.settings(openai__concurrency=8, workers__soft_stop_s=1),
        )  # fmt: skip
        killer = Killer(shop, await daemon.start(), sql, seed)
        rounds: list[Round] = []
        began = time.monotonic()
        try:
            for number in range(count):
                rounds.append(await killer.play(number))
                write(kill=asdict(rounds[-1]), good=rounds[-1].is_good)
        finally:
            daemon.kill()
        reserved = await sql.fetchval("select coalesce(sum(reserved_usd), 0) from listingd.spend")
        spent = await sql.fetchval(
            "select coalesce(sum(spent_usd), 0) from listingd.spend where scope = 'total' and period = 'day'"
        )
        booked = await sql.fetchval("select sum(coalesce(actual_usd, estimated_usd)) from listingd.steps")
        results = await sql.fetchval("select sum(actual_usd) from listingd.steps where state = 'done'")
        billed = sum((server.journal.billed_usd for server in shop.servers), Decimal(0))
        write(
            kills=count, seed=seed, took_s=round(time.monotonic() - began), bad=[r.number for r in rounds if not r.is_good],
            moments=Counter(f"{r.moment} call {r.call}" for r in rounds),
            calls_after_a_checkpoint=sum(r.repeated for r in rounds), wasted_calls=sum(r.wasted for r in rounds),
            in_flight_at_kills=sum(r.in_flight for r in rounds), unknown=sum(r.unknown for r in rounds),
            usd={"results": results, "results and unknown": booked, "spend counters": spent, "still reserved": reserved,
                 "billed by the servers": billed},
        )  # fmt: skip
        return all(r.is_good for r in rounds) and reserved == 0 and spent == booked


async def measure_slow(directory: Path, dsn: str, slow_s: float) -> bool:
    """A pack, then an A+ job: wall time over the slowest picture, when the calls began, the daemon's CPU time."""
    async with Shop() as shop, asyncpg.create_pool(dsn, min_size=1, max_size=2) as sql:
        daemon = await Daemon(directory / "one", dsn, **shop.settings()).start()
        try:
            async with open_shop_client(daemon) as client:
                # The SDKs load at their first call, once in a daemon's life: not a part of the figure.
                await finish(client, await order_pack(client, photo(), user_id="warm", size_px=1000))
                shop.openai.latency_s, shop.removebg.latency_s, shop.gemini.latency_s = slow_s, 1.5, 3.0
                for kind in ("pack", "aplus"):
                    bases = [len(shop.paid_calls(server)) for server in shop.servers]
                    began, used_s = time.monotonic(), cpu_s(daemon.pid)
                    if kind == "pack":
                        job_id = await order_pack(client, photo(1200, 1400), user_id=kind)
                    else:
                        photo_ref = {"upload_id": await upload(client, photo(1200, 1400), user_id=kind)}
                        job = await client.create_job(
                            "aplus", {"photo": photo_ref, "product": dict(PRODUCT)}, user_id=kind
                        )
                        job_id = job["id"]
                    job = await finish(client, job_id)
                    wall_s = time.monotonic() - began
                    calls = {
                        s.name: len(shop.paid_calls(s)) - b for s, b in zip(shop.servers, bases, strict=True)
                    }
                    write(
                        kind=kind, state=job["state"], wall_s=round(wall_s, 2), slowest_picture_s=slow_s,
                        ratio=round(wall_s / slow_s, 2), calls=calls, cost=job["cost"],
                        provider_s=provider_seconds(shop, bases),
                        paint_began_s=[
                            round(call.started_s - began, 2) for call in shop.paid_calls(shop.openai)[bases[0]:]
                        ],
                        cpu_s=round(cpu_s(daemon.pid) - used_s, 2), load=round(os.getloadavg()[0], 1),
                    )  # fmt: skip
            differences = await shop.differences(sql)
            write(
                differences_of_ledger_and_journal=differences,
                billed={s.name: s.journal.billed_usd for s in shop.servers},
            )
        finally:
            daemon.kill()
        return not differences


def provider_seconds(shop: Shop, bases: list[int]) -> dict[str, float]:
    """From the first call's arrival to the last one's end, of each provider."""
    spans = {}
    for server, base in zip(shop.servers, bases, strict=True):
        calls = shop.paid_calls(server)[base:]
        if calls:
            spans[server.name] = round(max(c.ended_s for c in calls) - min(c.started_s for c in calls), 2)
    return spans


def write(**line: Any) -> None:
    sys.stdout.write(json.dumps(line, default=str) + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.packs")
    parser.add_argument("--kills", type=int, default=0, help="packs, each killed once")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the kills")
    parser.add_argument("--slow-s", type=float, default=0, help="seconds that a picture takes")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ld-packs-") as name:
        directory = Path(name)
        server = Server(directory / "server").create().start()
        try:
            dsn = server.create_database("packs")
            is_good = True
            if asked.slow_s:
                is_good &= asyncio.run(measure_slow(directory, dsn, asked.slow_s))
            if asked.kills:
                is_good &= asyncio.run(measure_kills(directory, dsn, asked.kills, asked.seed))
        finally:
            server.stop()
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
