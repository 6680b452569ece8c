"""A process to be killed: `python -m tests.pg.victim DSN STATE_DIR PROVIDER_URL JOB_ID...`.

Claims the jobs and runs one paid step of each at the same time, each a POST to PROVIDER_URL/<job id>.
"""

from __future__ import annotations

import asyncio
import sys
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import aiohttp

from daemon.db import open_pool
from daemon.handlers.context import StepValue
from daemon.jobs import ClaimedJob
from daemon.providers.protocols import Usage
from daemon.settings import Settings
from daemon.storage import open_storage
from tests.pg.money_support import PRICE, Daemon, claim_again, start_daemon


async def pay(daemon: Daemon, session: aiohttp.ClientSession, url: str, job: ClaimedJob) -> None:
    async def call() -> StepValue:
        async with session.post(f"{url}/{job.id}") as answer:
            data = await answer.read()
            return StepValue(
                usage=Usage(Decimal(answer.headers["X-Cost"])), data=data, content_type="image/png"
            )

    await daemon.steps.run(
        job, "paint", provider="painter", identity=[str(job.id)], estimate_usd=PRICE, call=call
    )


async def main(dsn: str, state_dir: str, url: str, job_ids: list[str]) -> None:
    settings = Settings(state_dir=Path(state_dir))
    async with await open_pool(settings, dsn=dsn) as db, aiohttp.ClientSession() as session:
        daemon = await start_daemon(db, await open_storage(settings), instance="victim")
        jobs = [await claim_again(daemon, UUID(job_id)) for job_id in job_ids]
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(pay(daemon, session, url, job))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
