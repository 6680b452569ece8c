"""`python -m bench`: measure listingd and its peers side by side, and write docs/benchmarks.md."""

from __future__ import annotations

import asyncio
import functools
import json
import pstats
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import click
import uvloop

from bench import http_rate, latency, throughput
from bench.bare import prepare_bare
from bench.campaign import QUICK, Campaign, Sizes
from bench.contestants import (
    HARNESS,
    PEERS,
    PEERS_DIR,
    REPOSITORY,
    Contestant,
    Skipped,
    listingd,
    prepare_harness,
    prepare_peer,
)
from bench.machine import describe_machine
from bench.report import BARE, PICTURE, Report, draw_picture, write_markdown
from bench.server import temporary_server

SECTIONS: dict[str, tuple[Callable[[Campaign], Awaitable[None]], float]] = {
    "drain": (throughput.drain, 0.12),
    "full": (throughput.full, 0.2),
    "backlog": (throughput.backlog, 0.05),
    "sustained": (throughput.sustained, 0.08),
    "enqueue": (throughput.enqueue, 0.12),
    "http": (http_rate.http, 0.07),
    "pickup": (latency.pickup, 0.17),
    "held": (latency.held, 0.05),
    "cold": (latency.cold, 0.04),
    "idle": (latency.idle, 0.06),
    "wal": (throughput.wal, 0.04),
}
"""What is measured, and its share of the time."""
LOOPS = "bare"  # the hand-written loops, as a name for --peers
BUSY_PERCENT = 25.0


def _split(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


@click.command(context_settings={"max_content_width": 100})
@click.option("--quick", is_flag=True, help="A smoke run with small sizes; its figures mean nothing.")
@click.option("--only", callback=_split, help=f"Sections, comma-separated: {', '.join(SECTIONS)}.")
@click.option(
    "--peers",
    callback=_split,
    help=f"Of {', '.join(PEERS)}, {LOOPS}; or none. Default: all that can be installed.",
)
@click.option("--rounds", default=3, show_default=True, help="How often the sections are repeated.")
@click.option(
    "--minutes",
    default=14.0,
    show_default=True,
    help="Sections are repeated within their share of this time only.",
)
@click.option("--jobs", type=int, help="Jobs of a drain instead of 20 000.")
@click.option("--held", type=float, help="Seconds for which a snapshot is held; 600 for the long form.")
@click.option(
    "--profile", is_flag=True, help="Profile our worker in the drains and print where its time goes."
)
@click.option("--peers-dir", type=Path, default=PEERS_DIR, help="Where the peers are installed.")
@click.option("--harness", type=Path, default=HARNESS, help="The shared benchmark with the peers' programs.")
@click.option("--data-dir", type=Path, help="Where Postgres keeps its data meanwhile; a disk, not memory.")
@click.option("--json", "json_file", type=Path, help="Write every measurement there too, one a line.")
@click.option(
    "--docs", type=Path, help="The folder of benchmarks.md; default docs/, when everything was measured."
)
def main(only: list[str] | None, peers: list[str] | None, **options: object) -> None:
    """Measure listingd beside other Postgres queues, in one run, on a Postgres of its own.

    Writes docs/benchmarks.md. Exit 1 when something could not be measured; the page says what and why.
    """
    unknown = [name for name in only or () if name not in SECTIONS]
    unknown += [name for name in peers or () if name not in (*PEERS, LOOPS, "none")]
    if unknown:
        raise click.BadParameter(f"not known: {', '.join(unknown)}")
    sys.exit(uvloop.run(_run(only, peers, **options)))  # type: ignore[arg-type]


async def _run(
    only: list[str] | None, peers: list[str] | None, *, quick: bool, minutes: float, rounds: int, jobs: int | None, held: float | None,
    profile: bool, peers_dir: Path, harness: Path, data_dir: Path | None, json_file: Path | None, docs: Path | None,
) -> int:  # fmt: skip
    began = time.monotonic()
    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGTERM, running.cancel
    )  # the server must not stay behind
    sizes = QUICK if quick else Sizes()
    sizes = replace(sizes, jobs=jobs or sizes.jobs, held_s=held or sizes.held_s)
    if docs is None and only is None and peers is None and not quick:
        docs = REPOSITORY / "docs"
    async with AsyncExitStack() as stack:
        scratch = Path(tempfile.mkdtemp(prefix="listingd-bench-", dir=data_dir))
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        server = await stack.enter_async_context(temporary_server(data_dir))
        log_path = scratch / "log"
        make = functools.partial(listingd, _find_port(), scratch)
        print("preparing the peers", flush=True)
        ready, skipped, limit = await asyncio.to_thread(_prepare_peers, peers, harness, peers_dir)
        campaign = Campaign(
            server=server, sizes=sizes, rounds=1 if quick else rounds, log=stack.enter_context(log_path.open("ab")),
            listingd=make(), make_listingd=make, peers=ready, skipped=skipped, limit=limit,
            profile=str(scratch / "profile") if profile else None,
        )  # fmt: skip
        facts = describe_machine(scratch) | {"PostgreSQL": await server.describe()}
        if limit is not None:
            await prepare_bare(campaign)
        names = only or list(SECTIONS)
        whole, spent = sum(SECTIONS[name][1] for name in names), 0.0
        for name in names:
            take, share = SECTIONS[name]
            spent += share / whole
            campaign.repeat_until = began + minutes * 60 * spent
            print(f"{name} ({time.monotonic() - began:.0f} s)", flush=True)
            campaign.check_speed()
            try:
                await take(campaign)
            except Exception as exc:
                campaign.fail(name, "", "listingd", exc)
        if profile and (scratch / "profile").exists():
            pstats.Stats(str(scratch / "profile")).sort_stats("tottime").print_stats(40)
        if campaign.failures:
            print(
                "".join(log_path.read_text(errors="replace").splitlines(keepends=True)[-40:]), file=sys.stderr
            )
    facts |= {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {(time.monotonic() - began) / 60:.0f} minutes",
        "rounds": f"{campaign.rounds} at most, fewer where a section's share of {minutes:g} minutes was used up",
        "HTTP load": "wrk, one thread" if shutil.which("wrk") else "a client in Python on the same machine",
        "machine's speed": f"the same Python loop took {min(campaign.speed_ms):.1f} to {max(campaign.speed_ms):.1f} ms",
    }
    _write(campaign, facts, json_file, docs)
    print(
        f"{len(campaign.records)} measurements, {len(campaign.failures)} failed, {time.monotonic() - began:.0f} s"
    )
    return 1 if campaign.failures else 0


