"""Who runs next: capacity, fairness between users, priorities, due times; and why a job is not running.

Pure memory, no I/O: the feeder tells it what is ready (`add`), the workers ask what to claim (`take`) and
report what they started and ended. Everything here may be lost at any moment: it is read again from
job_states, walking upwards in the order of `fence` (see FenceCursor).

    fence order --add--> per user, per kind: a backlog by score       take: the user whose turn it is,
    run_at in future --> timers ------due-------^                           then that user's best score

Score: seconds, smaller is sooner: when the job became ready, minus priority_step_s for each point of
priority. So a job of priority p is overtaken only by jobs that became ready less than
(p' - p) * priority_step_s after it: ageing with a proven bound, and a score never changes.

Turns: each user has a virtual time that grows by 1/weight with every job started; the smallest goes first.
A user who comes back from idling, or could not run for a while, goes on at the current virtual time: no credit is
saved up. Nor is debt for what was started while nobody waited, beyond what of it still runs. So a user with one job
waits for at most one turn of the others, whoever has ten thousand.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, filterfalse
from time import monotonic

MAX_HEADERS = 200_000
"""Pending jobs held in memory over all users; beyond a user's share they stay in the database alone."""

NUMBERED_AFTER_S = 1.0
"""A transaction that has drawn a fence has its number within so many seconds: the next thing it does is to write."""

JITTER_S = 0.3
"""Two reads may differ by so much about when jobs became ready."""

NO_LIMIT = 1 << 30

MIN_SHARE = 64
"""Headers that each user may always hold."""


class Horizon:
    """A point in time, and whether every transaction that may have drawn a fence before it has ended.

    Those that have a number by then are known by it: they are below the first number not given yet. But a fence
    is drawn a moment before its transaction gets a number, so the numbers are looked at NUMBERED_AFTER_S later.
    """

    __slots__ = ("_following", "_made_at")

    def __init__(self, now: float) -> None:
        self._made_at = now
        self._following: int | None = None

    def is_past(self, oldest: int, following: int, now: float) -> bool:
        """oldest: the lowest transaction still running; following: the first not begun (pg_current_snapshot)."""
        if self._following is None:
            if now - self._made_at >= NUMBERED_AFTER_S:
                self._following = following
            return False
        return self._following <= oldest


class FenceCursor:
    """Which fences were seen: everything up to `last`, save the holes.

    A fence is drawn inside a transaction and seen only after its commit, so a lower one may appear after a
    higher one. Each fence skipped is a hole until it is seen, or until every transaction that could have drawn
    it has ended (it was rolled back, or its row has got a higher one since).
    """

    __slots__ = ("_waiting", "holes", "last")

    def __init__(self, last: int = 0) -> None:
        self.last = last
        self.holes: set[int] = set()
        self._waiting: list[tuple[Horizon, list[int]]] = []

    def saw(self, fence: int) -> None:
        """Note one fence; call in ascending order within a read."""
        if fence > self.last:
            if fence > self.last + 1:
                self.holes.update(range(self.last + 1, fence))
            self.last = fence
        else:
            self.holes.discard(fence)

    def saw_all(self, fences: Sequence[int]) -> None:
        """Note the fences of one read, in ascending order."""
        if fences and fences[0] == self.last + 1 and fences[-1] == self.last + len(fences):
            self.last = fences[-1]  # without a gap: the usual case
            return
        for fence in fences:
            self.saw(fence)

    def settle(self, oldest: int, following: int, now: float) -> None:
        """Drop the holes that can no longer be filled.

        oldest, following: as Horizon's, of the snapshot in which all the holes were last looked for (a later one
        may know of the end of a transaction whose row nobody has looked for); now: seconds, monotonic.
        """
        kept: list[tuple[Horizon, list[int]]] = []
        known: set[int] = set()
        for horizon, fences in self._waiting:
            if horizon.is_past(oldest, following, now):
                self.holes.difference_update(fences)
            else:
                kept.append((horizon, fences))
                known.update(fences)
        fresh = self.holes - known
        if fresh:
            kept.append((Horizon(now), list(fresh)))
        self._waiting = kept


