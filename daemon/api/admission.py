"""Whether new jobs are taken: a budget with room, and not too many unfinished jobs of one user.

Both are looks from the side, remembered for a while, so that a create pays next to nothing for them. To the
cent, budgets are held where a call is to be paid (ledger.py), whatever was let in here.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from decimal import Decimal
from uuid import UUID

from daemon.db import Database
from daemon.errors import BudgetSpent, TooManyRequests
from daemon.estimates import estimate_usd
from daemon.jobs import NewJob
from daemon.ledger import Ledger
from daemon.payloads import Payload
from daemon.providers.protocols import Providers

LOOK_S = 5.0
"""How long the state of a budget is believed."""
REMEMBERED = 20_000
_ANY_USD = Decimal("0.000001")

Asked = tuple[Payload, NewJob]


class Admission:
    """The doorkeeper of one process."""

    def __init__(
        self, db: Database, ledger: Ledger, providers: Providers, *, open_jobs_per_user: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._budgets = _OpenBudgets(db, ledger, clock)
        self._open_jobs = _OpenJobs(db, open_jobs_per_user)
        self._providers = providers

    async def check(self, asked: Sequence[Asked]) -> None:
        """Nothing, when all these jobs are taken.

        Errors: BudgetSpent (only for jobs that cost money), TooManyRequests too_many_open_jobs, Unavailable.
        """
        if await self._budgets.exist():
            for job_input, job in asked:
                if estimate_usd(job_input, self._providers) > 0:
                    await self._budgets.check(job.user_id, job.project_id)
        if len(asked) == 1:  # spares the usual case a dict
            await self._open_jobs.take(asked[0][1].user_id, 1)
            return
        counts: dict[str, int] = {}
        for _, job in asked:
            counts[job.user_id] = counts.get(job.user_id, 0) + 1
        for user_id, count in counts.items():
            await self._open_jobs.take(user_id, count)


class _OpenBudgets:
    """Which budgets have room, as of LOOK_S seconds ago at most."""

    def __init__(self, db: Database, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._db = db
        self._ledger = ledger
        self._clock = clock
        self._exist: bool | None = None
        self._look_at = 0.0
        self._known: OrderedDict[tuple[str, UUID | None], tuple[float, BudgetSpent | None]] = OrderedDict()

    async def exist(self) -> bool:
        """Whether any budget is set."""
        now = self._clock()
        if self._exist is None or now >= self._look_at:
            self._look_at = now + LOOK_S  # one looks, the others go by what was known
            self._exist = self._ledger.has_defaults or bool(await self._db.fetchval("has_budgets"))
        return self._exist

    async def check(self, user_id: str, project_id: UUID | None) -> None:
        """Errors: BudgetSpent."""
        now = self._clock()
        until, spent = self._known.get((user_id, project_id), (now, None))
        if now >= until:
            spent = None
            try:
                await self._ledger.check_budget(user_id, project_id, _ANY_USD)
            except BudgetSpent as exc:
                spent = exc
            self._known[user_id, project_id] = (now + LOOK_S, spent)
            self._known.move_to_end((user_id, project_id))
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        if spent is not None:
            raise BudgetSpent(spent.message, hint=spent.hint, data=dict(spent.data))


class _OpenJobs:
    """How many jobs each user may still create before they are counted again.

    A count allows half of the room it found, so that several processes agree well before the limit. A user
    that was never counted may have a hundredth of it: a small limit is exact, a large one costs no query.
    """

    def __init__(self, db: Database, limit: int) -> None:
        self._db = db
        self._limit = limit
        self._allowed: OrderedDict[str, int] = OrderedDict()

    async def take(self, user_id: str, count: int) -> None:
        """Note new jobs of a user; the service's own ("") are not limited. Errors: TooManyRequests."""
        if not user_id:
            return
        allowed = self._allowed.get(user_id, self._limit // 100) - count
        if allowed < 0:
            room = self._limit - await self._db.fetchval("count_open_jobs", user_id, self._limit)
            if room < count:
                raise TooManyRequests(
                    f"This user has {self._limit - room} unfinished jobs; {self._limit} are allowed.",
                    code="too_many_open_jobs", hint="Wait until some have ended, or cancel some.",
                    data={"retry_after_s": 10},
                )  # fmt: skip
            allowed = (room - count) // 2
        self._allowed[user_id] = allowed
        self._allowed.move_to_end(user_id)
        if len(self._allowed) > REMEMBERED:
            self._allowed.popitem(last=False)
