"""Never paying twice: what a step promises, whoever dies, stalls or is cancelled at whatever moment."""

from __future__ import annotations

import asyncio
import contextvars
from decimal import Decimal
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from daemon import shield, steps
from daemon.db import Database, open_pool
from daemon.errors import Fate, Lost, ProviderError, Reject, Retry, Unavailable
from daemon.jobs import new_id
from daemon.ledger import StepResult, encode_json, sweep_orphans
from daemon.metrics import REGISTRY
from daemon.providers.protocols import Usage
from daemon.settings import Budgets, Settings
from daemon.steps import hash_identity
from daemon.storage import Storage, open_storage
from tests.pg.money_support import (
    PRICE,
    Daemon,
    Provider,
    claim_again,
    claim_job,
    count_states,
    end_attempt,
    kill,
    read_calls,
    read_cost,
    read_spend,
    start_daemon,
)
from tests.support import eventually


@pytest.fixture
async def storage(settings: Settings) -> Storage:
    return await open_storage(settings)


@pytest.fixture
async def daemon(db: Database, storage: Storage) -> Daemon:
    return await start_daemon(db, storage)


CONTEXT = ("job_id", "kind", "attempt", "user_id")


def ambiguous() -> ProviderError:
    return ProviderError(
        "No answer in time.", provider="painter", fate=Fate.AMBIGUOUS, code="provider_timed_out"
    )


def refused(**data: object) -> ProviderError:
    return ProviderError("No.", provider="painter", fate=Fate.PERMANENT, code="moderation_blocked", data=data)


async def test_a_step_gives_what_the_call_gave(daemon: Daemon) -> None:
    job = await claim_job(daemon)

    value = await daemon.pay(job, Provider(document={"confidence": 0.5}))

    assert (b"a picture", {"confidence": 0.5}, False) == (value.data, value.document, value.reused)
    assert (PRICE, PRICE, 0) == await read_cost(daemon, job.id)
    assert (0, PRICE) == await read_spend(daemon)


async def test_a_checkpointed_step_is_not_called_by_the_next_attempt(daemon: Daemon) -> None:
    provider = Provider(document={"confidence": 0.5})
    job = await claim_job(daemon)
    await daemon.pay(job, provider)
    await end_attempt(daemon, job)

    value = await daemon.pay(await claim_again(daemon, job.id), provider)

    assert 1 == provider.calls
    assert (True, b"a picture", {"confidence": 0.5}) == (value.reused, value.data, value.document)
    assert (0, PRICE) == await read_spend(daemon)


async def test_a_checkpointed_step_is_not_called_by_another_process(daemon: Daemon, storage: Storage) -> None:
    provider = Provider()
    other = await start_daemon(daemon.db, storage, instance="two")
    await daemon.pay(await claim_job(daemon), provider)

    value = await other.pay(await claim_job(other), provider)

    assert (1, True) == (provider.calls, value.reused)


async def test_another_user_pays_for_themselves(daemon: Daemon) -> None:
    """A shared result would tell one user what another has asked for."""
    provider = Provider()
    await daemon.pay(await claim_job(daemon, user_id="ada"), provider)

    value = await daemon.pay(await claim_job(daemon, user_id="bob"), provider)

    assert (2, False) == (provider.calls, value.reused)


async def test_other_inputs_are_another_call(daemon: Daemon) -> None:
    provider = Provider()
    job = await claim_job(daemon)

    await daemon.pay(job, provider, "ab", "c")
    await daemon.pay(job, provider, "a", "bc")

    assert 2 == provider.calls


async def test_six_slots_of_a_pack_share_one_call_in_flight(daemon: Daemon) -> None:
    provider = Provider(gate=asyncio.Event())
    jobs = [await claim_job(daemon) for _ in range(6)]

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(daemon.pay(job, provider)) for job in jobs]
        await provider.began.wait()
        provider.gate.set()  # type: ignore[union-attr]

    assert 1 == provider.calls
    assert [b"a picture"] * 6 == [task.result().data for task in tasks]
    assert 5 == sum(task.result().reused for task in tasks)


async def test_a_call_in_flight_in_another_process_is_waited_for(
    daemon: Daemon, storage: Storage, settings: Settings, database: str
) -> None:
    provider = Provider(gate=asyncio.Event())
    async with await open_pool(settings, dsn=database) as other_db:
        other = await start_daemon(other_db, storage, instance="two")
        job, waiting_job = await claim_job(daemon), await claim_job(other)

        async with asyncio.TaskGroup() as group:
            first = group.create_task(daemon.pay(job, provider))
            await provider.began.wait()
            second = group.create_task(other.pay(waiting_job, provider))
            await asyncio.sleep(0)
            provider.gate.set()  # type: ignore[union-attr]

    assert 1 == provider.calls
    assert (False, True) == (first.result().reused, second.result().reused)


