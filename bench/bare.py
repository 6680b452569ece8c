"""Hand-written loops without a queue library (the shared benchmark's `limit/`): what the machine allows."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from bench.campaign import Campaign, Figures
from bench.report import BARE

DATABASE = "bare"
_DRAINS = {
    "HOT updates from a watermark, batches of 500, overlapping": ("hot2", "500", "overlap"),
    "UPDATE then DELETE, batches of 500, overlapping": ("del", "500", "overlap"),
    "two UPDATEs and a task a job, with a product's indexes": (
        "upd2",
        "500",
        "overlap",
        "tasks",
        "real",
    ),
    "one owner and a task a job, with a product's indexes": ("own1", "500", "overlap", "tasks", "real"),
}


async def drain_bare(campaign: Campaign, number: int) -> None:
    for case, arguments in _DRAINS.items() if campaign.limit is not None else ():

        async def take(arguments: tuple[str, ...] = arguments) -> Figures:
            said = (await _run(campaign, "drain.py", *arguments))[-1]
            return {"jobs_s": said["jobs_s"], "worker_us": said["client_us_job"]}

        await campaign.measure("drain", case, BARE, number, take)


async def enqueue_bare(campaign: Campaign, number: int) -> None:
    """One script measures them all; the forms that are not durable are left out."""
    if campaign.limit is None:
        return
    lines: list[dict[str, Any]] = []

    async def take() -> Figures:
        lines.extend(await _run(campaign, "insert.py", str(campaign.sizes.enqueue_s / 2)))
        return {"lines": len(lines)}

    await campaign.measure("fill", "insert.py", BARE, number, take)
    for line in lines:
        if line.get("setting") is not None:
            continue
        if "chunk" in line:
            case, figures = f"in bulk: {line['form'].removeprefix('bulk ')}, {line['chunk']} a call", {}
        else:
            case = f"one by one: {line['form']}, {line['conns']} connection{'s' * (line['conns'] > 1)}"
            figures = {"p50": line["p50_ms"], "p99": line["p99_ms"]}
        campaign.note("enqueue", case, BARE, number, {"jobs_s": line["jobs_s"], **figures})


async def prepare_bare(campaign: Campaign) -> None:
    await campaign.server.create(DATABASE)


async def _run(campaign: Campaign, script: str, *arguments: str) -> list[dict[str, Any]]:
    """The JSON lines that a script printed. Errors: RuntimeError."""
    environment = os.environ | {"BENCH_DSN": campaign.server.dsn(DATABASE), "N": str(campaign.sizes.jobs)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", f"{campaign.limit}/{script}", *arguments, env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=campaign.log,
    )  # fmt: skip
    try:
        printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        raise RuntimeError(f"{script}: exit {process.returncode}")
    return [json.loads(line) for line in printed.splitlines() if line.startswith(b"{")]
