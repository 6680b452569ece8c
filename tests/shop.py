"""Every provider a daemon may buy from, as protocol servers of this process, and what it takes to compare the
daemon's ledger with their journals: for the tests of money and for bench/packs.py.

    async with Shop() as shop:
        daemon = await Daemon(directory, dsn, **shop.settings()).start()
        ...
        assert await shop.differences(pool) == {}
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import asyncpg

from daemon.amazon.aplus_draft import AplusBrief, AplusFacts
from daemon.client import FINAL_STATES, Client, open_client
from daemon.client import Target as ServiceAddress
from daemon.providers.offline_text import write_draft
from daemon.service import Service, run_service
from daemon.settings import Settings
from tests.fleet import HEADERS, KEY, Daemon
from tests.protocol_servers import GeminiServer, OpenAIServer, ProtocolServer, RemoveBgServer
from tests.protocol_servers.wire import Call

PRODUCT: Mapping[str, Any] = {
    "title": "Stoneware mug, 350 ml",
    "brand": "Verdana",
    "bullets": ["Generous size: holds 350 ml", "Thick walls: keeps tea warm", "Easy to clean: dishwasher safe"],
    "category": "Kitchen",
    "dimensions": {"length": "12", "width": "9", "height": "10", "unit": "cm"},
    "in_the_box": ["Mug", "Care leaflet"],
    "sku": "MUG-350",
}  # fmt: skip
PACK_CALLS = 4
"""Paid calls of a pack of six: one cut-out, three painted pictures (the others are drawn by code)."""


class Shop:
    """OpenAI, remove.bg and Gemini on ports of this process."""

    def __init__(self) -> None:
        self.openai = OpenAIServer()
        self.removebg = RemoveBgServer()
        self.gemini = GeminiServer()
        self.gemini.reply = write_as_asked
        self.openai.images_per_minute = 1_000_000  # its headers: a window that is never used up
        self._stack = AsyncExitStack()

    @property
    def servers(self) -> Sequence[ProtocolServer]:
        return (self.openai, self.removebg, self.gemini)

    async def __aenter__(self) -> Self:
        for server in self.servers:
            await self._stack.enter_async_context(server)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def settings(self, **more: Any) -> dict[str, Any]:
        """For fleet.Daemon: all three configured, with rates that no test reaches by accident."""
        return {
            "openai__api_key": self.openai.api_key, "openai__base_url": self.openai.base_url,
            "openai__quality": "low", "openai__images_per_minute": 60_000, "openai__requests_per_minute": 60_000,
            "cutout__api_key": self.removebg.api_key, "cutout__base_url": self.removebg.base_url,
            "cutout__requests_per_minute": 60_000,
            "gemini__api_key": self.gemini.api_key, "gemini__base_url": self.gemini.url,
            "gemini__requests_per_minute": 60_000,
            "log__level": "info",
        } | more  # fmt: skip

    def paid_calls(self, server: ProtocolServer) -> list[Call]:
        """Calls that make something; not the question which models there are."""
        return [call for call in server.journal.calls if call.method == "POST"]

    async def differences(self, sql: asyncpg.Pool) -> dict[str, tuple[Decimal, Decimal]]:
        """Provider -> (ledger, journal) in USD where they differ by more than the books' own rounding."""
        rows = await sql.fetch(
            "select provider, sum(actual_usd) as usd, count(*) as n from listingd.steps group by provider"
        )
        booked = {row["provider"]: (row["usd"] or Decimal(0), row["n"]) for row in rows}
        found = {}
        for server in self.servers:
            usd, count = booked.get(server.name, (Decimal(0), 0))
            # One call is rounded to a millionth of a dollar.
            if abs(usd - server.journal.billed_usd) > Decimal("0.000001") * count:
                found[server.name] = (usd, server.journal.billed_usd)
        return found


def key_of(call: Call) -> str:
    """What a call asked for: equal for two calls that buy the same."""
    asked = {key: value for key, value in call.fields.items() if key != "safety_identifier"}
    text = json.dumps([call.path, asked, [file.sha256 for file in call.files]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_as_asked(body: Mapping[str, Any]) -> str:
    """The answer of a language model that does what the prompt says: a sound draft of the modules it lists."""
    prompt = str(body["contents"][0]["parts"][0]["text"])
    facts = json.loads(prompt.rpartition("<product_facts>")[2].partition("</product_facts>")[0])
    modules = re.findall(r"^\d+\. (STANDARD_[A-Z_]+):", prompt, re.MULTILINE)
    locale = re.search(r"\b([a-z]{2}-[A-Z]{2})\b", prompt)
    tone = facts.pop("tone", "")
    brief = AplusBrief(
        facts=AplusFacts.model_validate(facts), modules=tuple(modules),
        locale=locale.group(1) if locale else "en-US", tone=tone,
    )  # fmt: skip
    return write_draft(brief).model_dump_json()


def open_shop_client(daemon: Daemon) -> AbstractAsyncContextManager[Client]:
    """A client of this daemon with the fleet's service key."""
    return open_client(ServiceAddress(daemon.url, KEY))


@asynccontextmanager
async def shop_service(
    shop: Shop, database: str, directory: Path, **more: object
) -> AsyncIterator[tuple[Service, Client]]:
    """A whole daemon in this process that buys from the shop, and a client of it. more: as for `settings`."""
    flat = (
        {"http__port": 0, "poll_s": 0.5, "retry__base_s": 0.05, "log__level": "warning"}
        | shop.settings()
        | more
    )
    nested: dict[str, Any] = {"database_url": database, "state_dir": directory / "state", "service_key": KEY}
    for name, value in flat.items():
        group, _, field = name.rpartition("__")
        (nested.setdefault(group, {}) if group else nested)[field] = value
    calls = len(shop.openai.journal.calls)
    async with (
        run_service(Settings.model_validate(nested)) as service,
        open_client(ServiceAddress(service.url, KEY)) as client,
    ):
        async with asyncio.timeout(60):  # the question about models must not take a scripted fault
            await shop.openai.journal.until(calls + 1)
        yield service, client


async def upload(client: Client, photo: bytes, *, user_id: str) -> str:
    """The photo as this user's own; its upload_id."""
    url = f"{client.url}/v1/uploads?user_id={user_id}"
    headers = HEADERS | {"Content-Type": "application/octet-stream"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(url, data=photo) as response,
    ):
        return str((await response.json())["upload_id"])


async def order_pack(client: Client, photo: bytes, *, user_id: str, size_px: int = 2000, **more: Any) -> str:
    """A new pack's id. The photo is the user's own upload."""
    upload_id = await upload(client, photo, user_id=user_id)
    asked = {"photo": {"upload_id": upload_id}, "product": dict(PRODUCT), "size_px": size_px, **more}
    job = await client.create_job("pack", asked, user_id=user_id)
    return str(job["id"])


async def finish(client: Client, job_id: str, within_s: float = 120) -> dict[str, Any]:
    """The job once it is final. Errors: AssertionError when that takes longer."""
    until = time.monotonic() + within_s
    while True:
        job: dict[str, Any] = await client.call("GET", f"/v1/jobs/{job_id}", headers={"Prefer": "wait=10"})
        if job["state"] in FINAL_STATES:
            return job
        if time.monotonic() > until:
            raise AssertionError(
                f"{job['kind']} is {job['state']} after {within_s} s: {json.dumps(job)[:3000]}"
            )
        await asyncio.sleep(0.05)