async def test_when_the_first_call_fails_a_waiting_one_makes_its_own(daemon: Daemon) -> None:
    failing, working = Provider(gate=asyncio.Event(), error=refused()), Provider()
    jobs = [await claim_job(daemon) for _ in range(2)]

    first = asyncio.create_task(daemon.pay(jobs[0], failing))
    await failing.began.wait()
    second = asyncio.create_task(daemon.pay(jobs[1], working))
    failing.gate.set()  # type: ignore[union-attr]

    with pytest.raises(ProviderError):
        await first
    assert b"a picture" == (await second).data


async def test_a_refused_call_costs_nothing(daemon: Daemon) -> None:
    job = await claim_job(daemon)

    with pytest.raises(ProviderError) as caught:
        await daemon.pay(job, Provider(error=refused()))

    assert "no" == caught.value.data["paid"]
    assert {"failed": 1} == await count_states(daemon)
    assert (0, 0) == await read_spend(daemon)
    assert (0, 0, 0) == await read_cost(daemon, job.id)


async def test_a_refusal_that_was_billed_is_booked(daemon: Daemon) -> None:
    job = await claim_job(daemon)

    with pytest.raises(ProviderError) as caught:
        await daemon.pay(job, Provider(error=refused(cost_usd="0.07")))

    assert "yes" == caught.value.data["paid"]
    assert (0, Decimal("0.07")) == await read_spend(daemon)
    assert Decimal("0.07") == (await read_cost(daemon, job.id))[1]


async def test_a_timed_out_call_is_unknown_and_counts_as_spent(daemon: Daemon) -> None:
    """It may be on the bill: a budget that ignored it could be overshot."""
    job = await claim_job(daemon)

    with pytest.raises(ProviderError) as caught:
        await daemon.pay(job, Provider(error=ambiguous()))

    assert "unknown" == caught.value.data["paid"]
    assert (0, PRICE) == await read_spend(daemon)
    assert (PRICE, 0, 1) == await read_cost(daemon, job.id)


async def test_a_lost_answer_that_is_known_to_be_free_is_not_unknown(daemon: Daemon) -> None:
    job, free = await claim_job(daemon), ambiguous()
    free.data["cost_usd"] = "0.00"

    with pytest.raises(ProviderError) as caught:
        await daemon.pay(job, Provider(error=free))

    assert ("no", {"failed": 1}, (0, 0)) == (
        caught.value.data["paid"], await count_states(daemon), await read_spend(daemon)
    )  # fmt: skip


async def test_what_the_log_says_of_a_call_names_its_job(daemon: Daemon) -> None:
    """Who finds a call of unknown outcome on a bill wants to know whose it was."""
    job = await claim_job(daemon)

    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        with pytest.raises(ProviderError):
            await daemon.pay(job, Provider(error=ambiguous()))
        await daemon.pay(job, Provider())
        await daemon.pay(job, Provider())

    told = ["provider.refused", "provider.unknown", "job.step_done", "job.step_done"]
    assert told == [line["event"] for line in lines]
    assert all((job.id, "ping", 1, job.user_id) == tuple(line[key] for key in CONTEXT) for line in lines)


async def test_an_unknown_outcome_is_tried_once_more_at_most(daemon: Daemon) -> None:
    provider = Provider(error=ambiguous())
    job = await claim_job(daemon)
    with pytest.raises(ProviderError):
        await daemon.pay(job, provider)

    for _ in range(2):
        with pytest.raises(Reject) as caught:
            await daemon.pay(job, provider)

    assert ("outcome_unknown", "unknown", 2) == (caught.value.code, caught.value.data["paid"], provider.calls)
    assert (0, 2 * PRICE) == await read_spend(daemon)


@pytest.mark.parametrize("fate", [Fate.AMBIGUOUS, Fate.RETRY])
async def test_a_billed_answer_without_use_is_bought_once_more_at_most(daemon: Daemon, fate: Fate) -> None:
    """A provider that bills rubbish must not be paid once for each attempt of the job."""
    unusable = ProviderError("Rubbish.", provider="painter", fate=fate, data={"cost_usd": "0.07"})
    provider = Provider(error=unusable)
    job = await claim_job(daemon)
    with pytest.raises(ProviderError):
        await daemon.pay(job, provider)

    with pytest.raises(Reject) as caught:
        await daemon.pay(job, provider)

    assert ("answers_unusable", "yes", 2) == (caught.value.code, caught.value.data["paid"], provider.calls)
    assert (0, Decimal("0.14")) == await read_spend(daemon)
    assert {"failed": 2} == await count_states(daemon)


