"""Prometheus metrics: `listingd_<noun>_<unit>_total` or `_seconds`, labels from small closed sets only.

Never a user, a job, a path or a message in a label. The metrics are module globals on a registry of our own,
as is the custom with prometheus-client: they hold counts, no connection, and every floor may raise them.
Hot code keeps the child of its labels (`JOBS.labels(kind, outcome)`): looking it up costs 1 µs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST

_WAITS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 5, 15, 60, 300, 1800)
_RUNS_S = (0.001, 0.01, 0.1, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 900)
_REQUESTS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 2.5, 10, 60)
_CALLS_S = (0.1, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 360)
_BATCHES = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000)


class Distribution(Collector):
    """A histogram for each value of a label that takes many values at once: 0.1 µs each, where Histogram.observe
    takes 1. For the event loop's thread alone: it has no lock.
    """

    def __init__(
        self, name: str, text: str, label: str, bounds: tuple[float, ...], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._text = text
        self._label = label
        self._bounds = bounds
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        registry.register(self)

    def observe(self, label: str, values: Iterable[float]) -> None:
        """Count the values, in seconds."""
        counts = self._counts.get(label)
        if counts is None:
            counts = self._counts[label] = [0] * (len(self._bounds) + 1)
        total = 0.0
        for value in values:
            counts[bisect_left(self._bounds, value)] += 1
            total += value
        self._sums[label] = self._sums.get(label, 0.0) + total

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=(self._label,))
        names = [*map(str, self._bounds), "+Inf"]
        for label, counts in self._counts.items():
            family.add_metric((label,), list(zip(names, accumulate(counts), strict=True)), self._sums[label])
        yield family


REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

JOBS = Counter("listingd_job_attempts_total", "Ended attempts.", ("kind", "outcome"), registry=REGISTRY)
JOBS_RESCUED = Counter("listingd_jobs_rescued_total", "Jobs taken over from dead workers.", registry=REGISTRY)
JOBS_LOST = Counter("listingd_jobs_lost_total", "Writes refused by the fence.", registry=REGISTRY)
WAIT = Distribution("listingd_job_wait_seconds", "From ready to claimed.", "kind", _WAITS_S, REGISTRY)
RUN = Distribution("listingd_job_run_seconds", "Run time of an attempt.", "kind", _RUNS_S, REGISTRY)
CLAIM_BATCH = Histogram(
    "listingd_claim_batch_jobs", "Jobs claimed by one statement.", buckets=_BATCHES, registry=REGISTRY
)
FLUSH_BATCH = Histogram(
    "listingd_flush_batch_jobs", "Jobs finished by one statement.", buckets=_BATCHES, registry=REGISTRY
)
SLOTS = Gauge("listingd_worker_slots", "Size of the pool.", registry=REGISTRY)
SLOTS_BUSY = Gauge("listingd_worker_slots_busy", "Jobs running now.", registry=REGISTRY)
QUEUE_DEPTH = Gauge("listingd_queue_jobs", "Jobs by state, estimated.", ("kind", "state"), registry=REGISTRY)

PROVIDER_CALLS = Counter(
    "listingd_provider_calls_total", "Calls of providers.", ("provider", "outcome"), registry=REGISTRY
)
PROVIDER_RUN = Histogram(
    "listingd_provider_call_seconds", "Duration of a call.", ("provider",),
    buckets=_CALLS_S, registry=REGISTRY,
)  # fmt: skip
PROVIDER_COST = Counter(
    "listingd_provider_cost_usd_total", "Money spent, USD.", ("provider",), registry=REGISTRY
)
LANE_LIMIT = Gauge(
    "listingd_lane_concurrency_limit", "Calls a lane allows now.", ("provider",), registry=REGISTRY
)
LANE_PAUSED = Gauge("listingd_lane_paused", "1 while a lane is paused.", ("provider",), registry=REGISTRY)

HTTP_REQUESTS = Counter(
    "listingd_http_requests_total", "Answered requests.", ("route", "method", "status"), registry=REGISTRY
)
HTTP_RUN = Distribution(
    "listingd_http_request_seconds", "Duration of a request.", "route", _REQUESTS_S, REGISTRY
)
STREAMS = Gauge("listingd_http_streams_open", "Open event streams.", registry=REGISTRY)

DATABASE_UP = Gauge("listingd_database_up", "1 while Postgres answers.", registry=REGISTRY)
VACUUM_HELD = Gauge(
    "listingd_vacuum_held_seconds", "Age of what holds back vacuum, 0 below the setting.", registry=REGISTRY
)
STORAGE_UP = Gauge(
    "listingd_storage_up",
    "0 while the object store cannot be read or written.",
    ("access",),
    registry=REGISTRY,
)
LISTENER_UP = Gauge("listingd_listener_up", "1 while notifications are proven to arrive.", registry=REGISTRY)
LEASE_AGE = Gauge("listingd_lease_age_seconds", "Time since the last confirmed heartbeat.", registry=REGISTRY)
DROPPED_LINES = Gauge("listingd_log_lines_dropped", "Log lines lost to a slow reader.", registry=REGISTRY)


def render() -> bytes:
    """The text that Prometheus scrapes, of CONTENT_TYPE."""
    return generate_latest(REGISTRY)
