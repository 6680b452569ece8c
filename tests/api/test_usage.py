"""What was used, and what a job would take."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from daemon.db import Database
from daemon.estimates import estimate_usd
from daemon.payloads import AplusInput, ImageInput, PackInput
from daemon.providers.cutout_http import HttpCutout
from daemon.providers.offline_text import OfflineText
from daemon.providers.openai_images import OpenAIImages
from daemon.providers.openai_shapes import ImagePrices
from daemon.providers.protocols import Providers
from daemon.settings import Settings
from tests.api.operated import Operated, operated, user_token

PRODUCT = {"title": "Oak chair", "bullets": ["Solid oak"], "dimensions": {"height": 80, "unit": "cm"}}
PHOTO = {"upload_id": "0190c2e4-9b1a-7cc3-8b3f-0a3c7b1f9d11"}


@pytest.fixture
async def api(settings: Settings, db: Database) -> AsyncIterator[Operated]:
    async with operated(settings, db) as started:
        yield started


async def add_job(
    db: Database, user_id: str, *, kind: str = "image", state: str = "completed", run_s: float = 10,
    calls: tuple[tuple[str, str], ...] = (),
) -> UUID:  # fmt: skip
    """A job that has ended, with its paid calls as (provider, USD)."""
    job_id: UUID = await db.pool.fetchval("select listingd.enqueue_job($1, '{}', $2)", kind, user_id)
    await db.pool.execute(
        "update listingd.job_states set state = $2, started_at = now() - make_interval(secs => $3), finished_at = now()"
        " where id = $1", job_id, state, run_s,
    )  # fmt: skip
    for provider, usd in calls:
        await db.pool.execute(
            "insert into listingd.steps (id, user_id, job_id, kind, name, provider, state, worker, fence, estimated_usd,"
            " actual_usd, reserved_on) values (gen_random_uuid(), $1, $2, $3, 'x', $4, 'done', 1, 1, $5::text::numeric,"
            " $5::text::numeric, current_date)", user_id, job_id, kind, provider, usd,
        )  # fmt: skip
    return job_id


async def test_usage_counts_jobs_and_money(api: Operated) -> None:
    for run_s in (10, 20, 30):
        await add_job(api.db, "u1", run_s=run_s, calls=(("openai", "0.10"), ("removebg", "0.20")))
    await add_job(api.db, "u1", state="failed")
    await add_job(api.db, "u2", state="cancelled")

    status, body, _ = await api.call("GET", "/v1/usage?group_by=kind,user")

    assert 200 == status
    mine = next(row for row in body["data"] if row["user_id"] == "u1")
    assert (4, 3, 1, 0, 0.75, 6) == tuple(
        mine[k] for k in ("jobs", "completed", "failed", "cancelled", "success_rate", "calls")
    )
    assert (0.9, 20.0) == (float(mine["actual_usd"]), round(mine["p50_s"]))
    assert 28 <= mine["p95_s"] <= 30
    assert next(row for row in body["data"] if row["user_id"] == "u2")["success_rate"] is None


async def test_usage_by_provider_splits_the_money(api: Operated) -> None:
    await add_job(api.db, "u1", calls=(("openai", "0.10"), ("openai", "0.10"), ("removebg", "0.20")))

    _, body, _ = await api.call("GET", "/v1/usage?group_by=provider")

    assert {("openai", 2, 0.2), ("removebg", 1, 0.2)} == {
        (row["provider"], row["calls"], float(row["actual_usd"])) for row in body["data"]
    }


async def end_pack(db: Database, pack: UUID, *items: UUID) -> None:
    """As when the items of a waiting pack end and it is taken up again for a moment."""
    await db.pool.execute("update listingd.jobs set parent_id = $1 where id = any($2::uuid[])", pack, items)
    await db.pool.execute(
        "update listingd.job_states set parent_id = $1 where id = any($2::uuid[])", pack, items
    )
    await db.pool.execute(
        "update listingd.job_states set state = 'waiting', open_children = $2, finished_at = null where id = $1",
        pack, len(items),
    )  # fmt: skip
    await db.pool.execute(
        "select listingd.settle_children(array_fill($1::uuid, array[$2::int]))", pack, len(items)
    )
    await db.pool.execute(
        "update listingd.job_states set state = 'completed', started_at = now(), finished_at = now() where id = $1",
        pack,
    )  # fmt: skip


async def read_run_times(api: Operated, pack: UUID) -> set[int]:
    """How long a pack ran, as the report, the estimate, the job and its webhook tell, seconds."""
    _, usage, _ = await api.call("GET", "/v1/usage?group_by=kind")
    _, estimate, _ = await api.call(
        "POST", "/v1/estimate", json={"kind": "pack", "input": {"photo": PHOTO, "product": PRODUCT}}
    )
    _, job, _ = await api.call("GET", f"/v1/jobs/{pack}")
    told = json.loads(await api.db.pool.fetchval("select listingd.describe_job($1)", pack))
    spans = [
        datetime.fromisoformat(shown["finished_at"]) - datetime.fromisoformat(shown["started_at"])
        for shown in (job, told)
    ]
    return {
        round(next(row["p50_s"] for row in usage["data"] if row["kind"] == "pack")),
        round(estimate["run_s"]["p50"]),
        *(round(span.total_seconds()) for span in spans),
    }


async def test_a_pack_runs_from_its_first_item_to_its_end(api: Operated) -> None:
    """Its own row says when it was taken up again, after its items had ended."""
    pack = await add_job(api.db, "u1", kind="pack")

    await end_pack(api.db, pack, *[await add_job(api.db, "u1", run_s=run_s) for run_s in (30, 40)])

    assert {40} == await read_run_times(api, pack)


async def test_a_retried_pack_runs_from_the_first_item_of_its_retry(api: Operated) -> None:
    """What lies between is the time in which nobody had asked for it again."""
    pack = await add_job(api.db, "u1", kind="pack", state="failed")
    kept, failed = await add_job(api.db, "u1", run_s=7200), await add_job(api.db, "u1", state="failed")
    await end_pack(api.db, pack, kept, failed)
    await api.db.pool.execute("update listingd.job_states set state = 'failed' where id = $1", pack)
    await api.call("POST", f"/v1/jobs/{pack}/retry")
    _, waiting, _ = await api.call("GET", f"/v1/jobs/{pack}")
    await api.db.pool.execute(
        # It waited 5 s for its turn, and then ran 20 s.
        "update listingd.job_states set state = 'completed', started_at = now() + interval '5 s' where id = $1",
        failed,
    )
    await api.db.pool.execute("select listingd.settle_children(array[$1::uuid])", pack)
    await api.db.pool.execute(
        "update listingd.job_states set state = 'completed', started_at = now() + interval '25 s',"
        " finished_at = now() + interval '25 s' where id = $1", pack,
    )  # fmt: skip

    assert waiting["started_at"] is None
    assert {20} == await read_run_times(api, pack)


async def test_user_sees_only_own_usage(api: Operated) -> None:
    await add_job(api.db, "u1")
    await add_job(api.db, "u2")

    _, body, _ = await api.call("GET", "/v1/usage?group_by=user", user_token("u1"))
    refused = await api.call("GET", "/v1/usage?user_id=u2", user_token("u1"))
    _, asked, _ = await api.call("GET", "/v1/usage?group_by=user&user_id=u2")

    assert ["u1"] == [row["user_id"] for row in body["data"]]
    assert 422 == refused[0]
    assert ["u2"] == [row["user_id"] for row in asked["data"]]


async def test_token_of_one_job_does_not_cover_usage(api: Operated) -> None:
    job_id = await add_job(api.db, "u1")
    _, one, _ = await api.call("POST", "/v1/tokens", json={"scope": f"job:{job_id}"})
    _, whole, _ = await api.call("POST", "/v1/tokens", json={"scope": "user:u1"})

    assert 403 == (await api.call("GET", "/v1/usage", one["token"]))[0]
    assert 1 == (await api.call("GET", "/v1/usage", whole["token"]))[1]["data"][0]["jobs"]


async def test_span_bounds_what_is_counted(api: Operated) -> None:
    await add_job(api.db, "u1")
    yesterday = (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")

    assert [] == (await api.call("GET", f"/v1/usage?until={yesterday}"))[1]["data"]
    assert 1 == len((await api.call("GET", f"/v1/usage?since={yesterday}"))[1]["data"])


@pytest.mark.parametrize(
    "query",
    ["group_by=moon", "group_by=", "since=2020-01-01T00:00:00Z", "since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z",
     "since=yesterday", "x=1", "since=2001-01-01T00:00:00Z&until=2200-01-01T00:00:00Z"],
)  # fmt: skip
async def test_wrong_usage_queries_are_422(api: Operated, query: str) -> None:
    assert 422 == (await api.call("GET", f"/v1/usage?{query}"))[0]


async def test_usage_comes_as_csv(api: Operated) -> None:
    """A spreadsheet must not run what a user chose as a name."""
    await add_job(api.db, "=cmd|' /C calc'!A0", calls=(("openai", "0.10"),))

    status, body, headers = await api.call(
        "GET", "/v1/usage?group_by=user,kind", headers={"Accept": "text/csv"}
    )
    rows = list(csv.DictReader(io.StringIO(body.decode())))

    assert (200, "text/csv; charset=utf-8") == (status, headers["Content-Type"])
    assert [("'=cmd|' /C calc'!A0", "image", "1", "0.100000")] == [
        (row["user_id"], row["kind"], row["jobs"], row["actual_usd"]) for row in rows
    ]


async def test_webhook_deliveries_are_no_usage(api: Operated) -> None:
    await add_job(api.db, "", kind="webhook")

    assert [] == (await api.call("GET", "/v1/usage"))[1]["data"]


async def test_estimate_creates_nothing(api: Operated) -> None:
    body = {"kind": "image", "input": {"photo": PHOTO, "slot": "main", "product": PRODUCT}}

    status, estimate, _ = await api.call("POST", "/v1/estimate", user_token("u1"), json=body)

    assert (200, 0.0) == (status, float(estimate["cost_usd"]))
    assert estimate["run_s"]["p50"] > 0
    assert datetime.fromisoformat(estimate["expected_finish_at"]) > datetime.now(UTC)
    assert 0 == await api.db.pool.fetchval("select count(*) from listingd.jobs")


async def test_estimate_learns_from_recent_run_times(api: Operated) -> None:
    for _ in range(3):
        await add_job(api.db, "u1", run_s=42)
    body = {"kind": "image", "input": {"photo": PHOTO, "slot": "main", "product": PRODUCT}}

    _, estimate, _ = await api.call("POST", "/v1/estimate", json=body)

    assert 42 == round(estimate["run_s"]["p50"])


@pytest.mark.parametrize("body", [{}, {"kind": "image", "input": {}}, {"kind": "webhook", "input": {}}])
async def test_estimate_validates_as_create_does(api: Operated, body: object) -> None:
    assert 422 == (await api.call("POST", "/v1/estimate", json=body))[0]


def given(**more: Any) -> dict[str, Any]:
    return {"photo": {"upload_id": uuid4()}, "product": PRODUCT, **more}


async def test_estimated_cost_counts_every_call() -> None:
    """A pack cuts out once and paints three of its six pictures."""
    painter = OpenAIImages(
        api_key="k", base_url="http://127.0.0.1:9", model="m", quality="low",
        prices=ImagePrices(Decimal(5), Decimal(8), Decimal(30), Decimal("0.10")),
    )  # fmt: skip
    cutter = HttpCutout(
        protocol="removebg", base_url="http://127.0.0.1:9", price_usd_per_credit=Decimal("0.25")
    )
    providers = Providers(cutter, painter, OfflineText())

    main = estimate_usd(ImageInput(**given(slot="main")), providers)
    painted = estimate_usd(ImageInput(**given(slot="lifestyle")), providers) - main

    assert Decimal("0.25") == main
    assert painted > 0
    assert main + 3 * painted == estimate_usd(PackInput(**given()), providers)
    assert main + 4 * painted == estimate_usd(
        AplusInput(**given(modules=["STANDARD_FOUR_IMAGE_TEXT"])), providers
    )
    assert 0 == estimate_usd(AplusInput(product=PRODUCT), providers)
    await painter.close()
    await cutter.close()