async def test_failures_that_cost_nothing_are_no_losses(daemon: Daemon) -> None:
    failing = Provider(error=ProviderError("Busy.", provider="painter", fate=Fate.RETRY, status=503))
    job = await claim_job(daemon)
    for _ in range(3):
        with pytest.raises(ProviderError):
            await daemon.pay(job, failing)

    assert not (await daemon.pay(job, Provider())).reused


async def test_an_answer_after_its_call_was_given_up_tells_its_price(daemon: Daemon) -> None:
    """A thread that went on: the call was unknown and counted at its estimate, now its cost is known."""

    async def time_out() -> None:
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        loop.call_soon(context.run, daemon.steps.note_late, Usage(Decimal("0.19")), "model-1")
        raise ambiguous()

    job = await claim_job(daemon)
    with pytest.raises(ProviderError):
        await daemon.pay(job, Provider(on_call=time_out))
    booking = asyncio.create_task(daemon.steps.book_late())

    async def is_priced() -> bool:
        return (await read_spend(daemon)) == (0, Decimal("0.19"))

    await eventually(is_priced)
    (call,) = await read_calls(daemon, job.id)
    assert ("failed", "answered_late", Decimal("0.19")) == (call["state"], call["code"], call["actual_usd"])
    booking.cancel()
    await asyncio.wait({booking})


async def test_spend_is_the_sum_of_what_the_calls_are_booked_at(daemon: Daemon) -> None:
    """Tokens are priced in fractions of what the books hold: each figure is rounded once, whichever way it takes."""
    odd, job = Decimal("0.1000005"), await claim_job(daemon)
    for number, cost_usd in enumerate((odd, odd + Decimal("0.0000005"), odd)):
        words = {"identity": f"x{number}", "name": "paint", "provider": "painter"}
        step_id = new_id()
        await daemon.ledger.begin(job, daemon.worker, step_id, estimate_usd=PRICE, **words)  # type: ignore[arg-type]
        if number:  # given up, and answered after all
            await daemon.ledger.fail(step_id, is_unknown=True, code="provider_timed_out")
        if number == 2:
            await daemon.ledger.fail(step_id, is_unknown=False, code="answered_late", cost_usd=cost_usd)
        else:
            await daemon.ledger.settle(job, daemon.worker, step_id, StepResult(cost_usd=cost_usd))

    booked = sum(call["actual_usd"] for call in await read_calls(daemon, job.id))
    assert (0, booked) == await read_spend(daemon)


async def test_a_reservation_is_never_rounded_below_its_estimate(daemon: Daemon, storage: Storage) -> None:
    """Else a budget takes calls that can cost more than it has left."""
    budgets = Budgets(total_usd_per_day=Decimal("0.000003"))
    other = await start_daemon(daemon.db, storage, instance="two", budgets=budgets)
    job, estimate_usd = await claim_job(other), Decimal("0.0000014")
    provider = Provider(cost_usd=estimate_usd)
    held = Provider(cost_usd=estimate_usd, gate=asyncio.Event())
    first = asyncio.create_task(other.pay(job, held, "1", estimate_usd=estimate_usd))
    await held.began.wait()

    assert (Decimal("0.000002"), 0) == await read_spend(other)
    with pytest.raises(Retry):
        await other.pay(job, provider, "2", estimate_usd=estimate_usd)
    held.gate.set()  # type: ignore[union-attr]
    await first
    assert (0, Decimal("0.000001")) == await read_spend(other)


async def test_the_next_attempt_is_no_new_chance(daemon: Daemon) -> None:
    """Two lost calls of a job are two, whichever attempts they belong to; only giving up starts a new count."""
    provider = Provider(error=ambiguous())
    job = await claim_job(daemon)
    for error in (ProviderError, Reject, Reject):
        with pytest.raises(error):
            await daemon.pay(job, provider)
        await end_attempt(daemon, job, error='{"code": "provider_timed_out", "message": "x"}')
        job = await claim_again(daemon, job.id)

    assert 2 == provider.calls


