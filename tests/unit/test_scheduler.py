"""Who runs next: fairness, priorities with ageing, capacity, due times; and no fence is ever overlooked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from daemon import scheduler as scheduler_module
from daemon.scheduler import FenceCursor, Scheduler


class Clock:
    """Seconds that only pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(**kw: object) -> tuple[Scheduler, Clock]:
    clock = Clock()
    return Scheduler(["image", "pack", "ping"], clock=clock, **kw), clock  # type: ignore[arg-type]


def test_one_user_runs_first_come_first_served() -> None:
    scheduler, _ = make()
    for fence in range(1, 6):
        scheduler.add(fence, "ping", "a", 0)

    assert [1, 2, 3, 4, 5] == scheduler.take(10)


def test_what_is_taken_has_waited_since_it_was_due() -> None:
    """In the order of what was taken, whichever kinds and users it is of."""
    scheduler, clock = make()
    due_at: dict[int, float] = {}
    kinds: dict[int, str] = {}
    for fence, (kind, user_id) in enumerate(
        [("ping", "a"), ("image", "b"), ("ping", "b"), ("image", "a")] * 3
    ):
        clock.now += 1
        due_at[fence] = clock.now + (fence == 5)
        scheduler.add(fence, kind, user_id, 0, wait_s=float(fence == 5))
        kinds[fence] = kind
    clock.now += 10
    scheduler.promote_due()
    scheduler.take(2)

    taken = scheduler.take(20)

    assert [clock.now - due_at[fence] for fence in taken] == scheduler.last_waits_s([kinds[f] for f in taken])


def test_a_user_with_one_job_waits_for_one_turn_only() -> None:
    scheduler, clock = make()
    for fence in range(1, 10_001):
        scheduler.add(fence, "ping", "many", 0)
    started = scheduler.take(64)
    clock.now += 5

    scheduler.add(20_000, "ping", "one", 0)
    for _ in started:
        scheduler.ended("ping", "many")

    assert 20_000 in scheduler.take(2)