Entry = tuple[float, int, float]
"""(score, fence, clock when it became ready)"""


class Backlog:
    """One user's ready jobs of one kind, smallest entry first.

    Jobs mostly become ready in the order in which they run: those are a plain row, and only what comes out of
    order goes to a heap beside it.
    """

    __slots__ = ("heap", "row")

    def __init__(self) -> None:
        self.row: deque[Entry] = deque()
        self.heap: list[Entry] = []

    def __len__(self) -> int:
        return len(self.row) + len(self.heap)

    def __iter__(self) -> Iterator[Entry]:
        yield from self.row
        yield from self.heap

    def push(self, entry: Entry) -> None:
        if not self.row or entry >= self.row[-1]:
            self.row.append(entry)
        else:
            heapq.heappush(self.heap, entry)

    def peek(self) -> Entry:
        """The first entry. Errors: IndexError when empty."""
        if self.heap and (not self.row or self.heap[0] < self.row[0]):
            return self.heap[0]
        return self.row[0]

    def pop(self) -> Entry:
        """The first entry, taken out. Errors: IndexError when empty."""
        if self.heap and (not self.row or self.heap[0] < self.row[0]):
            return heapq.heappop(self.heap)
        return self.row.popleft()


@dataclass(slots=True)
class UserQueue:
    """One user's ready jobs, per kind."""

    user_id: str
    weight: float = 1.0
    turn: float = 0.0  # virtual time: smallest goes first
    running: int = 0
    size: int = 0
    paused: bool = False
    spilled_from: int | None = None  # first fence left in the database for want of room
    backlogs: dict[str, Backlog] = field(default_factory=dict)


