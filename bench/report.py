"""What was measured, as docs/benchmarks.md and its picture. Medians over the rounds, [lowest–highest] behind them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.campaign import Failure, Figures, Record
from bench.plot import Bar, Panel, draw

OURS = "listingd"
BARE = "bare loop"
PICTURE = "benchmarks.svg"


@dataclass(frozen=True, slots=True)
class Report:
    """titles: contestant -> its name in the tables. facts: of machine, run and server, in order."""

    records: Sequence[Record]
    failures: Sequence[Failure]
    skipped: dict[str, str]
    titles: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, str]
    facts: dict[str, str]
    jobs: int
    warning: str = ""

    def find(self, section: str, case: str, contestant: str) -> list[Figures]:
        return [
            r.figures
            for r in self.records
            if (r.section, r.case, r.contestant) == (section, case, contestant)
        ]

    def median(self, section: str, case: str, contestant: str, figure: str) -> float | None:
        values = [f[figure] for f in self.find(section, case, contestant) if figure in f]
        return statistics.median(values) if values else None

    def cell(self, section: str, case: str, contestant: str, figure: str, *, spread: bool = False) -> str:
        """The median, with the lowest and highest when asked for; why there is none."""
        values = [f[figure] for f in self.find(section, case, contestant) if figure in f]
        if not values:
            failed = any(
                (f.section, f.case, f.contestant) == (section, case, contestant) for f in self.failures
            )
            return "failed" if failed else "–"
        text = show(statistics.median(values))
        return text + (f" [{show(min(values))}–{show(max(values))}]" if spread and len(values) > 1 else "")

    def cases(self, section: str, contestant: str) -> list[str]:
        """In the order they were first measured."""
        return list(
            dict.fromkeys(r.case for r in self.records if (r.section, r.contestant) == (section, contestant))
        )

    def ratio(self, section: str, case: str, contestant: str, *, against: str, of_case: str) -> str:
        """The median over the rounds of jobs_s by jobs_s of the same round."""
        ours = {
            r.round: r.figures["jobs_s"]
            for r in self.records
            if (r.section, r.case, r.contestant) == (section, case, contestant)
        }
        theirs = {
            r.round: r.figures["jobs_s"]
            for r in self.records
            if (r.section, r.case, r.contestant) == (section, of_case, against)
        }
        both = [ours[n] / theirs[n] for n in ours.keys() & theirs.keys() if theirs[n]]
        return f"{statistics.median(both):.2f}" if both else "–"


def show(value: float) -> str:
    """Three figures that mean something."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "Not measured in this run."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def write_markdown(report: Report) -> str:
    """The whole page."""
    parts = [
        "# Benchmarks",
        (
            "Written by `make bench` (`python -m bench`): listingd and other Postgres queues on one machine, in one run, turn by\n"
            "turn, on one PostgreSQL with its default durability (every commit is on disk before it is answered). No-op jobs,\n"
            "one worker process each, every library at its best settings found by a sweep. Numbers are medians over the\n"
            "rounds, [lowest–highest]. Compare within this page only: another machine, another day, other numbers."
        ),
    ]
    if report.warning:
        parts.append(f"> **{report.warning}**")
    parts += [
        f"![jobs a second, full tables, pickup]({PICTURE})",
        "## Throughput", _throughput(report),
        "## The same with full tables", _full(report),
        "## Enqueue", _enqueue(report),
        "## HTTP", _http(report),
        "## Pickup", _pickup(report),
        "## Resources", _resources(report),
        "## How it was measured", _method(report),
    ]  # fmt: skip
    if report.failures:
        rows = [
            [f.section, f.case or "–", report.titles.get(f.contestant, f.contestant), f.why]
            for f in report.failures
        ]
        parts += ["## Failed", _table(["section", "case", "contestant", "why"], rows)]
    if report.skipped:
        parts += ["## Left out", "\n".join(f"- {name}: {why}" for name, why in report.skipped.items())]
    return "\n\n".join(parts) + "\n"


def _contestants(report: Report, section: str) -> list[str]:
    """Those with a measurement or a failure there, ours first, the bare loops apart."""
    seen = {r.contestant for r in report.records if r.section == section}
    seen |= {f.contestant for f in report.failures if f.section == section}
    return [name for name in report.titles if name in seen]


