"""The one composition root: builds everything, starts it in order, keeps it running, stops it in order.

    start  state dir lock -> Postgres -> migrations -> lease -> queue, feeder, workers -> HTTP -> ready
    stop   not ready -> no new claims -> soft wait -> cancel -> hand back -> HTTP -> lease -> Postgres -> exit 0

Every background task belongs to a Supervisor, which starts it again with backoff and says so; while one is
down the process is not ready, and one that keeps dying of a bug ends the process: no half-alive service.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar, get_args

import aiohttp
from aiohttp import web

from daemon import db as database
from daemon import http, later, logs, metrics, sdnotify
from daemon.api import system
from daemon.api.admission import Admission
from daemon.api.auth import BearerAuthenticator
from daemon.api.deps import ApiDeps, Readiness
from daemon.attempt import Attempt, Services, with_children
from daemon.changes import Changes
from daemon.creator import Creator
from daemon.durations import Durations
from daemon.embedded import embedded_postgres, hold_state_dir
from daemon.errors import ListingdError, Unavailable, first_cause
from daemon.explain import Explainer
from daemon.feeder import Feeder
from daemon.flusher import FLIGHTS
from daemon.handlers import HANDLERS
from daemon.handlers.context import Handler
from daemon.handlers.webhook import WebhookHandler
from daemon.housekeeping import Housekeeper
from daemon.jwks import KeySet
from daemon.lanes import Lanes, plan_lanes
from daemon.lease import Lease
from daemon.ledger import Ledger
from daemon.listener import Listener
from daemon.migrate import migrate
from daemon.pixels import PixelPool
from daemon.providers.factory import build_providers, check_models
from daemon.providers.protocols import Providers
from daemon.queue import Queue
from daemon.read_tokens import ReadTokens
from daemon.scheduler import Scheduler
from daemon.schedules import Schedules
from daemon.settings import Settings
from daemon.settings_sources import find_service_key
from daemon.steering import Steering
from daemon.steps import Steps
from daemon.storage import Access, name_store, open_storage
from daemon.tokens import ServiceKeys
from daemon.user_tokens import UserTokens
from daemon.views import Views
from daemon.vitals import Vitals
from daemon.webhooks import Webhooks
from daemon.workers import Workers

BUGS_BEFORE_EXIT = 5
"""A background task that died of a bug so often within a minute ends the process."""

_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last: the terminal was closed

WARM_UP_EVERY_S = 0.5
"""How often is looked whether there is time to import what the start put off."""

STATUS_EVERY_S = 5.0
"""How often systemd is told how it goes."""

DATABASE_WAIT_S = 15.0
"""How long a start waits for the database."""

T = TypeVar("T")

log = logs.get_logger()


@dataclass(slots=True)
class Supervisor:
    """Runs tasks for ever and remembers which are down."""

    down: dict[str, str] = field(default_factory=dict)

    async def keep(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run until cancelled; start again after Unavailable and after bugs, with backoff.

        A task that returns is done for good. Errors: the bug itself when it keeps coming.
        """
        failures = 0
        bugs: list[float] = []
        while True:
            began = time.monotonic()
            try:
                await run()
                return
            except Exception as exc:  # a task must not die unseen: it is told, counted and started again
                if time.monotonic() - began > 60:
                    failures = 0
                failures += 1
                # /readyz shows it to everybody: of a bug only the kind
                self.down[name] = exc.message if isinstance(exc, ListingdError) else type(exc).__name__
                expected = isinstance(exc, Unavailable)
                if not expected:
                    bugs = [t for t in bugs if time.monotonic() - t < 60] + [time.monotonic()]
                after_s = random.uniform(0.05, min(2.0, 0.1 * 2.0 ** min(failures, 6)))
                if not expected or failures == 1:  # the heartbeat says when the database is lost and back
                    tell = log.warning if expected else log.error
                    tell(
                        "service.task_failed", task=name, restarts=failures, after_s=round(after_s, 3),
                        error=first_cause(exc), **({} if expected else {"exc_info": exc}),
                    )  # fmt: skip
                if len(bugs) >= BUGS_BEFORE_EXIT:
                    raise
                await asyncio.sleep(after_s)
            if name in self.down:
                del self.down[name]