async def test_after_giving_up_an_explicit_retry_may_call_again(daemon: Daemon) -> None:
    """The seller has looked at the bill and asks for it: two more calls, not none and not endless ones."""
    provider = Provider(error=ambiguous())
    job = await claim_job(daemon)
    for error in (ProviderError, Reject):
        with pytest.raises(error):
            await daemon.pay(job, provider)
    await end_attempt(daemon, job, "failed", '{"code": "outcome_unknown", "message": "x"}')
    await daemon.db.fetch("retry_job", job.id, None)

    value = await daemon.pay(await claim_again(daemon, job.id), Provider())

    assert not value.reused


async def test_a_call_cut_off_by_a_crash_is_unknown_and_repeated_once(
    daemon: Daemon, storage: Storage
) -> None:
    other = await start_daemon(daemon.db, storage, instance="two")
    lost, working = Provider(gate=asyncio.Event()), Provider()
    job = await claim_job(daemon)
    dead = asyncio.create_task(daemon.pay(job, lost))
    await lost.began.wait()

    await kill(daemon, other)
    value = await other.pay(await claim_again(other, job.id), working)

    assert (1, 1, False) == (lost.calls, working.calls, value.reused)
    assert {"unknown": 1, "done": 1} == await count_states(other)
    assert (2 * PRICE, PRICE, 1) == await read_cost(other, job.id)
    assert [1, 2] == [call["tries"] for call in await read_calls(other, job.id)]
    dead.cancel()
    await asyncio.wait({dead})


async def test_another_job_takes_over_the_call_of_a_dead_process(daemon: Daemon, storage: Storage) -> None:
    other = await start_daemon(daemon.db, storage, instance="two")
    lost, working = Provider(gate=asyncio.Event()), Provider()
    dead = asyncio.create_task(daemon.pay(await claim_job(daemon), lost))
    await lost.began.wait()
    waiting = asyncio.create_task(other.pay(await claim_job(other), working))

    await kill(daemon, other)

    assert b"a picture" == (await waiting).data
    dead.cancel()
    await asyncio.wait({dead})


async def test_a_late_answer_is_booked_and_replaces_nothing(daemon: Daemon, storage: Storage) -> None:
    """A process that was only asleep: its call was paid, and its successor's too."""
    other = await start_daemon(daemon.db, storage, instance="two")
    late = Provider(gate=asyncio.Event(), data=b"the late picture", cost_usd=Decimal("0.11"))
    job = await claim_job(daemon)
    sleeper = asyncio.create_task(daemon.pay(job, late))
    await late.began.wait()
    await kill(daemon, other)
    successor = await claim_again(other, job.id)
    await other.pay(successor, Provider())

    late.gate.set()  # type: ignore[union-attr]

    with pytest.raises(Lost):
        await sleeper
    assert {"done": 2} == await count_states(other)
    assert (0, PRICE + Decimal("0.11")) == await read_spend(other)
    assert b"a picture" == (await other.pay(successor, late)).data


async def test_a_result_whose_attempt_was_lost_is_kept_for_the_next(daemon: Daemon, storage: Storage) -> None:
    other = await start_daemon(daemon.db, storage, instance="two")
    provider = Provider(gate=asyncio.Event())
    job = await claim_job(daemon)
    sleeper = asyncio.create_task(daemon.pay(job, provider))
    await provider.began.wait()
    await kill(daemon, other)

    provider.gate.set()  # type: ignore[union-attr]
    with pytest.raises(Lost):
        await sleeper
    value = await other.pay(await claim_again(other, job.id), provider)

    assert (1, True, b"a picture") == (provider.calls, value.reused, value.data)
    assert (0, PRICE) == await read_spend(other)


async def test_a_stale_attempt_calls_nothing_and_writes_nothing(daemon: Daemon, storage: Storage) -> None:
    other = await start_daemon(daemon.db, storage, instance="two")
    provider = Provider()
    job = await claim_job(daemon)
    await kill(daemon, other)

    with pytest.raises(Lost):
        await daemon.pay(job, provider)

    assert 0 == provider.calls
    assert {} == await count_states(other)
    assert (0, 0) == await read_spend(other)


async def test_a_cancelled_call_is_unknown(daemon: Daemon) -> None:
    provider = Provider(gate=asyncio.Event())
    job = await claim_job(daemon)
    task = asyncio.create_task(daemon.pay(job, provider))
    await provider.began.wait()

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert {"unknown": 1} == await count_states(daemon)
    assert (0, PRICE) == await read_spend(daemon)


