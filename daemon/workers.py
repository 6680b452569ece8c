"""The bounded pool of coroutine workers: runs claimed jobs to an outcome.

    flusher (finish and claim) --> todo --> a free worker --> handler --> outcome --> flusher

Workers are tasks that live as long as the pool: a job that never waits costs no task of its own. A woken
worker runs job after job; when one waits, the loop wakes another worker for the rest.

Stopping: no new claims, wait, cancel, release what is left with its attempt given back. A handler that
swallows its cancellation loses its slot after 10 s: its fence is raised, so it can write nothing any more.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from daemon import db as database
from daemon import logs, metrics, outcomes
from daemon.changes import Changes
from daemon.durations import Durations
from daemon.errors import ListingdError, Lost
from daemon.flusher import Flusher
from daemon.handlers.context import Handler, JobContext
from daemon.jobs import ClaimedJob, FannedOut, State, Took, new_id
from daemon.lease import Lease
from daemon.queue import Ended, Queue
from daemon.scheduler import Scheduler
from daemon.settings import Settings

SWALLOW_GRACE_S = 10.0
"""A cancelled handler that still runs after so many seconds loses its slot."""
LOW_EVERY_S = 10.0
LOW_CANDIDATES = 4
"""Rescue begins at the lowest of so many fences that were the lowest in our hands, each taken so many seconds apart."""
WATCH_EVERY_S = 0.25
PROGRESS_EVERY_S = 0.1
ADOPT_AFTER_S = (2.0, 8.0, 20.0)
"""Seconds after a lost answer at which orphans are looked for; statements end after 15 s."""
BURST_S = 0.002
"""Jobs that never wait are run back to back for so long before the loop gets its turn."""

log = logs.get_logger()


class Running:
    """One attempt in a slot. why: None, or why it was cancelled (cancel, stop, lost, timeout)."""

    __slots__ = ("began", "cancelled_at", "context", "deadline", "job", "limit_s", "task", "why")

    def __init__(self, job: ClaimedJob, task: asyncio.Task[None], began: float, limit_s: float) -> None:
        self.job = job
        self.task = task
        self.began = began
        self.limit_s = limit_s
        self.deadline = began + limit_s
        self.why: str | None = None
        self.cancelled_at = 0.0
        self.context: JobContext | None = None


class Workers:
    """The pool of one process. Constructing it only stores; `run` does the work until cancelled.

    make_context: builds the JobContext of a claimed job (attempt.py).
    """

    def __init__(
        self,
        *,
        queue: Queue,
        db: database.Database,
        scheduler: Scheduler,
        handlers: Mapping[str, Handler],
        make_context: Callable[[ClaimedJob], JobContext],
        lease: Lease,
        changes: Changes,
        durations: Durations,
        settings: Settings,
    ) -> None:
        self._ran: defaultdict[tuple[str, State], list[float]] = defaultdict(list)  # seconds, for the metrics
        self._queue = queue
        self._db = db
        self._scheduler = scheduler
        self._handlers = handlers
        self._make_context = make_context
        self._lease = lease
        self._changes = changes
        self._durations = durations
        self._settings = settings
        self.concurrency = settings.workers.concurrency
        self.draining = False
        self.running: dict[int, Running] = {}
        self._todo: deque[ClaimedJob] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._waking = False
        self._born = 0  # slots promised to births and claims at sight in flight
        self.flusher = Flusher(
            self, queue, db, scheduler, lease, changes, tells=settings.log.level in ("debug", "info")
        )
        self._empty = asyncio.Event()
        self._cancels = asyncio.Event()
        self._progress: dict[int, Mapping[str, Any]] = {}
        self._progress_wanted = asyncio.Event()
        self._adopt_at: list[float] = []  # loop times
        self.stubborn: set[asyncio.Task[None]] = set()  # tasks that swallowed their cancellation
        self._low_candidates: deque[tuple[float, int]] = deque(maxlen=LOW_CANDIDATES)
        self._pool: asyncio.TaskGroup | None = None
        self._limits = settings.workers.attempt_timeouts_s
        self._limit_s = settings.workers.attempt_timeout_s

    # -- slots ---------------------------------------------------------------------------------------

    @property
    def worker_id(self) -> int | None:
        return self._lease.worker_id

    def free_slots(self) -> int:
        return self.concurrency - len(self.running) - len(self._todo) - self._born - self.flusher.claiming

    def claimable(self) -> int:
        """Slots to claim for; 0 while stopping or without a safe lease."""
        return 0 if self.draining or not self._lease.is_safe() else self.free_slots()

    def load(self) -> tuple[int, bool]:
        """(jobs in hand, draining), for the heartbeat; called from its thread."""
        return len(self.running) + len(self._todo), self.draining

    def wake(self) -> None:
        """There may be something to claim."""
        self.flusher.wake()

    def hint_room(self) -> None:
        """A kind with a limit over all daemons may have room again."""
        self._scheduler.reopen()
        self.flusher.wake()

    async def hold_places(self) -> None:
        """Let what runs here count where its kind has got a limit. Errors: Unavailable."""
        if self.worker_id is not None and self.flusher.places.is_needed():
            jobs = [*(r.job for r in self.running.values()), *self._todo]
            await self.flusher.places.hold(self.worker_id, [(job.fence, job.kind) for job in jobs])

    def hint_cancel(self) -> None:
        """Some job is to be cancelled, perhaps one of ours."""
        self._cancels.set()

    # -- births (creator.BirthDesk) ------------------------------------------------------------------------

    def admit(self, kind: str, user_id: str) -> bool:
        if self.draining or self.free_slots() <= 0 or not self._lease.is_safe():
            return False
        if not self._scheduler.admit(kind, user_id):
            return False
        self._born += 1
        return True

    def give_back(self, kind: str, user_id: str) -> None:
        self._born -= 1
        self._scheduler.ended(kind, user_id)
        self.adopt_soon()  # the statement may have been committed although its answer was lost
        self._offer_slots()

    def start(self, job: ClaimedJob) -> None:
        self._born -= 1
        self.begin(job)

    def offer(self, fence: int, kind: str, user_id: str, priority: int) -> None:
        if self._scheduler.add(fence, kind, user_id, priority) and self.free_slots() > 0:
            self.flusher.wake()  # without a free slot the next end wakes it

    def look(self) -> None:
        self.flusher.look()

    # -- claims at sight (feeder.Pool) ---------------------------------------------------------------------

    def promise(self, most: int, after: int) -> int:
        """Slots for jobs above a fence that are claimed as soon as they are seen. None while ends wait: the flush
        that writes them claims too, for one commit. Half of the free ones at most: births may come meanwhile.
        """
        if self.flusher.backlog or after + 1 < self._lease.low_fence:  # rescue looks for ours from there on
            return 0
        slots = max(0, min(most, (self.claimable() + 1) // 2))
        self._born += slots
        return slots

    def take_up(self, promised: int, claimed: Sequence[ClaimedJob]) -> None:
        self._born -= promised
        self._waking = True  # at once, below: before the record that brings these claims to the disk is sent
        for job in claimed:
            self._scheduler.count_fresh(job.kind, job.user_id)
            self.begin(job)
        self._wake_workers()
        if claimed:
            metrics.CLAIM_BATCH.observe(len(claimed))
            self._changes.mark([i for job in claimed for i in (job.id, job.parent_id) if i is not None])
        self._offer_slots()

    def _offer_slots(self) -> None:
        """Slots that were promised may be free again: what became ready meanwhile has found none."""
        if self._scheduler.ready:
            self.flusher.wake()
        self._tell_if_empty()

    def held_fences(self) -> set[int]:
        return self.flusher.unwritten() | {job.fence for job in self._todo} | set(self.running)

    # -- running one job --------------------------------------------------------------------------------

    def begin(self, job: ClaimedJob) -> None:
        if self.draining:  # claimed or born while the stop began
            self._end(job, outcomes.interrupted(job), 0.0)
            return
        self._todo.append(job)
        if self._idle and not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._wake_workers)

    def _wake_workers(self) -> None:
        """Wake two idle workers for what waits; each wakes two more when more waits."""
        self._waking = False
        wanted = min(2, len(self._todo))
        while wanted and self._idle:
            idle = self._idle.pop()
            if not idle.done():  # its worker was cancelled
                idle.set_result(None)
                wanted -= 1

    async def _work(self) -> None:
        """One worker: takes jobs for ever."""
        loop = asyncio.get_running_loop()
        todo = self._todo
        task = asyncio.current_task()
        assert task is not None  # run by a TaskGroup
        while True:
            since = loop.time()
            yield_at = since + BURST_S
            while todo:
                job = todo.popleft()
                if todo and self._idle and not self._waking:
                    self._waking = True
                    loop.call_soon(self._wake_workers)
                running = Running(job, task, since, self._limits.get(job.kind, self._limit_s))
                if await self._run(running):
                    return  # the slot was taken away while the handler refused to stop
                since = loop.time()
                if since > yield_at or self.flusher.backlog >= self.concurrency:
                    await asyncio.sleep(0)
                    since = loop.time()
                    yield_at = since + BURST_S
            idle = loop.create_future()
            self._idle.append(idle)
            await idle

    async def _run(self, running: Running) -> bool:
        """Run one job to its end; True when this worker was replaced meanwhile."""
        job = running.job
        self.running[job.fence] = running
        ended: Ended | None
        try:
            running.context = context = self._make_context(job)
            result = await self._handlers[job.kind](context)
            if isinstance(result, FannedOut):
                await self._fan_out(job, result)
                ended = None
            else:
                ended = outcomes.completed(job, result)
        except asyncio.CancelledError as exc:
            if running.why is not None:
                ended = self._after_cancel(running)
            elif running.task.cancelling():
                raise  # the pool itself is being torn down
            else:  # not the attempt was cancelled, but something that it waited for
                ended = self._after_error(job, exc)
        except Exception as exc:  # the job executor: whatever a handler lets escape must end as an outcome
            ended = self._after_error(job, exc) if running.why is None else self._after_cancel(running)
        if self.running.get(job.fence) is not running:
            return True
        if running.why is not None:
            running.task.uncancel()  # even if the handler went its own way: the worker's next job is another's
        del self.running[job.fence]
        took = None if running.context is None else running.context.took
        self._end(job, ended, asyncio.get_running_loop().time() - running.began, took)
        return False

    def _after_error(self, job: ClaimedJob, exc: BaseException) -> Ended | None:
        if isinstance(exc, Lost):
            self.adopt_soon()  # if nobody else has it
            return None
        if isinstance(exc, ListingdError):
            return outcomes.failed(job, exc, self._settings.retry)
        log.error("job.crashed", job_id=job.id, kind=job.kind, attempt=job.attempt, exc_info=exc)
        return outcomes.crashed(job, exc, self._settings.retry)

    def _after_cancel(self, running: Running) -> Ended | None:
        match running.why:
            case "cancel":
                return outcomes.cancelled(running.job)
            case "timeout":
                return outcomes.timed_out(running.job, running.limit_s, self._settings.retry)
            case "stop":
                return outcomes.interrupted(running.job)
            case _:  # lost: nothing may be written, but if the lease comes back nobody else has it
                self.adopt_soon()
                return None

    async def _fan_out(self, job: ClaimedJob, fanned: FannedOut) -> None:
        # They are listed by their ids, and start in that order.
        ids = sorted(new_id() for _ in fanned.children)
        children = [
            {"id": str(child_id), "kind": c.kind, "slot": c.slot, "input": c.input}
            for child_id, c in zip(ids, fanned.children, strict=True)
        ]
        assert self.worker_id is not None  # a job was claimed
        ready = await self._queue.fan_out(job.fence, self.worker_id, children)
        if ready is None:
            raise Lost("The attempt was no longer ours.")
        for row in ready:
            self.offer(row.fence, row.kind, row.user_id, row.priority)
        if self._queue.rivals:
            await self._db.fetch("notify_jobs")
        log.info("job.fanned_out", job_id=job.id, kind=job.kind, children=len(children))
        self._changes.mark([job.id])

    def _end(self, job: ClaimedJob, ended: Ended | None, run_s: float, took: Took | None = None) -> None:
        self._scheduler.ended(job.kind, job.user_id)
        self._progress.pop(job.fence, None)
        if ended is None:
            self.flusher.let_go(job)
        else:
            self.flusher.end(ended, job, run_s, took)
            self._ran[job.kind, ended.state].append(run_s)
        self._tell_if_empty()

    def _tell_if_empty(self) -> None:
        if self.draining and not self.running and not self._born:
            self._empty.set()

    # -- watching over what runs ----------------------------------------------------------------------

    async def run_watch(self) -> None:
        """Deadlines, the self-fence, handlers that do not stop. For ever; waits for nothing, the database least of all:
        when that is silent the jobs must be stopped before others take them.
        """
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            now = loop.time()
            self._count()
            if not self._lease.is_safe() and (
                self._todo or any(r.why is None for r in self.running.values())
            ):
                log.error("lease.lost", running=len(self.running), silent_s=round(self._lease.silent_s(), 2))
                self.lose_everything()
            for running in list(self.running.values()):
                if running.why is None:
                    if now > running.deadline:
                        self._cancel(running, "timeout")
                elif now - running.cancelled_at > SWALLOW_GRACE_S:
                    self._abandon(running, SWALLOW_GRACE_S, self._after_cancel(running))
                    if self._pool is not None and not self.draining:
                        self._pool.create_task(self._work(), name="worker-replacement")

    async def run_orphans(self) -> None:
        """Orphans of lost answers, and from where rescue would look for ours. For ever. Errors: Unavailable."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            now = loop.time()
            if self._lease.is_safe():
                await self._raise_low_fence(now)
                if self._adopt_at and now >= self._adopt_at[0]:
                    await self._adopt()
                    self._adopt_at = [at for at in self._adopt_at if at > now]

    def _cancel(self, running: Running, why: str) -> None:
        if running.why is None:
            running.why = why
            running.cancelled_at = asyncio.get_running_loop().time()
            running.task.cancel()

    def lose_everything(self) -> None:
        """The jobs in hand may already be another process's: stop them. Ends that wait for the flusher stay:
        they are written only while their fence and worker still stand.
        """
        for job in self._todo:
            self._scheduler.ended(job.kind, job.user_id)
            self.flusher.let_go(job)
        self._todo.clear()
        self.adopt_soon()
        for running in self.running.values():
            self._cancel(running, "lost")

    def _abandon(self, running: Running, after_s: float, ended: Ended | None) -> None:
        """A handler swallowed its cancellation: end its job without it. Its task may never end."""
        log.error(
            "job.cancel_ignored", job_id=running.job.id, kind=running.job.kind, after_s=after_s,
            stack=_describe_stack(running.task),
        )  # fmt: skip
        del self.running[running.job.fence]
        self.stubborn.add(running.task)
        running.task.add_done_callback(self.stubborn.discard)
        self._end(running.job, ended, 0.0)
        running.task.cancel()

    def _count(self) -> None:
        """Hand the attempts of the last moment to the metrics, all of a kind at once."""
        ran, self._ran = self._ran, defaultdict(list)
        for (kind, state), seconds in ran.items():
            metrics.JOBS.labels(kind, state).inc(len(seconds))
            if state is State.COMPLETED:
                self._durations.note(kind, seconds)
            metrics.RUN.observe(kind, seconds)
        waits, self._scheduler.waits_s = self._scheduler.waits_s, defaultdict(list)
        for kind, seconds in waits.items():
            metrics.WAIT.observe(kind, seconds)

    async def _raise_low_fence(self, now: float) -> None:
        """Let rescue's scan begin later, with a delay: a claim or birth in flight may still hold a lower fence, and
        no statement lasts as long as that. An end that is not written yet is held: rescue would have to find its row.
        """
        if self._low_candidates and now - self._low_candidates[-1][0] < LOW_EVERY_S:
            return
        ahead = (
            self.flusher.feeder.seen_until + 1 if self.flusher.feeder is not None else self._lease.low_fence
        )
        held = self.held_fences() | self._scheduler.claiming
        self._low_candidates.append((now, min(held, default=ahead)))
        lowest, before = min(fence for _, fence in self._low_candidates), self._lease.low_fence
        if len(self._low_candidates) == LOW_CANDIDATES and lowest > before:
            # First here: a claim below it from now on lowers it again, and whichever comes second to the database wins.
            self._lease.low_fence = lowest
            await self._db.fetch("raise_fence_mark", self.worker_id, lowest, before)

    def adopt_soon(self) -> None:
        """Look for orphans: soon, and until a statement whose answer was lost must have ended."""
        now = asyncio.get_running_loop().time()
        if not self._adopt_at or self._adopt_at[-1] < now + ADOPT_AFTER_S[-1] - 1:
            # The next look stays where it is: new doubts every second must not put it off for ever.
            self._adopt_at = [*self._adopt_at[:1], *(now + after_s for after_s in ADOPT_AFTER_S)]

    async def _adopt(self) -> None:
        """Hand back what is ours in the database and what nobody here holds: the answer to a claim was lost, or
        the job was given up while the lease was in doubt.
        """
        rows = await self._db.fetch("read_own_claims", self.worker_id, self._lease.low_fence, 2.0)
        ours = self.held_fences() | self._scheduler.claiming  # the answer may be on its way
        for row in rows:
            if row["fence"] not in ours:
                job = ClaimedJob(
                    id=row["id"], fence=row["fence"], kind=row["kind"], user_id=row["user_id"],
                    attempt=row["attempt"], max_attempts=row["max_attempts"], input_text="{}",
                )  # fmt: skip
                self.flusher.end(outcomes.interrupted(job), job, 0.0)
                log.warning("job.adopted", job_id=job.id, kind=job.kind)

    async def run_cancels(self) -> None:
        """Stop what users cancelled and what is no longer ours: at a hint, and every poll without one."""
        while True:
            try:
                async with asyncio.timeout(self._settings.poll_s):
                    await self._cancels.wait()
            except TimeoutError:
                pass
            self._cancels.clear()
            if self.running and self.worker_id is not None:
                held = [fence for fence, r in self.running.items() if r.why is None]
                for fence in await self._queue.read_cancels(held, self.worker_id):
                    running = self.running.get(fence)
                    if running is not None:
                        self._cancel(running, "cancel")

    # -- progress ----------------------------------------------------------------------------------------

    def report_progress(self, fence: int, progress: Mapping[str, Any]) -> None:
        """Keep the latest report of a running job; written together, ten times a second at most."""
        self._progress[fence] = progress
        self._progress_wanted.set()

    async def run_progress(self) -> None:
        while True:
            await self._progress_wanted.wait()
            self._progress_wanted.clear()
            reports, self._progress = self._progress, {}
            if reports and self.worker_id is not None:
                await self._queue.report_progress(reports, self.worker_id)
                self._changes.mark([r.job.id for f in reports if (r := self.running.get(f)) is not None])
            await asyncio.sleep(PROGRESS_EVERY_S)

    # -- life -----------------------------------------------------------------------------------------------

    async def run_pool(self) -> None:
        """The worker tasks, until cancelled."""
        async with asyncio.TaskGroup() as pool:
            self._pool = pool
            for number in range(self.concurrency):
                pool.create_task(self._work(), name=f"worker-{number}")

    async def drain(self, soft_s: float, hard_s: float) -> int:
        """Stop claiming, let jobs finish for soft_s, cancel the rest, hand them back; how many were cut.

        The flusher and the pool must still run.
        """
        self.draining = True
        while self._todo:
            job = self._todo.popleft()
            self._end(job, outcomes.interrupted(job), 0.0)
        await self._wait_until_empty(soft_s)
        cut = len(self.running)
        if cut:
            log.warning("service.hard_stopped", running=cut)
            for running in self.running.values():
                self._cancel(running, "stop")
            await self._wait_until_empty(hard_s)
        for running in list(self.running.values()):
            self._abandon(running, hard_s, outcomes.interrupted(running.job))
        return cut

    def hurry(self) -> None:
        """End the wait of the stop that is under way."""
        self._empty.set()

    async def _wait_until_empty(self, within_s: float) -> None:
        self._empty.clear()
        if self.running or self._born:  # also what is being claimed: its end must be written
            try:
                async with asyncio.timeout(within_s):
                    await self._empty.wait()
            except TimeoutError:
                pass


def _describe_stack(task: asyncio.Task[Any]) -> str:
    """Where a suspended task stands, outermost first; its own get_stack() shows one frame only."""
    frames: list[str] = []
    at: Any = task.get_coro()
    while (frame := getattr(at, "cr_frame", None) or getattr(at, "ag_frame", None)) is not None:
        frames.append(f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}")
        at = getattr(at, "cr_await", None) or getattr(at, "ag_await", None)
    return "\n".join(frames)