@dataclass(slots=True)
class Service:
    """A running daemon, as tests and the command line see it. service_key: the first key."""

    settings: Settings
    db: database.Database
    queue: Queue
    creator: Creator
    scheduler: Scheduler
    workers: Workers
    lease: Lease
    listener: Listener
    steering: Steering
    housekeeper: Housekeeper
    supervisor: Supervisor
    service_key: str
    url: str = ""
    stopping: bool = False
    serving: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    began: float = field(default_factory=time.monotonic)
    leave: Callable[[], None] | None = None  # ends the process without waiting for tasks that refuse to end

    async def readiness(self) -> Readiness:
        """Ready when every component is "ok"; a dead listener is only told: polling goes on."""
        parts = {
            "database": "ok" if self.lease.is_answered() else "not answering",
            "lease": "ok" if self.lease.is_safe() else "not confirmed",
            "draining": "yes" if self.stopping else "ok",
            **self.supervisor.down,
        }
        ready = all(why == "ok" for why in parts.values())
        parts["listener"] = "ok" if self.listener.connected else "polling"
        return Readiness(ready, parts)

    async def describe(self) -> str:
        """One line for `systemctl status`."""
        found = await self.readiness()
        wrong = ", ".join(f"{name}: {why}" for name, why in found.components.items() if why != "ok")
        return ("serving " if found.ready else "not ready at ") + self.url + (f" ({wrong})" if wrong else "")


@asynccontextmanager
async def run_service(settings: Settings) -> AsyncIterator[Service]:
    """A whole daemon for the length of the block; at its end the stop order above.

    Errors: Misconfigured (what to change stands in the hint), Unavailable (no database in time).
    """
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        stack.enter_context(hold_state_dir(settings))
        find_service_key(settings)  # a server without one is refused before anything is changed
        dsn = None
        if settings.database_url is None:
            dsn = await stack.enter_async_context(embedded_postgres(settings))
        db = await _patiently(lambda: database.open_pool(settings, dsn=dsn))
        stack.push_async_callback(db.close)
        for applied in await _patiently(lambda: migrate(db.dsn)):
            log.info("migrate.applied", number=applied.number, name=applied.name)
        service, app, tasks = await _build(settings, db, stack)
        await _patiently(service.lease.start)
        stack.push_async_callback(_end_lease, service.lease)
        await _patiently(lambda: _find_other_stores(service))
        await _patiently(service.steering.apply)  # before anything can be claimed
        await _patiently(service.housekeeper.rescue)  # so that the first look finds what our last run held
        background = await stack.enter_async_context(asyncio.TaskGroup())
        running = [
            background.create_task(service.supervisor.keep(name, run), name=name)
            for name, run in tasks.items()
        ]
        stack.callback(_cancel, running)
        service.url = await stack.enter_async_context(http.serve(app, settings, sdnotify.take_sockets()))
        stack.push_async_callback(_drain, service)
        log.info(
            "service.ready", url=service.url, version=system.read_version(), startup_s=round(time.monotonic() - began, 3),
            state_dir=str(settings.state_dir), pooled=db.pooled, pid=os.getpid(), instance=settings.instance,
        )  # fmt: skip
        service.serving.set()
        yield service


async def _patiently(act: Callable[[], Awaitable[T]]) -> T:
    """What act gives, waiting a while for a database that is still starting. Errors: Unavailable, and act's."""
    until = time.monotonic() + DATABASE_WAIT_S
    told = None
    while True:
        try:
            return await act()
        except Unavailable as exc:
            why = first_cause(exc)
            if time.monotonic() > until:
                raise Unavailable(
                    f"The database did not answer within {DATABASE_WAIT_S:g} s: {why}.",
                    hint="Start it, or correct LISTINGD_DATABASE_URL; nothing was changed.",
                    data=exc.data,
                ) from exc
            if why != told:
                log.warning("database.lost", error=why)
                sdnotify.notify(f"STATUS=waiting for the database: {why}")
                told = why
            await asyncio.sleep(1.0)