async def test_a_cancel_that_comes_after_the_answer_loses_nothing(daemon: Daemon) -> None:
    job = await claim_job(daemon)

    async def cancel_the_caller() -> None:
        asyncio.current_task().cancel()  # type: ignore[union-attr]  # felt at the first wait after the answer

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(daemon.pay(job, Provider(on_call=cancel_the_caller)))

    assert {"done": 1} == await count_states(daemon)
    assert (0, PRICE) == await read_spend(daemon)


@pytest.mark.parametrize("ends", ["well", "billed and refused", "cancelled"])
async def test_the_metric_of_costs_counts_what_was_billed_however_it_ended(daemon: Daemon, ends: str) -> None:
    """Its rate is watched against the bill."""

    def read_usd() -> float:
        return REGISTRY.get_sample_value("listingd_provider_cost_usd_total", {"provider": "painter"}) or 0.0

    async def cancel_the_caller() -> None:
        if ends == "cancelled":
            asyncio.current_task().cancel()  # type: ignore[union-attr]

    before, job = read_usd(), await claim_job(daemon)
    error = refused(cost_usd=str(PRICE)) if ends == "billed and refused" else None

    await asyncio.gather(
        asyncio.create_task(daemon.pay(job, Provider(error=error, on_call=cancel_the_caller))),
        return_exceptions=True,
    )

    assert float(PRICE) == pytest.approx(read_usd() - before)


async def test_an_interrupted_free_call_is_not_unknown(daemon: Daemon, storage: Storage) -> None:
    """Offline work may be begun again as often as needed."""
    other = await start_daemon(daemon.db, storage, instance="two")
    lost = Provider(gate=asyncio.Event(), cost_usd=Decimal(0))
    job = await claim_job(daemon)
    dead = asyncio.create_task(daemon.pay(job, lost, estimate_usd=Decimal(0)))
    await lost.began.wait()
    await kill(daemon, other)

    await other.pay(await claim_again(other, job.id), Provider(cost_usd=Decimal(0)), estimate_usd=Decimal(0))

    assert {"failed": 1, "done": 1} == await count_states(other)
    assert 0 == await other.db.pool.fetchval("select count(*) from listingd.spend")
    dead.cancel()
    await asyncio.wait({dead})


async def test_asking_again_after_a_lost_answer_finds_the_same_intent(daemon: Daemon) -> None:
    """The database committed the intent and the connection broke: the step must not become its own ghost."""
    job, step_id = await claim_job(daemon), new_id()
    words = {"identity": "x", "name": "paint", "provider": "painter", "estimate_usd": PRICE}

    first = await daemon.ledger.begin(job, daemon.worker, step_id, **words)  # type: ignore[arg-type]
    second = await daemon.ledger.begin(job, daemon.worker, step_id, **words)  # type: ignore[arg-type]

    assert first == second
    assert {"open": 1} == await count_states(daemon)
    assert (PRICE, 0) == await read_spend(daemon)


async def test_an_intent_whose_answer_was_lost_is_taken_back(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody made the call: the estimate must not count as spent."""
    begin, provider, job = daemon.ledger.begin, Provider(), await claim_job(daemon)

    async def begin_and_lose_the_answer(*given: Any, **named: Any) -> Any:
        await begin(*given, **named)
        raise Unavailable("The connection was lost.")

    with monkeypatch.context() as patch:
        patch.setattr(daemon.ledger, "begin", begin_and_lose_the_answer)
        with pytest.raises(Unavailable):
            await daemon.pay(job, provider)

    assert (0, {"failed": 1}, (0, 0)) == (
        provider.calls, await count_states(daemon), await read_spend(daemon)
    )  # fmt: skip
    await daemon.pay(job, provider)
    assert (1, (0, PRICE)) == (provider.calls, await read_spend(daemon))


async def test_a_store_that_takes_nothing_costs_no_second_call(
    daemon: Daemon, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: what was paid for is booked at its price, and nothing more is bought until it takes files again."""
    monkeypatch.setattr(steps, "BOOKING_S", 0.3)
    provider, job = Provider(cost_usd=PRICE * 2), await claim_job(daemon)

    async def refuse(*_: object) -> str:
        raise Unavailable("No space left on device.")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "put", refuse)
        for _ in range(3):
            with pytest.raises(Unavailable):
                await daemon.pay(job, provider)

    assert (1, {"failed": 1}, (0, PRICE * 2)) == (
        provider.calls, await count_states(daemon), await read_spend(daemon)
    )  # fmt: skip
    value = await daemon.pay(job, provider)
    assert (2, b"a picture") == (provider.calls, value.data)


