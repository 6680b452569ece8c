"""Six pictures are being paid for when the process is killed: what is paid again, what is lost, what the books say.

A real process, a real SIGKILL, a provider over a real socket that keeps its own journal of calls. The moment of
the kill is forced by what the provider sees: the n-th call has arrived, or its answer is on the wire.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from daemon.db import Database
from daemon.settings import Settings
from daemon.storage import open_storage
from tests.conftest import REPOSITORY
from tests.pg.money_support import PRICE, count_states, kill, read_spend, start_daemon


@dataclass
class Till:
    """The provider and its journal: one entry a call, with whether the step had a checkpoint by then."""

    db: Database
    kill_at: int
    after_answer: bool
    calls: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    paid_again: list[str] = field(default_factory=list)
    victim: asyncio.subprocess.Process | None = None

    async def sell(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if await self.db.pool.fetchval(
            "select true from listingd.steps where job_id = $1::uuid and state = 'done'", name
        ):
            self.paid_again.append(name)
        self.calls.append(name)
        is_fatal = len(self.calls) == self.kill_at
        if is_fatal and not self.after_answer:
            self._kill()
        answer = web.Response(body=b"picture of " + name.encode(), headers={"X-Cost": str(PRICE)})
        try:
            await answer.prepare(request)
            await answer.write_eof()
            self.answered.append(name)
        except ConnectionError:
            pass  # the victim is dead
        if is_fatal and self.after_answer:
            self._kill()
        return answer

    def _kill(self) -> None:
        assert self.victim is not None
        self.victim.kill()


@pytest.mark.parametrize("after_answer", [False, True], ids=["call arrived", "answer sent"])
@pytest.mark.parametrize("kill_at", [1, 3, 6])
async def test_a_kill_wastes_at_most_the_calls_in_flight(
    db: Database, database: str, settings: Settings, tmp_path: Path, kill_at: int, after_answer: bool
) -> None:
    rescuer = await start_daemon(db, await open_storage(settings), instance="rescuer")
    ids = [str(await db.pool.fetchval("select listingd.enqueue_job('ping', '{}', 'ada')")) for _ in range(6)]
    till = Till(db, kill_at, after_answer)
    app = web.Application()
    app.router.add_post("/{name}", till.sell)

    async with TestServer(app) as server:

        async def run_victim() -> int:
            till.victim = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.pg.victim", database, str(tmp_path / "victim"),
                f"http://127.0.0.1:{server.port}", *ids, cwd=REPOSITORY,
            )  # fmt: skip
            return await till.victim.wait()

        assert -9 == await run_victim()
        done_before = (await count_states(rescuer)).get("done", 0)
        rescuer_sees = await db.pool.fetchrow("select id from listingd.workers where instance = 'victim'")
        victim = await start_daemon(db, await open_storage(settings), instance="victim's ghost")
        victim.worker = rescuer_sees["id"]
        await kill(victim, rescuer)
        calls_before = len(till.calls)
        assert 0 == await run_victim()

    states = await count_states(rescuer)
    assert [] == till.paid_again
    assert 6 == states["done"]
    assert len(till.calls) - calls_before == 6 - done_before
    assert len(till.calls) - 6 <= states.get("unknown", 0) <= 6 - done_before
    assert (0, (6 + states.get("unknown", 0)) * PRICE) == await read_spend(rescuer)
    files = [
        file
        async for file in (await open_storage(Settings(state_dir=tmp_path / "victim"))).list_older_than(-1)
    ]
    assert 6 == len(files)
