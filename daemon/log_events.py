"""The names of all log events, with the level of each and the keys it may carry.

A name is `noun.verb_past`, fixed for ever: dashboards and alerts are built on it. Levels: error = someone
must act; warning = we recovered, but count it; info = a unit of work ended; debug = the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

CONTEXT_KEYS = frozenset({"job_id", "kind", "attempt", "user_id", "worker", "request_id"})
"""Whom a line is about: allowed on every event."""


@dataclass(frozen=True, slots=True)
class Event:
    """level: "debug", "info", "warning" or "error". keys: what a line may carry besides the context."""

    level: str
    keys: frozenset[str]
    meaning: str


def _event(level: str, keys: str, meaning: str) -> Event:
    return Event(level, frozenset(keys.split()), meaning)


# wait_s: from due to claimed, unless only failures are told; the last three, jobs.Took, only with calls or files.
_TOOK = "duration_s wait_s provider_s cost_usd bytes"

EVENTS: dict[str, Event] = {
    # The process
    "service.ready": _event(
        "info",
        "pid instance url version startup_s state_dir pooled",
        "Requests and jobs are served.",
    ),
    "service.stopping": _event("info", "running soft_stop_s hard_stop_s", "A stop has begun: no new claims."),
    "service.hard_stopped": _event(
        "warning", "running", "The soft stop ran out; running jobs are cancelled."
    ),
    "service.stopped": _event("info", "uptime_s released", "The process ends."),
    "service.task_failed": _event(
        "error", "task restarts after_s error", "A supporting task died and is restarted."
    ),
    # Requests
    "http.answered": _event(
        "info", "method path route status duration_s principal remote", "A request ended."
    ),
    "http.failed": _event("error", "method path route error", "A bug answered 500."),
    "http.stream_cut": _event("warning", "path why waiting", "A slow reader of events was cut off."),
    "http.feed_waits": _event("debug", "error", "The event feed cannot read; it tries again."),
    # Jobs
    "job.step_done": _event(
        "info", "step provider duration_s cost_usd bytes reused", "A step has its checkpoint."
    ),
    "job.completed": _event("info", _TOOK, "A job reached its result."),
    "job.fanned_out": _event("info", "children", "A job waits for its children."),
    "job.retry_scheduled": _event("warning", f"error delay_s {_TOOK}", "An attempt failed; another follows."),
    "job.failed": _event("warning", f"error {_TOOK}", "A job failed for good."),
    "job.released": _event(
        "info", f"error delay_s {_TOOK}", "A job was handed back; the attempt does not count."
    ),
    "job.cancelled": _event("info", f"error {_TOOK}", "A job was cancelled."),
    "job.cancel_ignored": _event(
        "error", "after_s stack", "A handler swallowed its cancellation; its slot was taken."
    ),
    "job.rescued": _event("warning", "from_worker state", "Jobs of a dead worker were taken over."),
    "job.lost": _event(
        "warning", "what state duration_s", "A write found the fence raised: the attempt is no longer ours."
    ),
    "job.crashed": _event("error", "", "A handler raised what it should not: a bug."),
    "job.adopted": _event("warning", "", "A claim whose answer was lost was found and handed back."),
    "job.expired": _event("warning", "", "A job was not started before its expires_at."),
    "job.locked": _event(
        "warning", "again_in_s", "Another transaction has locked the job's row: its end is written later."
    ),
    "job.unflushed": _event(
        "error", "count", "Ends of attempts were not written at a stop; the next start repairs it."
    ),
    "job.pruned": _event("info", "count", "Old jobs were removed."),
    # Money and the outside world
    "provider.throttled": _event(
        "warning", "provider retry_after_s lane_limit", "A provider asked us to wait."
    ),
    "provider.refused": _event(
        "warning", "provider code status fate request_id_provider", "A provider said no."
    ),
    "provider.paused": _event(
        "error", "provider why until", "A lane is closed until a person or a probe opens it."
    ),
    "provider.resumed": _event("info", "provider paused_s", "A lane is open again."),
    "provider.retiring": _event(
        "warning", "provider model shutdown_date", "The configured model will be shut down."
    ),
    "provider.unknown": _event(
        "warning", "provider step cost_usd", "The outcome of a paid call is not known."
    ),
    "budget.exhausted": _event("warning", "scope limit_usd spent_usd until", "A budget is used up."),
    "storage.failed": _event("warning", "what error", "The object store failed; it is tried again."),
    "storage.lost": _event(
        "warning", "access error", "The object store cannot be read or written: jobs wait."
    ),
    "storage.restored": _event("info", "access", "The object store can be read or written again."),
    "storage.apart": _event(
        "error",
        "other host theirs ours",
        "Another daemon of this database keeps its pictures elsewhere: jobs will fail.",
    ),
    "storage.swept": _event("info", "count bytes", "Files that nothing refers to were removed."),
    "webhook.delivered": _event(
        "info", "endpoint_id event_type status duration_s delivery", "A webhook was accepted."
    ),
    "webhook.failed": _event("warning", "endpoint_id event_type status error delivery", "A delivery failed."),
    "webhook.disabled": _event("warning", "endpoint_id why", "An endpoint gets nothing any more."),
    "schedule.fired": _event("info", "schedule count due_at", "The clock has enqueued jobs."),
    "schedule.stopped": _event("error", "schedule error", "A schedule cannot be read: set it again."),
    # Postgres
    "database.lost": _event("warning", "error", "Postgres cannot be reached."),
    "database.restored": _event("info", "down_s", "Postgres answers again."),
    "database.pooled": _event(
        "warning", "listen", "A transaction pooler was detected: no prepared statements."
    ),
    "database.unconfined": _event(
        "warning", "error", "No role for reads of one user: row level security is not the second wall."
    ),
    "database.vacuum_held": _event(
        "warning",
        "held_by name pid application state age_s query_start",
        "A session, prepared transaction or slot holds back vacuum: claims will slow down.",
    ),
    "listener.connected": _event("info", "", "Notifications arrive."),
    "listener.lost": _event("warning", "error", "Notifications are dead; polling goes on."),
    "lease.lost": _event(
        "error", "silent_s running", "The lease could not be confirmed: all jobs were stopped."
    ),
    "lease.confirmed_late": _event("warning", "silent_s error", "A heartbeat came late."),
    "migrate.applied": _event("info", "number name", "A migration was applied."),
    # The log itself
    "log.dropped": _event("warning", "lines", "The reader was too slow: lines are missing here."),
    "log.forwarded": _event("warning", "logger message repeated", "A library said something."),
    "log.unwritable": _event("error", "name why", "A line could not be rendered."),
}
