"""A costly call, made once: the order in which ledger, lane, call and storage follow each other.

    found? ──▶ turn in the lane ──▶ intent + reservation ──▶ the call ──▶ bytes to storage ──▶ cost + checkpoint
      │yes                           │done, busy, budget, lost   │error          (content hash)    (one transaction)
      ▼                              ▼                           ▼
    reuse it                     reuse, wait, Retry, stop     failed or unknown; reservation given back

A crash at any arrow costs at most the call in flight: what has a checkpoint is never called again. A call
that is lost, because it was cut off (`unknown`: it may have been billed) or because it was billed and its answer
is unusable, is tried once more at most.
From the moment a call has answered, nothing but the death of the process keeps its result from being booked:
neither a cancellation nor a lost fence nor a database that is away. What that does not take within a minute waits for
it in `book_late`, when the attempt is over.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import TypeVar
from uuid import UUID

from daemon import logs, metrics
from daemon.errors import (
    Fate,
    Lost,
    NotFound,
    ProviderError,
    Reject,
    Retry,
    Unavailable,
)
from daemon.handlers.context import StepValue
from daemon.jobs import ClaimedJob, Took, new_id
from daemon.lanes import Lanes, Turn
from daemon.ledger import Beginning, Begun, FullBudget, Ledger, StepResult
from daemon.providers.protocols import Usage
from daemon.shield import settle
from daemon.storage import Storage

BUDGET_RECHECK_S = 300.0
"""A job over budget looks again after so many seconds at the latest: somebody may raise the budget."""
BOOKING_S = 60.0
"""How long a paid result is kept in hand while database or storage do not answer, seconds."""
TAKING_BACK_S = 5.0
"""How long an intent whose call was never made is tried to be taken back, seconds."""

T = TypeVar("T")

_step_of_call: ContextVar[UUID] = ContextVar("listingd_step_of_call")

log = logs.get_logger()


class Steps:
    """Runs steps for all attempts of this process. worker_id: the row of listingd.workers that claims are on."""

    def __init__(
        self, ledger: Ledger, storage: Storage, lanes: Lanes, worker_id: Callable[[], int | None]
    ) -> None:
        self._ledger = ledger
        self._storage = storage
        self._lanes = lanes
        self._worker_id = worker_id
        self._flights: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._keeping: dict[tuple[str, str], asyncio.Task[bool]] = {}
        # It refused a paid result: no more are bought before it takes something.
        self._is_storage_doubtful = False
        self._late: asyncio.Queue[Callable[[], Awaitable[object]]] = asyncio.Queue()

    async def run(
        self,
        job: ClaimedJob,
        name: str,
        *,
        provider: str,
        identity: Sequence[str],
        estimate_usd: Decimal,
        call: Callable[[], Awaitable[StepValue]],
        rate_cost: float = 1.0,
        took: Took | None = None,
    ) -> StepValue:
        """The result of `call`, or the stored one of an earlier call with the same identity of the same user.

        rate_cost: how many of the lane's calls a minute it takes; took: where its time and cost are added.
        Errors: ProviderError as the call raised it (its data says `paid`: no, yes, unknown); Retry without a
        counted attempt when a budget or the lane has no room; Reject (outcome_unknown, answers_unusable) when
        the second call is lost like the first; Lost; Unavailable.
        """
        key = (job.user_id, hash_identity(identity))
        while (flight := self._flights.get(key)) is not None:
            await asyncio.wait({flight})
        flight = asyncio.get_running_loop().create_future()
        self._flights[key] = flight
        try:
            with logs.bind(job_id=job.id, kind=job.kind, attempt=job.attempt, user_id=job.user_id):
                return await self._fly(
                    _Step(job, name, provider, key[1], estimate_usd, call, rate_cost, took or Took())
                )
        finally:
            keeping = self._keeping.get(key)
            if keeping is None or keeping.done():
                self._land(key)
            else:  # an attempt that was given up; whoever asks for the same must not pay while this is being booked
                keeping.add_done_callback(lambda _: self._land(key))

    def _land(self, key: tuple[str, str]) -> None:
        """Let the next one ask for the same."""
        keeping = self._keeping.pop(key, None)
        if keeping is not None and not keeping.cancelled():
            keeping.exception()  # seen: who waited for it has been told
        self._flights.pop(key).set_result(None)

    def note_late(self, usage: Usage, _model: str) -> None:
        """A call that was given up has answered after all: keep its cost for `book_late`.

        Must be called in the context of the call (providers/threads.py does).
        """
        self._late.put_nowait(
            partial(
                self._ledger.fail, _step_of_call.get(),
                is_unknown=False, code="answered_late", cost_usd=usage.cost_usd,
            )
        )  # fmt: skip

    async def book_late(self) -> None:
        """Book what came too late or could not be booked in time, for ever. Errors: Unavailable; run it again."""
        while True:
            write = await self._late.get()
            try:
                await write()
            except (Unavailable, asyncio.CancelledError):
                self._late.put_nowait(write)
                raise
            finally:
                self._late.task_done()

    async def _fly(self, step: _Step) -> StepValue:
        lane = self._lanes.find(step.provider)
        pause_s = 0.05
        while True:
            await self._late.join()  # what waits for the database may be this step's result
            if lane is not None and (value := await self._reuse(step)) is not None:
                return value
            if self._is_storage_doubtful:
                await self._storage.check()
                self._is_storage_doubtful = False
            step_id = new_id()
            async with lane.turn(step.rate_cost) if lane is not None else nullcontext() as turn:
                worker = self._worker_id()
                if worker is None:
                    raise Unavailable("This process has no lease.", data={"retry_after_s": 1})
                begun = await self._begin(step, worker, step_id)
                if begun.outcome in (Begun.OPEN, Begun.LAST):
                    return await self._call(step, worker, step_id, turn, is_last=begun.outcome is Begun.LAST)
            match begun.outcome:
                case Begun.DONE:
                    if (value := await self._reuse(step)) is not None:
                        return value
                case Begun.BUSY:
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 1.5, 1.0)
                case Begun.BUDGET:
                    assert begun.full is not None  # said by begin
                    raise _wait_for_money(begun.full)
                case Begun.EXHAUSTED:
                    raise _give_up(step.provider, is_unknown=True)
                case Begun.LOST:
                    raise Lost("The attempt was no longer ours before a paid call.")

    async def _begin(self, step: _Step, worker: int, step_id: UUID) -> Beginning:
        """The intent and its reservation. When the answer is lost they may stand all the same: they are taken back,
        or the estimate would count as spent for a call that nobody made.
        """
        try:
            return await self._ledger.begin(
                step.job, worker, step_id, identity=step.identity, name=step.name,
                provider=step.provider, estimate_usd=step.estimate_usd,
            )  # fmt: skip
        except (Unavailable, asyncio.CancelledError):
            with suppress(Unavailable):
                await settle(self._fail(step_id, "not_called", within_s=TAKING_BACK_S))
            raise

    async def _reuse(self, step: _Step) -> StepValue | None:
        """The stored result, if there is one and its file is sound."""
        found = await self._ledger.find(step.job.user_id, step.identity)
        if found is None:
            return None
        step_id, result = found
        data = None
        if result.content_sha256 is not None:
            try:
                data = await self._storage.get(result.content_sha256)
            except NotFound:
                await self._ledger.drop_result(step_id)
                return None
            except Unavailable as exc:
                if exc.code != "storage_corrupt":
                    raise
                log.warning("storage.failed", what=f"result of step {step.name}", error=exc.message)
                await self._ledger.drop_result(step_id)
                await self._storage.delete(result.content_sha256)
                return None
        log.info("job.step_done", step=step.name, provider=step.provider, cost_usd="0", reused=True)
        return StepValue(
            usage=Usage(),
            data=data,
            content_type=result.content_type or "application/octet-stream",
            document=result.document,
            model=result.model,
            request_id=result.request_id,
            reused=True,
        )

    async def _call(
        self, step: _Step, worker: int, step_id: UUID, turn: Turn | None, *, is_last: bool
    ) -> StepValue:
        """Call, then book whatever came of it."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        is_paid = step.estimate_usd > 0
        value: StepValue | None = None
        outcome, code, cost_usd, is_unknown = "interrupted", "interrupted", Decimal(0), is_paid
        _step_of_call.set(step_id)
        try:
            value = await step.call()
            outcome = "ok"
        except ProviderError as exc:
            code, outcome = exc.code, exc.fate.value
            cost_usd = Decimal(str(exc.data.get("cost_usd", 0)))
            is_unknown = is_paid and exc.fate is Fate.AMBIGUOUS and "cost_usd" not in exc.data
            exc.data["paid"] = "unknown" if is_unknown else "yes" if cost_usd > 0 else "no"
            log.warning(
                "provider.refused", provider=step.provider, code=exc.code, status=exc.status,
                fate=exc.fate.value, request_id_provider=exc.request_id,
            )  # fmt: skip
            if is_last and (is_unknown or cost_usd > 0) and exc.fate is not Fate.PERMANENT:
                raise _give_up(step.provider, is_unknown=is_unknown) from exc
            raise
        finally:
            run_s = loop.time() - began
            step.took.provider_s += run_s
            billed_usd = cost_usd if value is None else value.usage.cost_usd
            step.took.cost_usd += billed_usd
            metrics.PROVIDER_COST.labels(step.provider).inc(float(billed_usd))
            metrics.PROVIDER_CALLS.labels(step.provider, outcome).inc()
            metrics.PROVIDER_RUN.labels(step.provider).observe(run_s)
            if value is None:
                if is_unknown:
                    cost = str(step.estimate_usd)
                    log.warning("provider.unknown", provider=step.provider, step=step.name, cost_usd=cost)
                await settle(self._fail(step_id, code, is_unknown=is_unknown, cost_usd=cost_usd))
        if turn is not None:
            turn.heard(value.rate)
        key = (step.job.user_id, step.identity)
        self._keeping[key] = asyncio.create_task(
            self._keep(step, worker, step_id, value), name=f"keep {step.name}"
        )
        held = await settle(self._keeping[key], within_s=BOOKING_S)
        log.info(
            "job.step_done", step=step.name, provider=step.provider, duration_s=round(run_s, 3),
            cost_usd=str(value.usage.cost_usd), bytes=len(value.data or b""), reused=False,
        )  # fmt: skip
        if not held:
            raise Lost("The attempt was no longer ours after a call; its cost and result are kept.")
        return replace(value, reused=False)

    async def _keep(self, step: _Step, worker: int, step_id: UUID, value: StepValue) -> bool:
        """Bytes first, then cost and checkpoint: a checkpoint never names a file that is not there."""
        data, sha256 = value.data, None
        if data is not None:
            try:
                sha256 = await self._book(lambda: self._storage.put(data, value.content_type))
            except Unavailable:
                self._is_storage_doubtful = True
                log.warning(
                    "storage.failed", what=f"result of step {step.name}", error="not kept, and paid for"
                )
                await self._fail(step_id, "result_not_kept", cost_usd=value.usage.cost_usd)
                raise
        result = StepResult(
            cost_usd=value.usage.cost_usd,
            units=value.usage.units,
            content_sha256=sha256,
            content_type=value.content_type if data is not None else None,
            document=value.document,
            model=value.model,
            request_id=value.request_id,
        )
        return await self._book_surely(partial(self._ledger.settle, step.job, worker, step_id, result))

    async def _fail(
        self, step_id: UUID, code: str, *, is_unknown: bool = False, cost_usd: Decimal = Decimal(0),
        within_s: float | None = None,
    ) -> None:  # fmt: skip
        """End a step without a result. Errors: Unavailable."""
        await self._book_surely(
            partial(self._ledger.fail, step_id, is_unknown=is_unknown, code=code, cost_usd=cost_usd), within_s
        )

    async def _book_surely(self, write: Callable[[], Awaitable[T]], within_s: float | None = None) -> T:
        """`_book` of what the database takes again at any time: left to `book_late` when the patience is over. Else
        the open step would count at its estimate, although it is known what it has cost.
        """
        try:
            return await self._book(write, within_s)
        except (Unavailable, asyncio.CancelledError):
            self._late.put_nowait(write)
            raise

    @staticmethod
    async def _book(write: Callable[[], Awaitable[T]], within_s: float | None = None) -> T:
        """Write, again and again while the other side is away: what was paid for is not let go lightly."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (BOOKING_S if within_s is None else within_s)
        pause_s = 0.1
        while True:
            try:
                return await write()
            except Unavailable:
                if loop.time() + pause_s > deadline:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 5.0)


@dataclass(frozen=True, slots=True)
class _Step:
    """What one run is about."""

    job: ClaimedJob
    name: str
    provider: str
    identity: str
    estimate_usd: Decimal
    call: Callable[[], Awaitable[StepValue]]
    rate_cost: float
    took: Took


def hash_identity(parts: Sequence[str]) -> str:
    """SHA-256 in hex over the parts, each with its length before it, so that no two lists look alike."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()


def _give_up(provider: str, *, is_unknown: bool) -> Reject:
    """The second call of a job was lost too: no third one without a person's word."""
    if is_unknown:
        return Reject(
            f"Two calls of {provider} were cut off; whether they were billed is not known.",
            code="outcome_unknown",
            hint="Look at the provider's usage page, then retry the job.",
            data={"paid": "unknown"},
        )
    return Reject(
        f"Two calls of {provider} were billed and their answers could not be used.",
        code="answers_unusable",
        hint="Try another photo, model or wording, or retry the job.",
        data={"paid": "yes"},
    )


def _wait_for_money(full: FullBudget) -> Retry:
    if full.is_news:
        log.warning(
            "budget.exhausted", scope=full.scope, limit_usd=str(full.limit_usd), spent_usd=str(full.used_usd),
            until=f"{math.ceil(full.ends_in_s)} s from now",
        )  # fmt: skip
    return Retry(
        full.message,
        after_s=min(max(full.ends_in_s, 1.0), BUDGET_RECHECK_S),
        counts_attempt=False,
        code="budget_spent",
        hint="It runs when the period is over or the budget is raised.",
        data={"scope": full.scope, "period": full.period, "ends_in_s": math.ceil(full.ends_in_s)},
    )