def _throughput(report: Report) -> str:
    rows = [
        [
            report.titles[name], report.cell("drain", "", name, "jobs_s", spread=True),
            report.ratio("drain", "", OURS, against=name, of_case=""),
            f"{report.cell('drain', '', name, 'worker_us')} + {report.cell('drain', '', name, 'postgres_us')}",
            report.cell("sustained", "", name, "jobs_s", spread=True),
            report.cell("wal", "", name, "bytes"), report.cell("wal", "", name, "after_checkpoint_bytes"),
        ]
        for name in _contestants(report, "drain")
        if name != BARE
    ]  # fmt: skip
    slow = [
        f"{report.titles[name]} {report.cell('drain', '', name, 'jobs')}"
        for name in _contestants(report, "drain")
        if (report.median("drain", "", name, "jobs") or math.inf) < report.jobs
    ]
    less = f" (the slow ones drain fewer: {', '.join(slow)})" if slow else ""
    bare = [
        [case, report.cell("drain", case, BARE, "jobs_s", spread=True), report.ratio("drain", "", OURS, against=BARE, of_case=case)]
        for case in report.cases("drain", BARE)
    ]  # fmt: skip
    head = [
        "", "drain, jobs/s", "listingd is × as fast", "CPU µs/job, worker + Postgres", "sustained, jobs/s",
        "WAL bytes/job", "the same right after a checkpoint",
    ]  # fmt: skip
    text = (
        f"Drain: {show(report.jobs)} jobs wait{less}, a worker starts; from the first handler's start until the\n"
        "database holds no unfinished job. Sustained: a producer (100 jobs a call) and the worker together. WAL: from the\n"
        "enqueue to the recorded end.\n\n" + _table(head, rows)
    )
    if bare:
        text += "\n\nHand-written loops without a queue library, beside it:\n\n" + _table(
            ["bare loop", "drain, jobs/s", "listingd is × as fast"], bare
        )
    return text


def _full(report: Report) -> str:
    rows = [
        [
            report.titles[name], case, report.cell(section, case, name, "jobs_s", spread=True),
            report.ratio(section, case, name, against=name, of_case="empty"),
            f"{report.cell(section, case, name, 'worker_us')} + {report.cell(section, case, name, 'postgres_us')}",
            report.cell(section, case, name, "start_s"),
        ]
        for section in ("full", "backlog")
        for name in _contestants(report, section)
        for case in report.cases(section, name)
    ]  # fmt: skip
    head = ["", "in the table already", "drain, jobs/s", "of the empty table's", "CPU µs/job", "start, s"]
    return (
        "The drain beside rows that have nothing to do with it (of 1000 other users), turn by turn with the drain of an\n"
        "empty table. “due”: all of them wait for this worker; the rate over the first three drains' worth. A peer that\n"
        "deletes finished jobs has no such rows.\n\n" + _table(head, rows)
    )


def _enqueue(report: Report) -> str:
    rows = [
        [
            report.titles[name], report.cell("enqueue", "one by one", name, "jobs_s", spread=True),
            report.cell("enqueue", "one by one", name, "p50"), report.cell("enqueue", "one by one", name, "p99"),
            report.cell("enqueue", "in bulk", name, "jobs_s", spread=True),
            report.cell("enqueue", "in bulk", name, "jobs_a_call"),
        ]
        for name in _contestants(report, "enqueue") if name != BARE
    ]  # fmt: skip
    bare = [
        [case, report.cell("enqueue", case, BARE, "jobs_s", spread=True), report.cell("enqueue", case, BARE, "p50"), report.cell("enqueue", case, BARE, "p99")]
        for case in report.cases("enqueue", BARE)
    ]  # fmt: skip
    text = (
        "By the library's own call, one connection, no worker. Ours by SQL: `listingd.enqueue_job(s)`.\n\n"
        + _table(["", "one by one, jobs/s", "p50 ms", "p99 ms", "in bulk, jobs/s", "jobs a call"], rows)
    )
    if bare:
        text += "\n\n" + _table(["hand-written, a narrow table", "jobs/s", "p50 ms", "p99 ms"], bare)
    return text


def _http(report: Report) -> str:
    later = [case for case in report.cases("http", OURS) if case.startswith("created, to run later")]
    rows = []
    for case in later:
        connections = case.rpartition(" ")[2]
        group, run = f"group commit, {connections}", f"created and run, {connections}"
        rows.append([
            connections, report.cell("http", case, OURS, "jobs_s", spread=True),
            report.cell("http", case, OURS, "p50"), report.cell("http", case, OURS, "p99"),
            report.cell("http", group, BARE, "jobs_s", spread=True), report.cell("http", group, BARE, "p99"),
            report.ratio("http", case, OURS, against=BARE, of_case=group),
            report.cell("http", run, OURS, "jobs_s", spread=True), report.cell("http", run, OURS, "p99"),
        ])  # fmt: skip
    head = [
        "connections", "created, to run later, /s", "p50 ms", "p99 ms", "bare loop, /s", "p99 ms", "ratio",
        "created and run at once, /s", "p99 ms",
    ]  # fmt: skip
    return (
        "`POST /v1/jobs` over kept connections. The bare loop: the same server and driver with nothing but JSON in, one INSERT\n"
        f"by group commit, JSON out. Load by {report.facts.get('HTTP load', 'unknown')}.\n\n"
        + _table(head, rows)
    )


