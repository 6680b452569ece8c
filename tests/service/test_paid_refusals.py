"""Every row of the shared table of error classes, driven over the wire through the whole service.

For each row a job of its own: how many HTTP calls its attempts made, how many attempts were counted, what
became of the job, and what became of the provider's lane.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from daemon.client import Client
from tests.protocol_servers import Fault
from tests.protocol_servers.error_classes import TABLE, http_cases
from tests.shop import PRODUCT, Shop, finish, shop_service, upload
from tests.support import eventually
from tests.work.products import photo

if not TABLE.is_file():
    pytest.skip("../shared/data is not on this machine", allow_module_level=True)

MAX_ATTEMPTS = 3
# As the table says: a retry counts every attempt; what may have been billed is tried once more; what is refused
# for good is not tried again; an empty account and a wrong setup cost no attempt.
EXPECTED = {"retry": ("failed", 3, 3), "ambiguous": ("failed", 2, 2), "permanent": ("failed", 1, 1),
            "budget": ("pending", 0, 1), "config": ("pending", 0, 1)}  # fmt: skip


@dataclass
class Row:
    """One row of the table; expected: (state, attempts counted, HTTP calls). prepare: sets the server up."""

    name: str
    provider: str
    fate: str
    fault: Fault = field(default_factory=Fault)
    expected: tuple[str, int, int] | None = None
    prepare: Callable[[Shop], None] = lambda shop: None
    code: str | None = None


def rows() -> list[Row]:
    found = []
    for case in http_cases():
        fault = case.fault
        if fault.status == 429 and case.provider == "removebg":
            fault = replace(fault, headers={"Retry-After": "0"})  # else its window says 42 s
        found.append(Row(str(case), case.provider, case.fate, fault))
    lost = Fault(drop="before_answer")
    garbage = Fault(body=b"<html>", content_type="text/html")
    found += [
        Row("openai.APITimeoutError", "openai", "ambiguous", Fault(delay_s=60)),
        Row("openai.APIConnectionError", "openai", "ambiguous", lost),
        Row("openai.APIResponseValidationError", "openai", "retry", Fault(body=b"{}")),
        Row("openai: HTML with 200", "openai", "retry", garbage),
        Row("openai: an error event of its budget", "openai", "budget", prepare=_stream("billing_hard_limit_reached")),
        Row("openai: an error event of moderation", "openai", "permanent", prepare=_stream("moderation_blocked")),
        Row("openai: an error event of rate", "openai", "retry", prepare=_stream("rate_limit_exceeded")),
        Row("removebg: connection lost", "removebg", "ambiguous", lost),
        Row("gemini ReadTimeout", "gemini", "ambiguous", Fault(delay_s=60)),
        Row("gemini ConnectionError", "gemini", "ambiguous", lost),
        Row("gemini blockReason", "gemini", "permanent", prepare=_answer(block_reason="SAFETY"), code="text_blocked"),
    ]  # fmt: skip
    for finish_reason in ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE"):
        found.append(
            Row(f"gemini {finish_reason}", "gemini", "permanent", prepare=_answer(finish=finish_reason))
        )
    for odd in ("OTHER", "FINISH_REASON_UNSPECIFIED", 77):  # "at most 2": they are billed
        found.append(
            Row(f"gemini {odd}", "gemini", "retry", expected=("failed", 2, 2), prepare=_answer(finish=odd))
        )
    return found


def _stream(code: str) -> Callable[[Shop], None]:
    def prepare(shop: Shop) -> None:
        shop.openai.stream_error = {"code": code, "message": "no", "type": "x"}

    return prepare


def _answer(**fields: Any) -> Callable[[Shop], None]:
    def prepare(shop: Shop) -> None:
        for name, value in fields.items():
            setattr(shop.gemini, name, value)

    return prepare


@dataclass
class Desk:
    """A running service, its shop, and a way to see the rows behind it."""

    shop: Shop
    client: Client
    sql: asyncpg.Pool
    upload_id: str = ""

    async def order(self, row: Row, number: int) -> str:
        """A job whose paid call at the row's provider cannot be reused from another."""
        title = f"{PRODUCT['title']} {number}"
        asked: dict[str, Any]
        if row.provider == "gemini":
            asked = {"product": {**PRODUCT, "title": title}, "modules": ["STANDARD_TEXT"]}
            kind = "aplus"
        elif row.provider == "openai":
            streams = self.shop.openai.stream_error is not None
            asked = {"photo": {"upload_id": self.upload_id}, "product": {**PRODUCT, "title": title},
                     "slot": "lifestyle", "size_px": 1000, "preview": streams}  # fmt: skip
            kind = "image"
        else:
            fresh = await asyncio.to_thread(photo, 301 + number, 360)
            asked = {"photo": {"upload_id": await upload(self.client, fresh, user_id="ada")},
                     "product": dict(PRODUCT), "slot": "main", "size_px": 1000}  # fmt: skip
            kind = "image"
        job = await self.client.create_job(kind, asked, user_id="ada", max_attempts=MAX_ATTEMPTS)
        return str(job["id"])

    async def play(self, row: Row, number: int) -> dict[str, Any]:
        """What came of the row: job, HTTP calls, lane."""
        server = next(server for server in self.shop.servers if server.name == row.provider)
        row.prepare(self.shop)
        server.always = row.fault
        before = len(self.shop.paid_calls(server))
        job_id = await self.order(row, number)
        is_parked = row.fate in ("budget", "config")
        job = await (self._until_parked(job_id) if is_parked else finish(self.client, job_id, within_s=60))
        lane = await self.sql.fetchrow(
            "select paused_until is not null as is_paused, allowed, max_in_flight from listingd.lanes"
            " where provider = $1", row.provider,
        )  # fmt: skip
        if is_parked:
            await self.client.call("POST", f"/v1/jobs/{job_id}/cancel")
        calls = self.shop.paid_calls(server)[before:]
        await self.sql.execute("delete from listingd.lanes where provider = $1", row.provider)
        server.always = None
        self.shop.openai.stream_error = None
        self.shop.gemini.finish, self.shop.gemini.block_reason = "STOP", None
        return {"job": job, "calls": calls, "lane": lane}

    async def _until_parked(self, job_id: str) -> dict[str, Any]:
        async def parked() -> Any:
            job = await self.client.read_job(job_id)
            return job if job["state"] == "pending" and job["error"] else None

        return dict(await eventually(parked, within_s=60))


