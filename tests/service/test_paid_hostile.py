"""Answers made to hurt, bought by a whole daemon: what becomes of the job, and of the daemon meanwhile.

Peak memory and the slowest answer of /livez are printed (`pytest -s`): a daemon that still answers is one whose
event loop is not held up. Memory is asserted, times are not.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from daemon.client import Client
from tests.fleet import Daemon
from tests.protocol_servers import Fault
from tests.protocol_servers.hostile import MB, PICTURES
from tests.shop import PRODUCT, Shop, finish, open_shop_client, upload
from tests.work.products import photo

USAGE = {"input_tokens": 10, "output_tokens": 1000}


def painted(name: str) -> Fault:
    """OpenAI's answer with such a picture in it."""
    picture = base64.b64encode(PICTURES[name][0]()).decode()
    body = {"data": [{"b64_json": picture}], "usage": USAGE}
    return Fault(body=json.dumps(body).encode(), content_type="application/json")


def cut(name: str) -> Fault:
    return Fault(body=PICTURES[name][0](), content_type="image/png", headers={"X-Credits-Charged": "1"})


@dataclass(frozen=True)
class Case:
    """provider, the answer, the job's error, and how often it was bought."""

    provider: str
    name: str
    fault: Callable[[], Fault]
    code: str
    calls: int


PICTURE_NAMES = ("bomb", "truncated", "damaged", "animated-png", "animated-webp", "gif", "eps", "svg", "html",
                 "empty", "one-pixel", "wrong-ratio")  # fmt: skip
CASES = [
    *(Case("openai", name, lambda name=name: painted(name), "answers_unusable", 2) for name in PICTURE_NAMES),
    *(Case("removebg", name, lambda name=name: cut(name), "answers_unusable", 2) for name in PICTURE_NAMES),
    Case("openai", "400 MB", lambda: Fault(huge_bytes=400 * MB, content_type="application/json"), "outcome_unknown", 2),
    Case("removebg", "400 MB", lambda: Fault(huge_bytes=400 * MB, content_type="image/png"), "outcome_unknown", 2),
    Case("openai", "drip", lambda: Fault(drip_s=0.05), "outcome_unknown", 2),
    Case("removebg", "drip", lambda: Fault(drip_s=0.05), "outcome_unknown", 2),
    Case("openai", "HTML with 200", lambda: Fault(body=b"<html>no</html>", content_type="text/html"), "answer_unreadable", 3),
    Case("removebg", "HTML with 200", lambda: Fault(body=b"<html>no</html>", content_type="text/html"), "answer_unreadable", 3),
]  # fmt: skip


@dataclass
class Measured:
    peak_mb: float = 0
    livez_ms: float = 0


@asynccontextmanager
async def measuring(daemon: Daemon, client: Client) -> AsyncIterator[Measured]:
    """Growth of the daemon's peak memory (Linux), and the slowest /livez, within the block."""
    proc = Path(f"/proc/{daemon.pid}")
    (proc / "clear_refs").write_text("5")  # sets the high-water mark back to now: proc(5)
    found, before_kb = Measured(), _peak_kb(proc)

    async def watch() -> None:
        while True:
            began = time.monotonic()
            await client.probe("/livez")
            found.livez_ms = max(found.livez_ms, (time.monotonic() - began) * 1000)
            await asyncio.sleep(0.01)

    watcher = asyncio.create_task(watch(), name="livez-watch")
    try:
        yield found
    finally:
        watcher.cancel()
        await asyncio.wait({watcher})
        found.peak_mb = (_peak_kb(proc) - before_kb) / 1024


def _peak_kb(proc: Path) -> int:
    lines = (proc / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize("provider", ["openai", "removebg"])
async def test_hostile_answers_end_their_job_and_nothing_else(
    daemon: Callable[..., Daemon], provider: str
) -> None:
    async with Shop() as shop:
        one = await daemon(
            "one", **shop.settings(retry__base_s=0.05, openai__timeout_s=3, cutout__timeout_s=3)
        ).start()  # fmt: skip
        async with open_shop_client(one) as client:
            shared = await upload(client, photo(), user_id="ada")
            assert (
                "completed" == (await finish(client, await _order(client, shared, "lifestyle", 0)))["state"]
            )
            server = next(server for server in shop.servers if server.name == provider)
            wrong: list[Any] = []
            for number, case in enumerate((c for c in CASES if c.provider == provider), 1):
                upload_id = shared
                if provider == "removebg":
                    fresh = await asyncio.to_thread(photo, 300 + number)
                    upload_id = await upload(client, fresh, user_id="ada")
                server.always = await asyncio.to_thread(case.fault)
                before = len(shop.paid_calls(server))
                async with measuring(one, client) as measured:
                    slot = "lifestyle" if provider == "openai" else "main"
                    job = await finish(client, await _order(client, upload_id, slot, number))
                calls = len(shop.paid_calls(server)) - before
                code = (job["error"] or {}).get("code")
                sys.stdout.write(
                    f"{provider} {case.name}: {job['state']} {code}, {calls} calls,"
                    f" peak +{measured.peak_mb:.0f} MB, slowest /livez {measured.livez_ms:.0f} ms\n"
                )
                if (job["state"], code, calls) != ("failed", case.code, case.calls) or measured.peak_mb > 300:
                    wrong.append((case.name, job["state"], code, calls, measured))
                server.always = None
            assert [] == wrong
            assert not one.find("job.crashed")
            assert (
                "completed" == (await finish(client, await _order(client, shared, "lifestyle", 999)))["state"]
            )


async def _order(client: Client, upload_id: str, slot: str, number: int) -> str:
    asked = {"photo": {"upload_id": upload_id}, "product": {**PRODUCT, "title": f"Mug {number}"}, "slot": slot,
             "size_px": 1000}  # fmt: skip
    job = await client.create_job("image", asked, user_id="ada", max_attempts=3)
    return str(job["id"])