def _pickup(report: Report) -> str:
    figures = ("p50", "p95", "p99", "call_p50", "call_p99")
    rows = [
        [report.titles[name], case or "–", *(report.cell("pickup", case, name, figure) for figure in figures)]
        for name in _contestants(report, "pickup")
        for case in report.cases("pickup", name)
    ]
    head = ["", "", "p50 ms", "p95 ms", "p99 ms", "from the call: p50 ms", "p99 ms"]
    text = (
        "An idle worker; single jobs from another process; from the answer to the enqueue call (the commit) until the handler\n"
        "starts. Over HTTP a job may start before its answer has arrived: then the time is negative.\n\n"
        + _table(head, rows)
    )
    held = [
        [
            case,
            *(
                report.cell("held", case, OURS, f)
                for f in ("p50", "p99", "claim_p50", "claim_p99", "dead_rows")
            ),
        ]
        for case in report.cases("held", OURS)
    ]
    if held:
        text += "\n\n200 jobs a second while another session holds a snapshot, so that no dead row can be removed; the last quarter:\n\n"
        text += _table(["listingd", "pickup p50 ms", "p99 ms", "claim p50 ms", "p99 ms", "dead rows"], held)
    return text


def _resources(report: Report) -> str:
    rows = [
        [
            report.titles[name], report.cell("idle", "", name, "rss_mb"), report.cell("drain", "", name, "peak_mb"),
            f"{report.cell('idle', '', name, 'worker_percent')} + {report.cell('idle', '', name, 'postgres_percent')}",
            report.cell("idle", "", name, "transactions_s"), report.cell("idle", "", name, "connections"),
            report.cell("cold", "", name, "seconds", spread=True), report.cell("cold", "", name, "cpu_s"),
        ]
        for name in _contestants(report, "idle")
    ]  # fmt: skip
    head = [
        "", "memory idle, MiB", "at the drain's peak", "idle CPU %, worker + Postgres", "idle transactions/s", "connections",
        "cold start, s", "of it CPU, s",
    ]  # fmt: skip
    return (
        "Cold start: from the start of the process until the handler of a waiting job starts. Ours is the whole daemon with\n"
        "HTTP, image handlers and providers.\n\n" + _table(head, rows)
    )


def _method(report: Report) -> str:
    facts = _table(["", ""], [[name, text] for name, text in report.facts.items()])
    used = _table(
        ["contestant", "versions", "settings"],
        [[report.titles[name], report.versions[name], report.settings[name]] for name in report.versions],
    )
    return (
        f"{facts}\n\n{used}\n\n"
        "Repeat it with `make bench`; `python -m bench --help` names the parts and a smoke run of a minute. The peers' programs\n"
        "come from the shared benchmark beside this repository, what they run on is installed into a cache directory; without\n"
        "it listingd alone is measured. CPU is read from /proc, of the worker and of all Postgres processes. Every drain is\n"
        "checked in the database: a job that was not recorded as finished fails the run."
    )


def draw_picture(report: Report) -> str:
    """The SVG beside the page."""
    return draw([_draw_drain(report), _draw_full(report), _draw_pickup(report)])


def _role(name: str) -> str:
    return {OURS: "own", BARE: "bare"}.get(name, "peer")


def _draw_drain(report: Report) -> Panel:
    bars = []
    for name in _contestants(report, "drain"):
        cases = report.cases("drain", name) if name == BARE else [""]
        for case in cases:
            value = report.median("drain", case, name, "jobs_s")
            if value is not None:
                best = max(f["jobs_s"] for f in report.find("drain", case, name))
                label = f"hand-written: {case.partition(',')[0]}" if name == BARE else report.titles[name]
                bars.append(Bar(label, value, f"{show(value)}", _role(name), best))
    bars.sort(key=lambda bar: -bar.value)
    return Panel(
        "Drain, jobs a second", f"{show(report.jobs)} no-op jobs, one worker process; line: best run", bars
    )


def _draw_full(report: Report) -> Panel:
    bars = []
    for section in ("full", "backlog"):
        for case in report.cases(section, OURS):
            value = report.median(section, case, OURS, "jobs_s")
            if value is not None:
                best = max(f["jobs_s"] for f in report.find(section, case, OURS))
                bars.append(Bar(case, value, show(value), _role(OURS), best))
    return Panel(
        "listingd as its tables fill, jobs a second", "the drain beside so many rows; line: best run", bars
    )


def _draw_pickup(report: Report) -> Panel:
    bars = []
    for name in _contestants(report, "pickup"):
        for case in report.cases("pickup", name)[: 2 if name == OURS else 1]:
            p50, p99 = (report.median("pickup", case, name, figure) for figure in ("p50", "p99"))
            if p50 is not None and p99 is not None:
                label = f"{report.titles[name]} {case}".strip()
                bars.append(Bar(label, max(p50, 0.0), f"{show(p50)} / {show(p99)}", _role(name), p99))
    bars.sort(key=lambda bar: bar.value)
    return Panel("Pickup, milliseconds", "from the commit to the handler's start; bar: p50, line: p99", bars)