async def _build(
    settings: Settings, db: database.Database, stack: AsyncExitStack
) -> tuple[Service, web.Application, dict[str, Callable[[], Awaitable[None]]]]:
    """Everything of one process, wired; nothing runs yet. Third: the background tasks by name."""
    changes = Changes()
    durations = Durations()
    scheduler = Scheduler(
        HANDLERS.keys() | {"webhook"}, priority_step_s=settings.priority_step_s, user_limit=settings.queue.user_limit
    )  # fmt: skip
    queue = Queue(db)
    lease = Lease(
        db, instance=settings.instance, state_dir=settings.state_dir, store=name_store(settings), lease_s=settings.lease_s, heartbeat_s=settings.heartbeat_s,
        kinds=sorted(scheduler.kinds), concurrency=settings.workers.concurrency, load=lambda: workers.load(),
    )  # fmt: skip
    storage = await open_storage(settings)
    storage.on_turn = _tell_storage
    providers = build_providers(settings, on_late_usage=lambda usage, model: steps.note_late(usage, model))
    for provider in (providers.cutout, providers.paint, providers.text):
        stack.push_async_callback(provider.close)
    pixels = PixelPool(settings.workers.pixel_threads)
    stack.callback(pixels.close)
    ledger = Ledger(db, settings.budgets)
    lanes = Lanes(db, plan_lanes(settings), lambda: lease.worker_id)
    steps = Steps(ledger, storage, lanes, lambda: lease.worker_id)
    webhooks = Webhooks(db)
    services = Services(
        db=db, queue=queue, storage=storage, steps=steps, providers=providers, settings=settings, pixels=pixels, worker_id=lambda: lease.worker_id,
        report_progress=lambda fence, report: workers.report_progress(fence, report),
    )  # fmt: skip
    handlers: dict[str, Handler] = {
        **HANDLERS, "pack": with_children(HANDLERS["pack"]), "webhook": WebhookHandler(webhooks, settings),
    }  # fmt: skip
    workers = Workers(
        queue=queue, db=db, scheduler=scheduler, handlers=handlers,
        make_context=lambda job: Attempt(job, services), lease=lease, changes=changes, durations=durations,
        settings=settings,
    )  # fmt: skip
    queue.on_cancel = workers.hint_cancel
    creator = Creator(queue, births=workers)
    feeder = Feeder(queue, scheduler, poll_s=settings.poll_s, on_ready=workers.wake, pool=workers)
    workers.flusher.feeder = feeder
    steering = Steering(
        db=db, queue=queue, scheduler=scheduler, workers=workers, lease=lease, lanes=lanes, settings=settings
    )
    schedules = Schedules(db)

    def steered() -> None:
        steering.hint()
        schedules.hint()

    listener = Listener(db, {
        "listingd_jobs": feeder.look, "listingd_cancel": workers.hint_cancel,
        "listingd_room": workers.hint_room, "listingd_steer": steered,
    })  # fmt: skip
    housekeeper = Housekeeper(
        db=db, queue=queue, workers=workers, feeder=feeder, lease=lease, changes=changes, lanes=lanes,
        storage=storage, settings=settings,
    )  # fmt: skip
    service_key = find_service_key(settings).get_secret_value()
    service = Service(
        settings, db, queue, creator, scheduler, workers, lease, listener, steering, housekeeper, Supervisor(), service_key,
    )  # fmt: skip
    _set_gauges(service)
    keys = ServiceKeys(db, first_key=service_key)
    users = UserTokens(settings.auth, await _open_key_set(settings, stack))
    read_tokens = ReadTokens(db)
    deps = ApiDeps(
        settings=settings, db=db, queue=queue, creator=creator, views=Views(db, base_url=settings.http.public_url or ""), changes=changes, storage=storage,
        admission=Admission(db, ledger, providers, open_jobs_per_user=settings.limits.open_jobs_per_user),
        authenticator=BearerAuthenticator(
            keys=keys, users=users, read_tokens=read_tokens,
            failed_logins_per_minute=settings.limits.failed_logins_per_minute,
        ),
        steer=steering.apply,
        explainer=Explainer(db, scheduler, durations, free_slots=workers.free_slots),
        readiness=service.readiness, is_draining=lambda: service.stopping,
    )  # fmt: skip
    tasks: dict[str, Callable[[], Awaitable[None]]] = {
        "workers": workers.run_pool,
        **{f"flusher-{number}": workers.flusher.run for number in range(FLIGHTS)},
        "feeder": feeder.run,
        "creator": creator.run,
        "listener": listener.run,
        "watch": workers.run_watch,
        "orphans": workers.run_orphans,
        "cancels": workers.run_cancels,
        "progress": workers.run_progress,
        "steering": steering.run,
        "schedules": schedules.run,
        "housekeeping": housekeeper.run,
        "retention": housekeeper.run_retention,
        "vitals": Vitals(db, kinds=sorted(scheduler.kinds), hold_s=settings.database.vacuum_hold_s).run,
        "late-answers": steps.book_late,
        "warm-up": lambda: _warm_up(service, feeder, providers),
    }
    app = http.build_app(deps, http.list_operator_routes(deps, keys, providers))
    return service, app, tasks


def _tell_storage(access: Access, why: str | None) -> None:
    metrics.STORAGE_UP.labels(access).set(why is None)
    if why is None:
        log.info("storage.restored", access=access)
    else:
        log.warning("storage.lost", access=access, error=why)


async def _find_other_stores(service: Service) -> None:
    """Say which live daemons keep their pictures elsewhere: a job that asks here for a photo stored there fails."""
    ours, host = str(service.lease.info["store"]), str(service.lease.info["host"])
    for row in await service.db.fetch("read_live_workers"):
        info = json.loads(row["info_text"])
        theirs = info.get("store", ours)
        # On one machine a directory is the same whether it was set or not.
        if theirs != ours and (
            info.get("host") != host or _without_host(theirs, host) != _without_host(ours, host)
        ):
            log.error("storage.apart", other=row["instance"], host=info.get("host"), theirs=theirs, ours=ours)


