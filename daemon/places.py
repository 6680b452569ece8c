"""Places in kinds with a limit over all daemons: asked for before a claim, free by themselves after it.

    scheduler.take --> reserve (only for such kinds) --> flush          refused --> scheduler.put_back

The database counts them under a lock of the kind (sql/functions/reserve_places.sql). Kinds without such a limit
cost nothing here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from daemon import db as database
from daemon.scheduler import Scheduler

Owner = tuple[str, str]
"""(kind, user) of a claim."""


class Places:
    """What one process holds and asks for."""

    def __init__(self, db: database.Database, scheduler: Scheduler) -> None:
        self._db = db
        self._kinds = scheduler.kinds
        self._scheduler = scheduler

    def is_needed(self) -> bool:
        """Whether any kind has a limit over all daemons."""
        return any(queue.is_shared for queue in self._kinds.values())

    def pick(self, jobs: Iterable[tuple[int, str]]) -> list[int]:
        """The fences of those (fence, kind) whose kind has such a limit."""
        return [fence for fence, kind in jobs if self._kinds[kind].is_shared]

    async def reserve(
        self,
        connection: database.Connection,
        worker: int,
        claims: Sequence[int],
        owners: Sequence[Owner],
        ended: Sequence[int],
    ) -> tuple[list[int], list[Owner], list[tuple[int, Owner]]]:
        """The claims that got a place or need none, and those that another process is about to make; what must
        wait goes back to the scheduler.

        ended: fences whose end is written together with the claims. Errors: Unavailable.
        """
        wanted = self.pick((fence, kind) for fence, (kind, _) in zip(claims, owners, strict=True))
        refused: dict[int, bool] = {}
        if wanted:
            with database.translate_errors():
                rows = await connection.fetch(self._db.sql["reserve_places"], worker, wanted, ended)
            refused = {row["fence"]: row["is_taken"] for row in rows}
        asked = list(zip(claims, owners, strict=True))
        self._scheduler.put_back((fence, *owner) for fence, owner in asked if refused.get(fence) is False)
        kept = [(fence, owner) for fence, owner in asked if fence not in refused]
        taken = [(fence, owner) for fence, owner in asked if refused.get(fence)]
        return [fence for fence, _ in kept], [owner for _, owner in kept], taken

    async def drop(self, worker: int, fences: Sequence[int]) -> None:
        """Give back places of claims that came back empty. Errors: Unavailable."""
        if fences:
            await self._db.fetch("drop_places", worker, fences)

    async def hold(self, worker: int, running: Iterable[tuple[int, str]]) -> None:
        """Note jobs that were running already when their kind got its limit. Errors: Unavailable."""
        fences = self.pick(running)
        if fences:
            await self._db.fetch("hold_places", worker, fences)

    async def tell_others(self, fences: Sequence[int]) -> None:
        """Jobs of such kinds have ended: other daemons may have been waiting. Errors: Unavailable."""
        if fences:
            await self._db.fetch("notify_room")