@pytest.fixture
async def desk(database: str, tmp_path: Path) -> AsyncIterator[Desk]:
    async with (
        Shop() as shop,
        asyncpg.create_pool(database, min_size=1, max_size=2) as sql,
        shop_service(shop, database, tmp_path, openai__timeout_s=1.5, gemini__timeout_s=1.5) as (_, client),
    ):
        desk = Desk(shop, client, sql)
        desk.upload_id = await upload(client, photo(), user_id="ada")
        shared = {
            "photo": {"upload_id": desk.upload_id},
            "product": dict(PRODUCT),
            "slot": "main",
            "size_px": 1000,
        }
        job = await client.create_job("image", shared, user_id="ada")
        assert "completed" == (await finish(client, str(job["id"])))["state"]
        yield desk


@pytest.mark.parametrize("provider", ["openai", "removebg", "gemini"])
async def test_rows_of_the_table_through_the_service(desk: Desk, provider: str) -> None:
    """One running service for all rows of a provider; all that differ are told at once."""
    wrong = []
    for number, row in enumerate(row for row in rows() if row.provider == provider):
        seen = await desk.play(row, number)
        job = seen["job"]
        state, attempts, calls = row.expected or EXPECTED[row.fate]
        told = (job["state"], job["attempt"], len(seen["calls"]))
        is_paused = seen["lane"]["is_paused"]
        is_lowered = seen["lane"]["allowed"] < seen["lane"]["max_in_flight"]
        if told != (state, attempts, calls) or is_paused != (row.fate in ("budget", "config")):
            wrong.append((row.name, told, is_paused, job["error"]))
        if row.fate == "retry" and row.fault.status == 429 and not is_lowered:
            wrong.append((row.name, "the lane was not slowed down"))
        if row.code and row.code != job["error"]["code"]:
            wrong.append((row.name, job["error"]["code"]))
    assert [] == wrong
    await _require_books_that_add_up(desk)


async def _require_books_that_add_up(desk: Desk) -> None:
    """What the servers billed is in the ledger as cost, or as an outcome that is not known."""
    assert 0 == await desk.sql.fetchval("select coalesce(sum(reserved_usd), 0) from listingd.spend")
    assert 0 == await desk.sql.fetchval("select count(*) from listingd.steps where state = 'open'")


async def test_a_text_that_is_cut_short_is_asked_for_once_with_more_room(desk: Desk) -> None:
    """Row MAX_TOKENS: retry with a larger max_output_tokens, once."""
    desk.shop.gemini.finish = "MAX_TOKENS"
    asked = {"product": dict(PRODUCT), "modules": ["STANDARD_TEXT"]}

    job = await desk.client.create_job("aplus", asked, user_id="ada")
    await finish(desk.client, str(job["id"]))

    sizes = [body["generationConfig"]["maxOutputTokens"] for body in desk.shop.gemini.bodies]
    assert [8192, 16384] == sizes[:2]


async def test_a_host_that_is_gone_stops_the_lane_after_three_in_a_row(database: str, tmp_path: Path) -> None:
    """Row name resolution failure: remove.bg's self-serve host ends on 2026-12-01."""
    gone = {"cutout__base_url": "http://no-such-host.invalid/v1.0"}
    async with (
        Shop() as shop,
        asyncpg.create_pool(database, min_size=1, max_size=2) as sql,
        shop_service(shop, database, tmp_path, **gone) as (_, client),
    ):
        upload_id = await upload(client, photo(), user_id="ada")
        asked = {"photo": {"upload_id": upload_id}, "product": dict(PRODUCT), "slot": "main"}
        await client.create_job("image", asked, user_id="ada", max_attempts=5)

        async def pause_code() -> Any:
            return await sql.fetchval("select pause_code from listingd.lanes where provider = 'removebg'")

        assert "provider_name_unknown" == await eventually(pause_code, within_s=30)