def _without_host(store: str, host: str) -> str:
    return store.removeprefix("file://").removeprefix(f"{host}:")


def _set_gauges(service: Service) -> None:
    """What the metrics read at each scrape."""
    for access in get_args(Access):
        metrics.STORAGE_UP.labels(access).set(1)
    metrics.SLOTS.set(service.workers.concurrency)
    metrics.SLOTS_BUSY.set_function(lambda: service.workers.load()[0])
    metrics.DATABASE_UP.set_function(service.lease.is_answered)
    metrics.LISTENER_UP.set_function(lambda: service.listener.connected)
    metrics.LEASE_AGE.set_function(service.lease.silent_s)


async def _warm_up(service: Service, feeder: Feeder, providers: Providers) -> None:
    """What a start puts off: modules that jobs will want, and asking for the models' last days.

    Not while jobs wait or run: importing holds the interpreter, and would double the time to them. Those that want
    these modules import them by themselves, in a thread.
    """
    await service.serving.wait()
    await feeder.has_looked.wait()
    while service.scheduler.ready or service.workers.load()[0]:  # noqa: ASYNC110 -- nobody tells of idleness
        await asyncio.sleep(WARM_UP_EVERY_S)
    await asyncio.to_thread(later.load_all)
    await _announce_retirements(providers)


async def _announce_retirements(providers: Providers) -> None:
    """Warn of configured models that are about to end."""
    for notice in await check_models(providers):
        log.warning(
            "provider.retiring", provider=notice.provider, model=notice.model, shutdown_date=notice.shutdown_on.isoformat()
        )  # fmt: skip


async def _open_key_set(settings: Settings, stack: AsyncExitStack) -> KeySet | None:
    if settings.auth.jwks_url is None:
        return None
    session = await stack.enter_async_context(aiohttp.ClientSession())
    return KeySet(session, settings.auth.jwks_url)


async def _drain(service: Service) -> None:
    """The stop up to the point where nothing runs: the flusher still writes what ends meanwhile."""
    service.stopping = True
    limits = service.settings.workers
    sdnotify.stopping("draining")
    sdnotify.extend_timeout(limits.soft_stop_s + limits.hard_stop_s + 5)
    log.info(
        "service.stopping", running=service.workers.load()[0], soft_stop_s=limits.soft_stop_s,
        hard_stop_s=limits.hard_stop_s,
    )  # fmt: skip
    cut = await service.workers.drain(limits.soft_stop_s, limits.hard_stop_s)
    await service.workers.flusher.flush_rest()
    service.ended.set()
    log.info("service.stopped", uptime_s=round(time.monotonic() - service.began, 3), released=cut)
    if service.workers.stubborn and service.leave is not None:
        await _end_lease(service.lease)
        service.leave()


async def _end_lease(lease: Lease) -> None:
    with suppress(Unavailable):  # without a database the lease ends by itself
        await lease.stop()


def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


def calm_collector() -> None:
    """Let Python's full collection, which stops everything, come rarely and find little.

    With 3000 event streams open it took 100 to 200 ms, again and again, and collected nothing: what is dropped
    here is freed by its reference count. What the start made is no longer looked at, and a full pass comes after
    100 middle ones instead of 10 (2 busy cores, 2026-11-24: 7 passes of 110 to 1 229 ms in 95 s became one of 7 ms).
    Nothing is collected first: that would hold up the first jobs for 0.1 s, to win 0.3 MB.
    """
    gc.freeze()
    gc.set_threshold(5_000, 20, 100)


async def serve(settings: Settings, *, leave: Callable[[], None] | None = None) -> None:
    """Run until a signal of _STOPS; a second one ends the soft wait at once. One that comes during the start ends that:
    what was begun is ended in order, or an embedded Postgres would be left behind.

    leave: called when all is handed back but a handler swallows its cancellation and will never end.
    """
    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    assert this is not None
    stop = asyncio.Event()

    def break_off() -> None:
        if not stop.is_set():
            stop.set()
            this.cancel()

    def react(how: Callable[[], object]) -> None:
        for number in _STOPS:
            loop.add_signal_handler(number, how)

    react(break_off)
    try:
        async with run_service(settings) as service:
            service.leave = leave
            calm_collector()
            react(stop.set)
            sdnotify.ready(f"serving {service.url}")
            interval_s = min(STATUS_EVERY_S, sdnotify.watchdog_interval_s() or STATUS_EVERY_S)
            while not stop.is_set():
                try:
                    async with asyncio.timeout(interval_s):
                        await stop.wait()
                except TimeoutError:
                    sdnotify.notify("WATCHDOG=1", f"STATUS={await service.describe()}")
            react(service.workers.hurry)
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