@dataclass(slots=True)
class KindQueue:
    """One kind: how many may run, how many do, and the users who have ready jobs of it.

    limit: None = bounded by the free slots alone. is_shared: the limit is one of all daemons together, and
    what is taken must get its place there. is_full: there was none, until `reopen`. turns: heap of
    (turn, serial, user); an entry whose turn is older than the user's is put right when it comes up.
    """

    kind: str
    limit: int | None = None
    is_shared: bool = False
    is_full: bool = False
    paused: bool = False
    running: int = 0
    ready: int = 0
    turns: list[tuple[float, int, UserQueue]] = field(default_factory=list)
    queued_users: set[str] = field(default_factory=set)

    def room(self) -> int:
        if self.paused or self.is_full:
            return 0
        return NO_LIMIT if self.limit is None else self.limit - self.running


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a pending job is not running: a stable code and the numbers behind it."""

    code: str
    message: str
    numbers: dict[str, float | int | str] = field(default_factory=dict)


class Scheduler:
    """The ready jobs of this process's kinds, and whose turn it is.

    kinds: what this process can run; others are ignored. user_limit: jobs of one user that run at once here.
    clock: seconds, monotonic.
    """

    def __init__(
        self,
        kinds: Iterable[str],
        *,
        priority_step_s: float = 6.0,
        user_limit: int | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.kinds = {kind: KindQueue(kind) for kind in kinds}
        self.users: dict[str, UserQueue] = {}
        self.known: dict[int, tuple[str, str]] = {}  # fence -> (kind, user) of all that is held here
        self.timers: list[tuple[float, int, str, str, int]] = []  # (due at, fence, kind, user, priority)
        self._step_s = priority_step_s
        self._user_limit = NO_LIMIT if user_limit is None else user_limit
        self._clock = clock
        self._turn = 0.0  # the virtual time of the last job started
        self._serial = 0
        self._taken: dict[int, Entry] = {}  # of what the last `take` took in shared kinds
        self._weights: dict[str, float] = {}
        self._paused_users: frozenset[str] = frozenset()
        self.waits_s: defaultdict[str, list[float]] = defaultdict(list)  # of what was taken, for the metrics
        self._spilled: set[str] = set()  # the users with a spilled_from
        self.claiming: set[int] = set()  # fences of the claims in flight, which are held here no more

    # -- what is ready ---------------------------------------------------------------------------------

    def add(
        self, fence: int, kind: str, user_id: str, priority: int, *, wait_s: float = 0.0, age_s: float = 0.0
    ) -> bool:
        """Hold one pending job; False when it is another's kind, is held already, or spilled."""
        if wait_s > 0:
            if fence in self.known or kind not in self.kinds:
                return False
            self.known[fence] = (kind, user_id)
            heapq.heappush(self.timers, (self._clock() + wait_s, fence, kind, user_id, priority))
            return True
        return self.add_many((fence,), kind, user_id, priority, age_s=age_s) == 1

    def add_many(
        self, fences: Iterable[int], kind: str, user_id: str, priority: int, *, age_s: float = 0.0
    ) -> int:
        """Hold ready jobs that are alike; how many are new here and not spilled."""
        queue = self.kinds.get(kind)
        if queue is None:
            return 0
        user = self.users.get(user_id) or self._meet(user_id)
        if user.size == 0 and user.turn < self._turn:
            user.turn = self._turn  # no credit for the time without work
        backlog = user.backlogs.get(kind)
        if backlog is None:
            backlog = user.backlogs[kind] = Backlog()
        # Once something of a user is spilled, later jobs join it in the database, so that order is kept;
        # a positive priority may still come in, up to twice the share.
        share = max(MIN_SHARE, MAX_HEADERS // len(self.users))
        ready_at = self._clock() - age_s
        score = ready_at - priority * self._step_s
        if backlog.row and 0 < backlog.row[-1][0] - score < JITTER_S:
            score = backlog.row[-1][0]  # the same moment, read twice: in the order of fences
        owner = (kind, user_id)
        before = user.size
        for fence in fences:
            if fence in self.known or fence in self.claiming:
                continue
            full = user.size >= share or user.spilled_from is not None
            if full and (priority <= 0 or user.size >= 2 * share):
                if user.spilled_from is None or fence < user.spilled_from:
                    user.spilled_from = fence
                    self._spilled.add(user_id)
                continue
            backlog.push((score, fence, ready_at))
            self.known[fence] = owner
            user.size += 1
        added = user.size - before
        queue.ready += added
        if added and user_id not in queue.queued_users:
            queue.queued_users.add(user_id)
            self._serial += 1
            heapq.heappush(queue.turns, (user.turn, self._serial, user))
        return added

    def _meet(self, user_id: str) -> UserQueue:
        user = self.users[user_id] = UserQueue(
            user_id, weight=self._weights.get(user_id, 1.0), turn=self._turn,
            paused=user_id in self._paused_users,
        )  # fmt: skip
        return user

    def promote_due(self) -> float | None:
        """Move what is due from the timers to the ready jobs; seconds until the next, None without one."""
        now = self._clock()
        while self.timers and self.timers[0][0] <= now:
            due_at, fence, kind, user_id, priority = heapq.heappop(self.timers)
            self.known.pop(fence, None)
            self.add(fence, kind, user_id, priority, age_s=now - due_at)
        return self.timers[0][0] - now if self.timers else None

    def spilled(self) -> tuple[str, int] | None:
        """A user whose share has room again, with the fence from which to read on; None without one."""
        for user_id in self._spilled:
            user = self.users[user_id]
            if user.spilled_from is not None and user.size <= MIN_SHARE // 2:
                return user_id, user.spilled_from
        return None

    def is_spilled(self, user_id: str) -> bool:
        """Whether jobs of this user are left in the database for want of room."""
        return user_id in self._spilled

    def begin_refill(self, user_id: str) -> None:
        """The caller reads this user's jobs from `spilled_from` on and adds them again."""
        self._spilled.discard(user_id)
        self.users[user_id].spilled_from = None

    # -- whose turn it is ------------------------------------------------------------------------------

    def take(self, slots: int) -> list[int]:
        """Up to `slots` fences to claim now, in the order of turns; they count as running from here on.

        A fence that the claim then does not get back must be given to `ended`, one of a shared kind that got
        no place to `put_back`.
        """
        chosen: list[int] = []
        self._taken.clear()
        while len(chosen) < slots:
            waiting = [queue for queue in self.kinds.values() if queue.ready and queue.room() > 0]
            if len(waiting) == 1:  # no other kind to weigh: the usual case, and ten times as fast
                self._take_from(waiting[0], slots, chosen)
                break
            best = min(waiting, key=self._next_turn, default=None)
            if best is None or self._next_turn(best) == math.inf:
                break
            self._start(best, best.turns[0][2], 1, chosen)
        return chosen

    def last_waits_s(self, kinds: Sequence[str]) -> list[float]:
        """For how many seconds each job of the last `take` had been ready. kinds: theirs, in the order of its answer."""
        waits = {kind: reversed(self.waits_s[kind]) for kind in set(kinds)}
        return [next(waits[kind]) for kind in reversed(kinds)][::-1]

    def _take_from(self, queue: KindQueue, slots: int, chosen: list[int]) -> None:
        """Take from one kind, in the order of its users' turns, until `slots` are chosen."""
        while len(chosen) < slots and (room := queue.room()) > 0 and self._next_turn(queue) < math.inf:
            count = min(slots - len(chosen), room)
            user = queue.turns[0][2]
            if queue.is_shared:
                self._start(queue, user, 1, chosen)
            elif len(queue.turns) == 1:  # nobody else waits: in one go
                self._start(queue, user, min(count, self._user_limit - user.running), chosen)
            else:
                self._take_turns(queue, count, chosen)

    def _take_turns(self, queue: KindQueue, count: int, chosen: list[int]) -> None:
        """`_start` of one job after the other, each of the user whose turn it is, until `count` are chosen or one
        user is left. In one loop, because with many users it is most of what a job costs here.
        """
        turns, kind, waits_s, now = queue.turns, queue.kind, self.waits_s[queue.kind], self._clock()
        left = count
        while left and len(turns) > 1:
            turn, _, user = turns[0]
            backlog = user.backlogs.get(kind)
            is_waiting = backlog is not None and (backlog.row or backlog.heap)
            if not is_waiting or turn < user.turn or user.paused or user.running >= self._user_limit:
                self._next_turn(queue)
                continue
            assert backlog is not None
            _, fence, ready_at = backlog.pop()
            chosen.append(fence)
            waits_s.append(now - ready_at)
            user.size -= 1
            user.running += 1
            self._turn = max(self._turn, user.turn)
            user.turn = self._turn + 1.0 / user.weight
            self._serial += 1
            heapq.heapreplace(turns, (user.turn, self._serial, user))
            left -= 1
        queue.ready -= count - left
        queue.running += count - left

    def _next_turn(self, queue: KindQueue) -> float:
        """The turn of the user at the head of a kind, after putting stale heads right."""
        turns = queue.turns
        while turns:
            turn, _, user = turns[0]
            if user.paused or user.running >= self._user_limit or not user.backlogs.get(queue.kind):
                heapq.heappop(turns)
                queue.queued_users.discard(user.user_id)
                self._drop_idle(user)
            elif turn < user.turn:
                self._serial += 1
                heapq.heapreplace(turns, (user.turn, self._serial, user))
            else:
                return turn
        return math.inf

    def _start(self, queue: KindQueue, user: UserQueue, count: int, chosen: list[int]) -> None:
        """Take up to `count` of a user's jobs of a kind; one when the kind is shared with other daemons."""
        backlog = user.backlogs[queue.kind]
        if queue.is_shared:
            entry = backlog.peek()
            self._taken[entry[1]] = entry
            count = 1
        taken = min(count, len(backlog))
        waits_s = self.waits_s[queue.kind]
        now = self._clock()
        for _ in range(taken):
            _, fence, ready_at = backlog.pop()
            chosen.append(fence)
            waits_s.append(now - ready_at)
        user.size -= taken
        user.running += taken
        began = max(self._turn, user.turn)  # no credit for the time in which they could not run
        self._turn = began + (taken - 1) / user.weight
        user.turn = began + taken / user.weight
        queue.ready -= taken
        queue.running += taken

    def admit(self, kind: str, user_id: str) -> bool:
        """Whether a new job may start at birth: the kind has room and the user has no older ready job.

        True counts it as running. Whether a slot is free is the caller's to know.
        """
        queue = self.kinds.get(kind)
        if queue is None or queue.is_shared or queue.room() <= 0:
            return False
        user = self.users.get(user_id)
        if user is None:
            if user_id in self._paused_users:
                return False
            user = self._meet(user_id)
        if user.paused or user.size or user.spilled_from is not None or user.running >= self._user_limit:
            return False
        self._count_started(queue, user)
        return True

    def find_room(self, most: int) -> tuple[int, list[str]]:
        """How many jobs (`most` at most) of which kinds may start without a look at turns and priorities: nothing
        that could start is waiting here, and so many are within every limit whoever's they are.
        """
        queues = self.kinds.values()
        if any(queue.ready and queue.room() > 0 and self._next_turn(queue) < math.inf for queue in queues):
            return 0, []
        if self._user_limit < NO_LIMIT:
            most = min(most, self._user_limit - max((u.running for u in self.users.values()), default=0))
        return most, [queue.kind for queue in queues if not queue.is_shared and queue.room() >= most]

    def waiting_users(self) -> list[str]:
        """Users whose new jobs may not start at once: on hold, or with older ones in the database alone."""
        return [*self._paused_users, *self._spilled]

    def count_fresh(self, kind: str, user_id: str) -> None:
        """Count a job as running that was claimed at sight."""
        user = self.users.get(user_id) or self._meet(user_id)
        self._count_started(self.kinds[kind], user)
        self.waits_s[kind].append(0.0)

    def _count_started(self, queue: KindQueue, user: UserQueue) -> None:
        # It is not at anybody's cost, so what of theirs has ended is no debt.
        turn = min(max(user.turn, self._turn), self._turn + user.running / user.weight)
        user.turn = turn + 1.0 / user.weight
        user.running += 1
        queue.running += 1

    def ended(self, kind: str, user_id: str) -> None:
        """A job that was taken or admitted holds its place no longer."""
        queue = self.kinds[kind]
        queue.running -= 1
        queue.is_full = False
        user = self.users[user_id]
        if user.running == self._user_limit:
            self._queue_again(user)
        user.running -= 1
        self._drop_idle(user)

    def put_back(self, refused: Iterable[tuple[int, str, str]]) -> None:
        """(fence, kind, user) of the last `take` whose kind is full over all daemons. They keep their scores and
        their users' turns; nothing of these kinds is taken until `reopen`, or until one of them has ended here.
        """
        for fence, kind, user_id in refused:
            queue, user = self.kinds[kind], self.users[user_id]
            queue.running -= 1
            queue.ready += 1
            queue.is_full = queue.is_shared  # the limit may be gone meanwhile
            user.running -= 1
            user.size += 1
            user.turn -= 1.0 / user.weight
            user.backlogs[kind].push(self._taken.pop(fence))
            self.known[fence] = (kind, user_id)
            self._queue_again(user)
        for queue in self.kinds.values():  # stale entries are only ever put right upwards
            queue.turns = [(user.turn, serial, user) for _, serial, user in queue.turns]
            heapq.heapify(queue.turns)

    def reopen(self) -> None:
        """Shared kinds may have room again: ask for places at the next `take`."""
        for queue in self.kinds.values():
            queue.is_full = False

    def _drop_idle(self, user: UserQueue) -> None:
        """Forget a user without jobs, so that the table stays small. One that is ahead of others who wait is kept
        until they have caught up, and one that a kind's turns still name until it has come up there.
        """
        if user.running or user.size or user.spilled_from is not None:
            return
        if user.turn > self._turn + 1.0 / user.weight and self.ready:
            return
        if not any(user.user_id in queue.queued_users for queue in self.kinds.values()):
            self.users.pop(user.user_id, None)

    # -- settings that change while running ---------------------------------------------------------------

    def configure_kind(
        self, kind: str, *, limit: int | None, paused: bool, shared_limit: int | None = None
    ) -> None:
        """limit: of this process; shared_limit: of all daemons together."""
        queue = self.kinds.get(kind)
        if queue is not None:
            queue.limit = min((n for n in (limit, shared_limit) if n is not None), default=None)
            queue.is_shared, queue.paused = shared_limit is not None, paused
            queue.is_full = queue.is_full and queue.is_shared

    def configure_users(self, weights: dict[str, float], paused: frozenset[str]) -> None:
        """Weights (default 1) and the users on hold; users not named are as if new."""
        self._weights, self._paused_users = weights, paused
        for user in list(self.users.values()):
            user.weight = weights.get(user.user_id, 1.0)
            resumed = user.paused and user.user_id not in paused
            user.paused = user.user_id in paused
            if resumed:
                self._queue_again(user)
            self._drop_idle(user)

    def _queue_again(self, user: UserQueue) -> None:
        """Give a user back their place in the turns of the kinds of which they have jobs."""
        for kind, backlog in user.backlogs.items():
            queue = self.kinds[kind]
            if backlog and user.user_id not in queue.queued_users:
                queue.queued_users.add(user.user_id)
                self._serial += 1
                heapq.heappush(queue.turns, (user.turn, self._serial, user))

    # -- what an operator may ask ---------------------------------------------------------------------

    @property
    def ready(self) -> int:
        return sum(queue.ready for queue in self.kinds.values())

    def lowest_fence(self) -> int | None:
        """No ready job that this scheduler knows of has a lower fence; timers do not count. A claim in flight
        does: should the process end before it is committed, its job is still ready.
        """
        timed = {entry[1] for entry in self.timers}
        held = filterfalse(timed.__contains__, self.known) if timed else self.known
        spilled = (u.spilled_from for u in self.users.values() if u.spilled_from is not None)
        return min(chain(held, spilled, self.claiming), default=None)

    def explain(self, *, fence: int, kind: str, user_id: str, free_slots: int) -> Reason:
        """Why a ready job of one of our kinds has not started: its kind, the slots, or the turns of others."""
        queue = self.kinds[kind]
        user = self.users.get(user_id)
        if queue.is_full or (queue.limit is not None and queue.running >= queue.limit):
            return Reason(
                "kind_full", f"As many jobs of kind {kind} are running as may at once.",
                {"running_here": queue.running, "limit": queue.limit or 0},
            )  # fmt: skip
        ahead = self.position(fence, kind, user_id)
        numbers: dict[str, float | int | str] = {} if ahead is None else {"ahead": ahead}
        if free_slots <= 0:
            return Reason("no_free_slot", "All slots are taken.", numbers | {"free_slots": 0})
        if user is not None and user.turn > self._turn:
            return Reason(
                "other_users_turn", "Other users' jobs have their turn first.",
                numbers | {"turns_behind": round(user.turn - self._turn, 3)},
            )  # fmt: skip
        return Reason("starting", "It is about to start.", numbers)

    def position(self, fence: int, kind: str, user_id: str) -> int | None:
        """How many ready jobs come before this one: the user's own better ones, and for each of them and
        for itself one of every other user (equal weights assumed). None when it is not held here.
        """
        user = self.users.get(user_id)
        backlog = list(user.backlogs.get(kind, ())) if user else []
        own = next((entry for entry in backlog if entry[1] == fence), None)
        if own is None:
            return None
        mine = sum(1 for entry in backlog if entry < own)
        others = sum(min(u.size, mine + 1) for u in self.users.values() if u.user_id != user_id)
        return mine + others
