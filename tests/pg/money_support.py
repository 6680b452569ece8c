"""Claimed jobs and steps for the tests of money: real rows, claimed by the statements that the daemon uses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg

from daemon.db import Database
from daemon.handlers.context import StepValue
from daemon.jobs import ClaimedJob
from daemon.lanes import LaneLimits, Lanes
from daemon.ledger import Ledger
from daemon.providers.protocols import Usage
from daemon.settings import Budgets
from daemon.steps import Steps
from daemon.storage import Storage
from daemon.views import Views
from tests.support import eventually

PRICE = Decimal("0.25")


@dataclass
class Provider:
    """Counts its calls and answers, or fails as told. gate: answers only once it is set."""

    cost_usd: Decimal = PRICE
    data: bytes | None = b"a picture"
    document: Any = None
    request_id: str = "req-1"
    error: Exception | None = None
    gate: asyncio.Event | None = None
    on_call: Callable[[], Awaitable[None]] | None = None
    calls: int = 0
    began: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(self) -> StepValue:
        self.calls += 1
        self.began.set()
        if self.on_call is not None:
            await self.on_call()
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return StepValue(
            usage=Usage(self.cost_usd, {"images": 1}),
            data=self.data,
            content_type="image/png",
            document=self.document,
            model="model-1",
            request_id=self.request_id,
        )


@dataclass
class Daemon:
    """One process's view: its worker row, its ledger, lanes and steps."""

    db: Database
    worker: int
    ledger: Ledger
    lanes: Lanes
    steps: Steps

    async def pay(
        self,
        job: ClaimedJob,
        provider: Provider,
        *identity: str,
        estimate_usd: Decimal = PRICE,
        name: str = "paint",
        by: str = "painter",
    ) -> StepValue:
        return await self.steps.run(
            job,
            name,
            provider=by,
            identity=identity or ("same",),
            estimate_usd=estimate_usd,
            call=provider.call,
        )


async def start_daemon(
    db: Database,
    storage: Storage,
    *,
    instance: str = "one",
    budgets: Budgets | None = None,
    lanes: dict[str, LaneLimits] | None = None,
) -> Daemon:
    worker: int = await db.fetchval("start_worker", instance, 3600.0, ["ping"], 64, "{}")
    ledger = Ledger(db, budgets or Budgets())
    own_lanes = Lanes(db, lanes or {}, lambda: worker)
    return Daemon(db, worker, ledger, own_lanes, Steps(ledger, storage, own_lanes, lambda: worker))


async def claim_job(
    daemon: Daemon,
    *,
    user_id: str = "ada",
    kind: str = "ping",
    project_id: UUID | None = None,
    input_text: str = "{}",
) -> ClaimedJob:
    """A new job in the hands of the daemon."""
    job_id = await daemon.db.pool.fetchval(
        "select listingd.enqueue_job($1, $2::jsonb, $3, $4)", kind, input_text, user_id, project_id
    )
    return await claim_again(daemon, job_id)


async def claim_again(daemon: Daemon, job_id: UUID) -> ClaimedJob:
    """The job, pending now, in the hands of the daemon."""
    fence = await daemon.db.pool.fetchval("select fence from listingd.job_states where id = $1", job_id)
    rows = await daemon.db.fetch("flush", [], [], [], [], [], [], daemon.worker, [fence])
    row = rows[0]
    assert row["id"] == job_id
    return ClaimedJob(
        id=row["id"], fence=row["fence"], kind=row["kind"], user_id=row["user_id"], attempt=row["attempt"],
        max_attempts=row["max_attempts"], input_text=row["input_text"], project_id=row["project_id"],
    )  # fmt: skip


async def end_attempt(
    daemon: Daemon, job: ClaimedJob, state: str = "pending", error: str | None = None
) -> None:
    await daemon.db.fetch("flush", [job.fence], [state], [None], [error], [0.0], [0], daemon.worker, [])


async def kill(daemon: Daemon, rescuer: Daemon) -> None:
    """What the others see of a kill -9: the lease runs out, its jobs are taken back."""
    await daemon.db.pool.execute(
        "update listingd.workers set lease_until = now() - interval '1 s' where id = $1", daemon.worker
    )

    async def has_none() -> bool:
        await rescuer.db.fetch("rescue_jobs", 100, None, rescuer.worker)
        return not await rescuer.db.pool.fetchval(
            "select count(*) from listingd.job_states where worker = $1 and state = 'processing'",
            daemon.worker,
        )

    # The dead process's statements may still hold rows: a rescue passes over those until they are done.
    await eventually(has_none)


async def count_states(daemon: Daemon) -> dict[str, int]:
    rows = await daemon.db.pool.fetch("select state, count(*) as n from listingd.steps group by state")
    return {row["state"]: row["n"] for row in rows}


async def read_cost(daemon: Daemon, job_id: UUID) -> tuple[Decimal, Decimal, int]:
    """(estimated, actual) in USD and the calls of unknown outcome, as the API shows them."""
    job = await Views(daemon.db).read_job(job_id, None)
    assert job is not None
    cost = json.loads(job.fields["cost"])
    return Decimal(cost["estimated_usd"]), Decimal(cost["actual_usd"]), cost["unknown_calls"]


async def read_calls(daemon: Daemon, job_id: UUID) -> list[asyncpg.Record]:
    """The steps of a job, oldest first."""
    return await daemon.db.pool.fetch(
        "select * from listingd.steps where job_id = $1 order by created_at, id", job_id
    )


async def read_spend(
    daemon: Daemon, scope: str = "total", period: str = "day"
) -> tuple[Decimal | int, Decimal | int]:
    """(reserved, spent) in USD."""
    row = await daemon.db.pool.fetchrow(
        "select sum(reserved_usd) as r, sum(spent_usd) as s from listingd.spend where scope = $1 and period = $2",
        scope, period,
    )  # fmt: skip
    return Decimal(row["r"] or 0), Decimal(row["s"] or 0)