def _write(campaign: Campaign, facts: dict[str, str], json_file: Path | None, docs: Path | None) -> None:
    if json_file is not None:
        json_file.write_text("".join(json.dumps(asdict(record)) + "\n" for record in campaign.records))
    if docs is None:
        return
    contestants = [campaign.listingd, *campaign.peers.values()]
    others = sorted(r.figures["other_percent"] for r in campaign.records if "other_percent" in r.figures)
    busy = others[len(others) // 2] if others else 0.0
    warnings = []
    if campaign.sizes.finished < Sizes().finished:
        warnings.append("This was a smoke run with small sizes.")
    if busy > BUSY_PERCENT:
        warnings.append(
            f"The machine was busy with other programs: they took {busy:.0f} % of one core (median over the measurements)."
            " All figures are lower and noisier than on a quiet machine; the ratios say more."
        )
    report = Report(
        records=campaign.records, failures=campaign.failures, skipped=campaign.skipped, facts=facts, warning=" ".join(warnings),
        titles={c.name: c.title for c in contestants} | {BARE: BARE},
        versions={c.name: c.versions for c in contestants},
        settings={c.name: ", ".join(f"{k} {v}" for k, v in c.info["settings"].items()) for c in contestants},
        jobs=campaign.sizes.jobs,
    )  # fmt: skip
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "benchmarks.md").write_text(write_markdown(report), encoding="utf-8")
    (docs / PICTURE).write_text(draw_picture(report), encoding="utf-8")
    print(f"written: {docs / 'benchmarks.md'}")


def _prepare_peers(
    wanted: list[str] | None, harness: Path, peers_dir: Path
) -> tuple[dict[str, Contestant], dict[str, str], str | None]:
    """Peers that can run, peers that cannot and why, the folder of the bare loops."""
    names = [name for name in PEERS if wanted is None or name in wanted]
    try:
        prepare_harness(harness, peers_dir)
    except Skipped as exc:
        return {}, dict.fromkeys(names, str(exc)), None
    ready, skipped = {}, {}
    for name in names:
        print(f"  {name}", flush=True)
        try:
            ready[name] = prepare_peer(name, peers_dir)
        except Skipped as exc:
            skipped[name] = str(exc)
            print(f"  {name} is left out: {exc}", flush=True)
    return ready, skipped, str(peers_dir / "limit") if wanted is None or LOOPS in wanted else None


def _find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    main()
