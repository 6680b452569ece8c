"""A process of its own that pays: `python -m tests.pg.payer DSN STATE_DIR LIMIT_USD JOB_ID...`.

Claims the jobs, runs one step of 1 USD for each at the same time, writes how many calls it made as JSON.
It begins when its standard input is closed, so that several begin together.
"""

from __future__ import annotations

import asyncio
import json
import sys
from decimal import Decimal
from pathlib import Path
from uuid import UUID

from daemon.db import open_pool
from daemon.errors import Retry
from daemon.settings import Budgets, Settings
from daemon.storage import open_storage
from tests.pg.money_support import Provider, claim_again, start_daemon


async def main(dsn: str, state_dir: str, limit_usd: str, job_ids: list[str]) -> None:
    settings = Settings(state_dir=Path(state_dir))
    async with await open_pool(settings, dsn=dsn) as db:
        budgets = Budgets(user_usd_per_day=Decimal(limit_usd))
        daemon = await start_daemon(
            db, await open_storage(settings), instance=f"payer-{job_ids[0]}", budgets=budgets
        )
        jobs = [await claim_again(daemon, UUID(job_id)) for job_id in job_ids]
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
        provider = Provider(cost_usd=Decimal(1), data=None)
        ends = await asyncio.gather(
            *(daemon.pay(job, provider, str(job.id), estimate_usd=Decimal(1)) for job in jobs),
            return_exceptions=True,
        )
        others = [repr(end) for end in ends if isinstance(end, BaseException) and not isinstance(end, Retry)]
        sys.stdout.write(json.dumps({"calls": provider.calls, "errors": others}) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