def test_users_take_turns() -> None:
    scheduler, _ = make()
    for index in range(10):
        scheduler.add(100 + index, "ping", "a", 0)
        scheduler.add(200 + index, "ping", "b", 0)
        scheduler.add(300 + index, "image", "c", 0)

    taken = scheduler.take(9)

    assert Counter({1: 3, 2: 3, 3: 3}) == Counter(fence // 100 for fence in taken)


def test_weights_are_shares_of_the_turns() -> None:
    scheduler, _ = make()
    scheduler.configure_users({"heavy": 3.0}, frozenset())
    for index in range(40):
        scheduler.add(1000 + index, "ping", "heavy", 0)
        scheduler.add(2000 + index, "ping", "light", 0)

    taken = Counter(fence // 1000 for fence in scheduler.take(20))

    assert taken[1] == pytest.approx(15, abs=1)


def test_idling_saves_up_no_credit() -> None:
    scheduler, _ = make()
    for fence in range(1, 101):
        scheduler.add(fence, "ping", "busy", 0)
    scheduler.take(50)
    for fence in range(1001, 1101):
        scheduler.add(fence, "ping", "late", 0)

    taken = Counter("late" if fence > 1000 else "busy" for fence in scheduler.take(20))

    assert 10 == pytest.approx(taken["late"], abs=1)


def test_jobs_that_ran_while_nobody_waited_are_no_debt() -> None:
    """Of a day with two at once born into free slots, a user would wait for as many turns of the others."""
    scheduler, _ = make()
    scheduler.admit("ping", "steady")
    for _ in range(1000):
        assert scheduler.admit("ping", "steady")
        scheduler.ended("ping", "steady")
    for fence in range(1, 101):
        scheduler.add(fence, "ping", "many", 0)

    scheduler.add(1000, "ping", "steady", 0)

    assert 1000 in scheduler.take(3), "after a turn of the others for what runs, and one for itself"


def _hold_a_user(scheduler: Scheduler, held: bool) -> None:
    scheduler.configure_users({}, frozenset({"blocked"} if held else ()))


def _pause_a_kind(scheduler: Scheduler, paused: bool) -> None:
    scheduler.configure_kind("image", limit=None, paused=paused)


@pytest.mark.parametrize("block", [_hold_a_user, _pause_a_kind])
def test_being_held_saves_up_no_credit(block: Callable[[Scheduler, bool], None]) -> None:
    """Else the first who is let go has all the turns of a day, and everybody else has none."""
    scheduler, _ = make()
    for fence in range(1, 1001):
        scheduler.add(fence, "image", "blocked", 0)
    block(scheduler, True)
    for fence in range(2001, 2201):
        scheduler.add(fence, "ping", "busy", 0)
    scheduler.take(100)

    block(scheduler, False)

    taken = Counter("busy" if fence > 2000 else "blocked" for fence in scheduler.take(20))
    assert 10 == pytest.approx(taken["busy"], abs=1)


def test_a_user_without_jobs_is_forgotten() -> None:
    scheduler, _ = make()
    scheduler.add(1, "ping", "many", 0)
    for user in "abc":
        for _ in range(3):
            assert scheduler.admit("ping", user)
        for _ in range(3):
            scheduler.ended("ping", user)

    assert [1] == scheduler.take(1)
    scheduler.ended("ping", "many")
    scheduler.configure_users({}, frozenset())

    assert {"many"} >= scheduler.users.keys(), "named until the next turn"


def test_who_has_one_long_job_running_saves_up_no_credit_either() -> None:
    scheduler, _ = make()
    scheduler.add(1, "ping", "late", 0)
    scheduler.take(1)  # runs all the while, so that "late" is not forgotten
    for fence in range(101, 201):
        scheduler.add(fence, "ping", "busy", 0)
    scheduler.take(50)
    for fence in range(1001, 1101):
        scheduler.add(fence, "ping", "late", 0)

    taken = Counter("late" if fence > 1000 else "busy" for fence in scheduler.take(20))

    assert 10 == pytest.approx(taken["late"], abs=1)


def test_what_one_user_took_alone_is_counted_by_weight_too() -> None:
    scheduler, _ = make()
    scheduler.configure_users({"heavy": 4.0}, frozenset())
    for fence in range(1001, 1101):
        scheduler.add(fence, "ping", "heavy", 0)
    scheduler.take(40)
    for fence in range(2001, 2101):
        scheduler.add(fence, "ping", "light", 0)

    taken = Counter(fence // 1000 for fence in scheduler.take(20))

    assert 16 == pytest.approx(taken[1], abs=1)


def test_jobs_started_at_birth_or_at_sight_are_turns_too() -> None:
    """Else a user whose jobs come one by one would have the turns of two."""
    scheduler, _ = make()
    for _ in range(4):
        assert scheduler.admit("ping", "early")
        scheduler.count_fresh("ping", "early")
    for index in range(20):
        scheduler.add(1000 + index, "ping", "early", 0)
        scheduler.add(2000 + index, "ping", "other", 0)

    taken = Counter(fence // 1000 for fence in scheduler.take(16))

    assert 12 == pytest.approx(taken[2], abs=1)


def test_a_refused_place_costs_no_turn() -> None:
    scheduler, _ = make()
    scheduler.configure_kind("ping", limit=None, paused=False, shared_limit=1)
    for index in range(10):
        scheduler.add(1000 + index, "ping", "a", 0)
        scheduler.add(2000 + index, "ping", "b", 0)
    for _ in range(5):
        assert [1000] == scheduler.take(1)
        scheduler.put_back([(1000, "ping", "a")])
        scheduler.reopen()
    scheduler.configure_kind("ping", limit=None, paused=False, shared_limit=10)

    taken = Counter(fence // 1000 for fence in scheduler.take(10))

    assert {1: 5, 2: 5} == taken


def test_priority_goes_first_but_only_for_its_head_start() -> None:
    scheduler, clock = make(priority_step_s=6.0)
    scheduler.add(1, "ping", "a", 0)
    clock.now += 59
    scheduler.add(2, "ping", "a", 10)
    clock.now += 2
    scheduler.add(3, "ping", "a", 10)

    assert [2, 1, 3] == scheduler.take(3)


def test_the_lowest_priority_waits_for_a_bounded_time() -> None:
    """With one new job of the highest priority each second for ever, the lowest one still starts."""
    scheduler, clock = make(priority_step_s=6.0)
    scheduler.add(1, "ping", "a", -100)
    waited = 0
    for fence in range(2, 2000):
        clock.now += 1
        waited += 1
        scheduler.add(fence, "ping", "a", 100)
        if scheduler.take(1) == [1]:
            break

    assert 1200 == pytest.approx(waited, abs=2)


def test_a_full_kind_lets_the_others_pass() -> None:
    scheduler, _ = make()
    scheduler.configure_kind("image", limit=2, paused=False)
    for fence in range(1, 6):
        scheduler.add(fence, "image", "a", 0)
    scheduler.add(10, "ping", "a", 0)

    assert {1, 2, 10} == set(scheduler.take(10))
    scheduler.ended("image", "a")
    assert [3] == scheduler.take(10)


def test_a_paused_kind_keeps_its_jobs() -> None:
    scheduler, _ = make()
    scheduler.configure_kind("image", limit=None, paused=True)
    scheduler.add(1, "image", "a", 0)

    assert [] == scheduler.take(5)
    scheduler.configure_kind("image", limit=None, paused=False)
    assert [1] == scheduler.take(5)


def test_a_paused_user_keeps_their_jobs_and_place() -> None:
    scheduler, _ = make()
    scheduler.add(1, "ping", "held", 0)
    scheduler.configure_users({}, frozenset({"held"}))
    scheduler.add(2, "ping", "held", 0)

    assert [] == scheduler.take(5)
    scheduler.configure_users({}, frozenset())
    assert [1, 2] == scheduler.take(5)


def test_a_due_time_is_kept() -> None:
    scheduler, clock = make()
    scheduler.add(1, "ping", "a", 0, wait_s=2.0)

    assert [] == scheduler.take(1)
    assert 2.0 == scheduler.promote_due()
    clock.now += 2.0
    assert scheduler.promote_due() is None
    assert [1] == scheduler.take(1)


def test_a_birth_needs_room_and_no_older_job() -> None:
    scheduler, _ = make()
    scheduler.configure_kind("image", limit=1, paused=False)

    assert scheduler.admit("image", "a")
    assert not scheduler.admit("image", "b"), "the kind is full"
    scheduler.add(1, "ping", "a", 0)
    assert not scheduler.admit("ping", "a"), "an older job of the user waits"
    assert scheduler.admit("ping", "b")
    assert not scheduler.admit("unknown", "a")


def test_new_jobs_may_start_at_sight_when_nobody_waits_and_no_limit_is_near() -> None:
    scheduler, _ = make(user_limit=5)
    scheduler.configure_kind("image", limit=4, paused=False)
    scheduler.configure_kind("pack", limit=None, paused=False, shared_limit=100)

    assert (5, ["ping"]) == scheduler.find_room(32)
    assert (2, ["image", "ping"]) == scheduler.find_room(2)

    for _ in range(3):
        scheduler.count_fresh("ping", "a")
    assert (2, ["image", "ping"]) == scheduler.find_room(32)

    scheduler.add(1, "ping", "b", 0)
    assert (0, []) == scheduler.find_room(32)


def test_jobs_that_cannot_start_do_not_hold_back_new_ones() -> None:
    scheduler, _ = make()
    scheduler.configure_kind("image", limit=None, paused=True)
    scheduler.configure_users({}, frozenset({"held"}))
    scheduler.add(1, "image", "a", 0)
    scheduler.add(2, "ping", "held", 0)

    assert (32, ["pack", "ping"]) == scheduler.find_room(32)
    assert ["held"] == scheduler.waiting_users()


def test_what_a_user_has_too_much_of_stays_in_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "MAX_HEADERS", 100)
    scheduler, _ = make()
    for fence in range(1, 301):
        scheduler.add(fence, "ping", "a", 0)
    scheduler.add(500, "ping", "b", 0)

    assert 101 == scheduler.lowest_fence() or scheduler.lowest_fence() == 1
    assert 500 in scheduler.take(2)
    taken = scheduler.take(90)
    for fence in taken:
        scheduler.known.pop(fence)
    assert ("a", 101) == scheduler.spilled()


@pytest.mark.parametrize(
    ("limit", "free_slots", "code"), [(0, 4, "kind_full"), (None, 0, "no_free_slot"), (None, 4, "starting")]
)
def test_explain_names_the_first_reason(limit: int | None, free_slots: int, code: str) -> None:
    scheduler, _ = make()
    scheduler.configure_kind("ping", limit=limit, paused=False)
    scheduler.add(1, "ping", "a", 0)

    assert code == scheduler.explain(fence=1, kind="ping", user_id="a", free_slots=free_slots).code


def test_explain_tells_a_user_that_others_have_their_turn() -> None:
    scheduler, _ = make()
    for fence in range(1, 5):
        scheduler.add(fence, "ping", "a", 0)
    scheduler.add(10, "ping", "b", 0)
    scheduler.take(1)

    reason = scheduler.explain(fence=2, kind="ping", user_id="a", free_slots=1)

    assert ("other_users_turn", 1) == (reason.code, reason.numbers["ahead"])


def test_position_counts_one_job_of_each_other_user_for_each_of_ones_own() -> None:
    scheduler, _ = make()
    for index in range(5):
        scheduler.add(100 + index, "ping", "a", 0)
        scheduler.add(200 + index, "ping", "b", 0)
    scheduler.add(300, "ping", "c", 0)

    assert (2, 6) == (scheduler.position(300, "ping", "c"), scheduler.position(102, "ping", "a"))
    assert scheduler.position(999, "ping", "c") is None


@given(st.permutations(range(1, 25)), st.data())
def test_no_fence_is_overlooked_whatever_the_order_of_commits(order: list[int], data: st.DataObject) -> None:
    """Fences become visible in any order; the cursor asks for each until it was seen."""
    cursor = FenceCursor()
    visible: set[int] = set()
    seen: set[int] = set()
    pending = list(order)
    while pending:
        for _ in range(data.draw(st.integers(1, 5))):
            if pending:
                visible.add(pending.pop())
        for fence in sorted(f for f in visible if f > cursor.last or f in cursor.holes):
            seen.add(fence)
            cursor.saw(fence)
        cursor.settle(oldest=1, following=2, now=9.0)  # a transaction from before the first fence still runs

    assert set(range(1, 25)) == seen
    assert not cursor.holes


def test_a_hole_is_forgotten_once_nobody_can_fill_it() -> None:
    cursor = FenceCursor()
    cursor.saw(5)
    cursor.settle(oldest=100, following=110, now=0.0)
    cursor.settle(oldest=100, following=111, now=2.0)
    assert {1, 2, 3, 4} == cursor.holes
    cursor.settle(oldest=110, following=120, now=3.0)
    assert {1, 2, 3, 4} == cursor.holes
    cursor.settle(oldest=111, following=121, now=4.0)
    assert not cursor.holes


def test_a_hole_waits_for_a_transaction_that_got_its_number_after_its_fence() -> None:
    cursor = FenceCursor()
    cursor.saw(5)  # transaction 110 has drawn 4 and has no number yet
    cursor.settle(oldest=110, following=110, now=0.0)
    for now in (0.1, 5.0, 10.0):  # it has its number and stays open
        cursor.settle(oldest=110, following=111, now=now)
    assert 4 in cursor.holes

    cursor.settle(oldest=111, following=111, now=11.0)

    assert not cursor.holes


@dataclass
class Model:
    """What should be true of the scheduler, kept the slow way."""

    ready: dict[int, tuple[str, str]] = field(default_factory=dict)
    running: dict[int, tuple[str, str]] = field(default_factory=dict)


class SchedulerMachine(RuleBasedStateMachine):
    """Whatever happens: nothing runs twice, limits hold, nothing ready is lost, a user's own order is kept."""

    @initialize(limit=st.integers(1, 4), is_shared=st.booleans(), user_limit=st.sampled_from([None, 1, 3]))
    def begin(self, limit: int, is_shared: bool, user_limit: int | None) -> None:
        self.clock = Clock()
        self.scheduler = Scheduler(["image", "ping"], clock=self.clock, user_limit=user_limit)
        self.scheduler.configure_kind(
            "image",
            limit=None if is_shared else limit,
            shared_limit=limit if is_shared else None,
            paused=False,
        )
        self.limit, self.is_shared, self.user_limit = limit, is_shared, user_limit or 1 << 30
        self.held: frozenset[str] = frozenset()
        self.model = Model()
        self.scores: dict[int, float] = {}
        self.fence = 0

    @rule(
        kind=st.sampled_from(["image", "ping"]), user=st.sampled_from("abc"), priority=st.integers(-100, 100)
    )
    def add(self, kind: str, user: str, priority: int) -> None:
        self.fence += 1
        assert self.scheduler.add(self.fence, kind, user, priority)
        assert not self.scheduler.add(self.fence, kind, user, priority), "the same fence is held once"
        self.model.ready[self.fence] = (kind, user)
        self.scores[self.fence] = self.clock.now - priority * 6.0

    @rule(slots=st.integers(1, 6), data=st.data())
    def take(self, slots: int, data: st.DataObject) -> None:
        was_full = self.scheduler.kinds["image"].is_full
        taken = self.scheduler.take(slots)
        assert len(taken) <= slots
        assert len(set(taken)) == len(taken)
        self.order_is_kept(taken)
        for fence in taken:
            self.model.running[fence] = self.model.ready.pop(fence)
            self.scheduler.known.pop(fence)
        if len(taken) < slots:
            assert not [
                owner for owner in self.model.ready.values() if self.can_run(*owner, was_full=was_full)
            ], "slots were left free although a job could run"
        if self.is_shared:  # of those, other daemons were faster with some
            images = [fence for fence in taken if self.model.running[fence][0] == "image"]
            refused = images[len(images) - data.draw(st.integers(0, len(images))) :]
            self.scheduler.put_back((fence, *self.model.running[fence]) for fence in refused)
            for fence in refused:
                self.model.ready[fence] = self.model.running.pop(fence)

    def order_is_kept(self, taken: list[int]) -> None:
        """Within one user and kind the lowest score goes first (to the jitter of one moment read twice)."""
        for owner in {self.model.ready[fence] for fence in taken}:
            scores = [self.scores[fence] for fence in taken if self.model.ready[fence] == owner]
            left = [self.scores[f] for f, of in self.model.ready.items() if of == owner and f not in taken]
            for earlier, later in pairwise([*scores, min(left, default=float("inf"))]):
                assert earlier <= later + scheduler_module.JITTER_S

    def can_run(self, kind: str, user: str, *, was_full: bool) -> bool:
        of_user = sum(1 for _, owner in self.model.running.values() if owner == user)
        if user in self.held or of_user >= self.user_limit:
            return False
        return kind == "ping" or not (was_full or self.running("image") >= self.limit)

    @rule()
    def reopen(self) -> None:
        self.scheduler.reopen()

    @rule(held=st.frozensets(st.sampled_from("abc")), weight=st.sampled_from([0.5, 1.0, 4.0]))
    def hold(self, held: frozenset[str], weight: float) -> None:
        self.scheduler.configure_users({"b": weight}, held)
        self.held = held

    @precondition(lambda self: self.model.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        fence = data.draw(st.sampled_from(sorted(self.model.running)))
        self.scheduler.ended(*self.model.running.pop(fence))

    @rule(user=st.sampled_from("abc"), kind=st.sampled_from(["image", "ping"]))
    def birth(self, user: str, kind: str) -> None:
        older = any(owner == user for _, owner in self.model.ready.values())
        if self.scheduler.admit(kind, user):
            assert not older
            assert not (kind == "image" and self.is_shared), "it must ask for a place"
            assert user not in self.held
            self.fence += 1
            self.model.running[self.fence] = (kind, user)

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    def running(self, kind: str) -> int:
        return sum(1 for k, _ in self.model.running.values() if k == kind)

    @invariant()
    def limits_hold(self) -> None:
        if hasattr(self, "model"):
            assert self.running("image") <= self.limit
            assert self.scheduler.ready == len(self.model.ready)
            assert set(self.scheduler.known) == set(self.model.ready)
            assert self.scheduler.kinds["image"].running == self.running("image")
            for user in "abc":
                running = sum(1 for _, owner in self.model.running.values() if owner == user)
                assert running <= self.user_limit

    def teardown(self) -> None:
        """Nobody is stuck: with everything let go, all that is ready runs in the end."""
        if not hasattr(self, "model"):
            return
        self.scheduler.configure_users({}, frozenset())
        self.scheduler.reopen()
        for _ in range(2 * len(self.model.ready) + len(self.model.running) + 2):
            for fence in list(self.model.running):
                self.scheduler.ended(*self.model.running.pop(fence))
            for fence in self.scheduler.take(3):
                self.model.running[fence] = self.model.ready.pop(fence)
                self.scheduler.known.pop(fence)
        assert not self.model.ready


TestSchedulerMachine = SchedulerMachine.TestCase