async def test_a_result_on_its_way_to_the_books_is_waited_for(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is away for so long that the attempt is given up; the next one must not pay again."""
    settle, is_back = daemon.ledger.settle, asyncio.Event()

    async def settle_late(*given: Any) -> bool:
        await is_back.wait()
        return await settle(*given)

    monkeypatch.setattr(daemon.ledger, "settle", settle_late)
    job, provider = await claim_job(daemon), Provider()
    given_up = asyncio.create_task(daemon.pay(job, provider))
    await provider.began.wait()
    for _ in range(2):  # the lease is lost, and ten seconds later the attempt is abandoned
        await asyncio.sleep(0.05)
        given_up.cancel()
    await asyncio.wait({given_up})
    await end_attempt(daemon, job)
    again = asyncio.create_task(daemon.pay(await claim_again(daemon, job.id), provider))
    await asyncio.sleep(0.1)
    assert 1 == provider.calls

    is_back.set()
    value = await again

    assert (1, True, {"done": 1}) == (provider.calls, value.reused, await count_states(daemon))


TIMED_OUT = '{"code": "timed_out", "message": "x"}'


@pytest.mark.parametrize("error", [TIMED_OUT, None], ids=["timed out", "handed back"])
async def test_another_process_too_waits_for_a_result_on_its_way_to_the_books(
    daemon: Daemon, storage: Storage, monkeypatch: pytest.MonkeyPatch, error: str | None
) -> None:
    """The attempt is given up after ten seconds, its result may take sixty: nobody may pay again meanwhile."""
    settle, is_back = daemon.ledger.settle, asyncio.Event()

    async def settle_late(*given: Any) -> bool:
        await is_back.wait()
        return await settle(*given)

    monkeypatch.setattr(daemon.ledger, "settle", settle_late)
    other = await start_daemon(daemon.db, storage, instance="two")
    job, provider = await claim_job(daemon), Provider()
    stranger = await claim_job(other)
    given_up = asyncio.create_task(daemon.pay(job, provider))
    await provider.began.wait()
    await asyncio.sleep(0.05)
    await end_attempt(daemon, job, error=error)
    waiting = [asyncio.create_task(other.pay(stranger, provider, name="a stranger's"))]
    await asyncio.sleep(0.3)
    waiting.append(asyncio.create_task(other.pay(await claim_again(other, job.id), provider)))
    await asyncio.sleep(0.3)
    assert (1, {"open": 1}) == (provider.calls, await count_states(daemon))

    is_back.set()
    values = await asyncio.gather(*waiting)

    assert [True, True] == [value.reused for value in values]
    assert (1, {"done": 1}, (0, PRICE)) == (
        provider.calls, await count_states(daemon), await read_spend(daemon)
    )  # fmt: skip
    with pytest.raises(Lost):
        await given_up


@pytest.mark.parametrize("error", [TIMED_OUT, None], ids=["timed out", "handed back"])
async def test_a_result_that_is_longer_on_its_way_than_booking_may_take_holds_up_nobody(
    daemon: Daemon, storage: Storage, error: str | None
) -> None:
    """Its process lives and has let go of it: without an end the next attempt would wait until the deadline."""
    other = await start_daemon(daemon.db, storage, instance="two")
    job, forgotten = await claim_job(daemon), Provider(gate=asyncio.Event())
    given_up = asyncio.create_task(daemon.pay(job, forgotten))
    await forgotten.began.wait()
    await end_attempt(daemon, job, error=error)
    again = await claim_again(other, job.id)
    await daemon.db.pool.execute(
        "update listingd.attempts set ended_at = now() - make_interval(secs => $1)", steps.BOOKING_S + 1
    )
    await daemon.db.pool.execute(
        "update listingd.job_states set started_at = now() - make_interval(secs => $1)", steps.BOOKING_S + 1
    )

    async with asyncio.timeout(20):
        value = await other.pay(again, Provider())

    assert not value.reused
    assert {"unknown": 1, "done": 1} == await count_states(other)
    given_up.cancel()
    await asyncio.wait({given_up})


@pytest.mark.parametrize("leaves", ["gives up", "is cancelled"])
@pytest.mark.parametrize("what", ["refused", "billed", "result", "intent"])
async def test_what_is_known_of_a_call_is_booked_when_the_database_is_back(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, what: str, leaves: str
) -> None:
    """An outage that outlasts everybody's patience: what is known stays known, and nothing counts at its estimate."""
    monkeypatch.setattr(steps, "BOOKING_S", 0.3)
    monkeypatch.setattr(steps, "TAKING_BACK_S", 0.3)
    monkeypatch.setitem(shield.settle.__kwdefaults__, "within_s", 0.3)  # type: ignore[arg-type]
    job, is_away, asked = await claim_job(daemon), True, asyncio.Event()
    errors = {"refused": refused(), "billed": refused(cost_usd="0.07")}

    def cut(write: Any) -> Any:
        async def try_to_write(*given: Any, **named: Any) -> Any:
            if is_away:
                if write == begin:
                    await write(*given, **named)  # and the answer is lost
                asked.set()
                raise Unavailable("The database is away.")
            return await write(*given, **named)

        return try_to_write

    begin = daemon.ledger.begin
    for name in ("settle", "fail", *(("begin",) if what == "intent" else ())):
        monkeypatch.setattr(daemon.ledger, name, cut(getattr(daemon.ledger, name)))
    booking = asyncio.create_task(daemon.steps.book_late())
    paying = asyncio.create_task(daemon.pay(job, Provider(error=errors.get(what), cost_usd=PRICE * 2)))
    await asked.wait()
    if leaves == "is cancelled":
        paying.cancel()
    await asyncio.gather(paying, return_exceptions=True)
    assert {"open": 1} == await count_states(daemon)
    booking.cancel()
    await asyncio.gather(booking, return_exceptions=True)

    is_away = False
    booking = asyncio.create_task(daemon.steps.book_late())  # as the service does, again and again

    async def is_booked() -> bool:
        return "open" not in await count_states(daemon)

    await eventually(is_booked)
    state, spent = {
        "refused": ("failed", Decimal(0)), "billed": ("failed", Decimal("0.07")),
        "result": ("done", PRICE * 2), "intent": ("failed", Decimal(0)),
    }[what]  # fmt: skip
    assert ({state: 1}, (0, spent)) == (await count_states(daemon), await read_spend(daemon))
    booking.cancel()
    await asyncio.wait({booking})


async def test_a_result_that_waits_for_the_database_is_not_bought_again(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is back, and the next attempt asks before the late books do."""
    monkeypatch.setattr(steps, "BOOKING_S", 0.2)
    job, provider = await claim_job(daemon), Provider()
    settle, is_away = daemon.ledger.settle, True

    async def settle_when_back(*given: Any) -> bool:
        if is_away:
            raise Unavailable("The database is away.")
        return await settle(*given)

    monkeypatch.setattr(daemon.ledger, "settle", settle_when_back)
    with pytest.raises(Unavailable):
        await daemon.pay(job, provider)
    is_away = False
    await end_attempt(daemon, job)
    again = asyncio.create_task(daemon.pay(await claim_again(daemon, job.id), provider))
    await asyncio.sleep(0.1)
    booking = asyncio.create_task(daemon.steps.book_late())

    value = await again

    assert (1, True, {"done": 1}) == (provider.calls, value.reused, await count_states(daemon))
    booking.cancel()
    await asyncio.wait({booking})


@pytest.mark.parametrize(("price", "ended"), [(PRICE, "unknown"), (Decimal(0), "failed")])
async def test_a_call_that_was_cut_off_is_booked_although_its_job_never_runs_again(
    daemon: Daemon, storage: Storage, price: Decimal, ended: str
) -> None:
    other = await start_daemon(daemon.db, storage, instance="two")
    lost, held = Provider(gate=asyncio.Event()), Provider(gate=asyncio.Event())
    dead, job = daemon.pay, await claim_job(daemon)
    calls = [
        asyncio.create_task(dead(job, lost, estimate_usd=price)),
        asyncio.create_task(other.pay(await claim_job(other, user_id="bob"), held, estimate_usd=price)),
    ]
    await asyncio.gather(lost.began.wait(), held.began.wait())
    await kill(daemon, other)
    await daemon.db.fetch("cancel_job", job.id, None)

    too_young = await daemon.db.fetch("close_abandoned_steps", 900.0, 100)
    closed = await daemon.db.fetch("close_abandoned_steps", 0.0, 100)

    assert ([], [(job.id, True)]) == (too_young, [(row["job_id"], row["ended"]) for row in closed])
    assert {"open": 1, ended: 1} == await count_states(daemon)
    assert (price, price) == await read_spend(daemon)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)


async def test_a_result_whose_file_is_gone_is_made_again(daemon: Daemon, storage: Storage) -> None:
    provider = Provider()
    job = await claim_job(daemon)
    await daemon.pay(job, provider)
    async for file in storage.list_older_than(-1):
        await storage.delete(file.sha256)

    value = await daemon.pay(job, provider)

    assert (2, False) == (provider.calls, value.reused)
    assert (0, 2 * PRICE) == await read_spend(daemon)


async def test_a_result_whose_file_is_damaged_is_made_again(daemon: Daemon, storage: Storage) -> None:
    provider = Provider()
    job = await claim_job(daemon)
    await daemon.pay(job, provider)
    async for file in storage.list_older_than(-1):
        path = storage.path(file.sha256)
        assert path is not None
        path.write_bytes(b"b picture")

    value = await daemon.pay(job, provider)

    assert (2, b"a picture") == (provider.calls, value.data)


async def test_a_paid_document_survives_what_the_database_refuses(daemon: Daemon) -> None:
    job = await claim_job(daemon)
    strange = {"nul": "a\x00b", "half": "\ud800", "nan": float("nan"), "smile": "\U0001f600"}
    await daemon.pay(job, Provider(document=strange, request_id="req-\udcff" + "x" * 300))

    value = await daemon.pay(job, Provider())

    assert {"nul": "a\ufffdb", "half": "\ufffd", "nan": None, "smile": "\U0001f600"} == value.document
    assert "req-?" + "x" * 195 == value.request_id


def test_json_for_the_books_is_left_alone_when_it_is_sound() -> None:
    assert '{"a": [1, "\\u00e9"], "usd": "1.5"}' == encode_json({"a": [1, "\u00e9"], "usd": Decimal("1.5")})


async def test_a_call_of_the_dead_holds_up_nobody_before_its_rescue(daemon: Daemon, storage: Storage) -> None:
    """Its lease is over: nobody will end this call, and its job may be rescued by a process that comes later."""
    other = await start_daemon(daemon.db, storage, instance="two")
    lost = Provider(gate=asyncio.Event())
    dead = asyncio.create_task(daemon.pay(await claim_job(daemon), lost))
    await lost.began.wait()
    await daemon.db.pool.execute(
        "update listingd.workers set lease_until = now() - interval '1 s' where id = $1", daemon.worker
    )

    async with asyncio.timeout(20):
        value = await other.pay(await claim_job(other), Provider())

    assert not value.reused
    assert {"unknown": 1, "done": 1} == await count_states(other)
    dead.cancel()
    await asyncio.wait({dead})


def test_an_identity_is_not_confused_by_joining() -> None:
    assert hash_identity(["ab", "c"]) != hash_identity(["a", "bc"])
    assert hash_identity(["a"]) != hash_identity(["a", ""])


async def test_an_erased_job_keeps_its_cost_and_loses_its_results(daemon: Daemon, storage: Storage) -> None:
    provider = Provider(document={"secret": "wording"})
    job = await claim_job(daemon)
    await daemon.pay(job, provider)
    await daemon.pay(job, Provider(cost_usd=Decimal(0)), "free", estimate_usd=Decimal(0))
    stored = [file.sha256 async for file in storage.list_older_than(-1)]

    freed = await daemon.db.pool.fetch("select sha256 from listingd.forget_steps($1) as f (sha256)", [job.id])

    assert stored == [row["sha256"] for row in freed]
    assert PRICE == (await read_cost(daemon, job.id))[1]
    assert 0 == await daemon.db.pool.fetchval(
        "select count(*) from listingd.steps where document is not null"
    )
    assert not (await daemon.pay(job, provider)).reused


async def test_a_parents_cost_counts_its_children(daemon: Daemon) -> None:
    parent, child = await claim_job(daemon), await claim_job(daemon)
    await daemon.db.pool.execute("update listingd.jobs set parent_id = $1 where id = $2", parent.id, child.id)
    await daemon.pay(parent, Provider(), "mine")
    await daemon.pay(child, Provider(), "its")

    assert (2 * PRICE, 2 * PRICE, 0) == await read_cost(daemon, parent.id)
    assert (PRICE, PRICE, 0) == await read_cost(daemon, child.id)


async def test_the_sweep_takes_orphans_and_nothing_else(daemon: Daemon, storage: Storage) -> None:
    value = await daemon.pay(await claim_job(daemon), Provider())
    orphan = await storage.put(b"nobody's", "text/plain")

    too_young = await sweep_orphans(daemon.db, storage)
    swept = await sweep_orphans(daemon.db, storage, age_s=-1)

    assert ((0, 0), (1, 8)) == (too_young, swept)
    assert not await storage.exists(orphan)
    assert value.data == (await daemon.pay(await claim_job(daemon), Provider())).data
