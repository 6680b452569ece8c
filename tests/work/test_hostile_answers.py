"""Answers made to hurt: what each ends as, and that memory does not follow them.

Peak memory and the longest stall of the event loop are printed (`pytest -s`); memory is asserted, times
are not.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
import zipfile
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import Fate, ProviderError
from tests.protocol_servers import Fault, OpenAIServer
from tests.protocol_servers.calling import calling, fate_of
from tests.protocol_servers.hostile import MB, PICTURES, noise_png, plain_png


@dataclass
class Measured:
    peak_mb: float = 0
    stall_ms: float = 0


@asynccontextmanager
async def measuring(case: str) -> AsyncIterator[Measured]:
    """Growth of the peak resident memory (Linux), and the longest stall of the loop, within the block."""
    found = Measured()
    loop = asyncio.get_running_loop()
    before_kb = _reset_peak_kb()
    last_s = loop.time()

    async def watch() -> None:
        nonlocal last_s
        while True:
            await asyncio.sleep(0.002)
            now_s = loop.time()
            found.stall_ms = max(found.stall_ms, (now_s - last_s - 0.002) * 1000)
            last_s = now_s

    watcher = asyncio.create_task(watch(), name="stall-watch")
    try:
        yield found
    finally:
        watcher.cancel()
        found.peak_mb = (_peak_kb() - before_kb) / 1024
        sys.stdout.write(f"{case}: peak +{found.peak_mb:.1f} MB, stall {found.stall_ms:.0f} ms\n")


def _reset_peak_kb() -> int:
    """Sets the kernel's high-water mark of this process back to now and reads it (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_kb()


def _peak_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize("name", PICTURES)
async def test_picture_of_openai_that_is_none(name: str) -> None:
    """Billed, yet worth nothing: one more try at most, and its cost goes into the books."""
    make, why = PICTURES[name]
    body: dict[str, Any] = {"data": [{"b64_json": base64.b64encode(make()).decode()}],
            "usage": {"input_tokens": 10, "output_tokens": 1000}}  # fmt: skip
    async with calling("openai") as (server, call):
        server.always = Fault(body=json.dumps(body).encode(), content_type="application/json")
        async with measuring(f"openai {name}") as measured:
            error = await fate_of(call)

    assert (Fate.AMBIGUOUS, "answer_unusable", why) == (error.fate, error.code, error.data["why"])
    assert "0.03008" == error.data["cost_usd"]
    assert measured.peak_mb < 120


@pytest.mark.parametrize("name", [n for n in PICTURES if n != "under-half"])
async def test_cutout_that_is_no_picture(name: str) -> None:
    make, why = PICTURES[name]
    async with calling("removebg") as (server, call):
        server.always = Fault(body=make(), content_type="image/png", headers={"X-Credits-Charged": "1"})
        async with measuring(f"removebg {name}") as measured:
            error = await fate_of(call)

    assert (Fate.AMBIGUOUS, "answer_unusable", why) == (error.fate, error.code, error.data["why"])
    assert "0.2" == error.data["cost_usd"]
    assert measured.peak_mb < 120


# --- bodies without end ----------------------------------------------------------------------------

CAP_MB = {"openai": 64, "removebg": 64, "gemini": 8, "genai": 8}


@pytest.mark.parametrize("name", CAP_MB)
@pytest.mark.parametrize("status", [200, 500])
async def test_four_hundred_megabytes_are_cut_off(name: str, status: int) -> None:
    """The server makes the bytes while it sends; the adapter hangs up at its cap."""
    async with calling(name, timeout_s=60) as (server, call):
        kind = "application/json" if name != "removebg" else "image/png"
        server.always = Fault(huge_bytes=400 * MB, huge_status=status, content_type=kind)
        async with measuring(f"{name} 400 MB under {status}") as measured:
            error = await fate_of(call)

        assert (Fate.AMBIGUOUS, "answer_too_large") == (error.fate, error.code)
        assert server.journal.calls[0].sent_bytes < (CAP_MB[name] + 16) * MB
        assert measured.peak_mb < 2.5 * CAP_MB[name] + 40


@pytest.mark.parametrize("name", CAP_MB)
async def test_drip_ends_at_the_deadline(name: str) -> None:
    async with calling(name, timeout_s=1) as (server, call):
        server.always = Fault(drip_s=0.05)
        async with measuring(f"{name} drip"):
            error = await fate_of(call)

    assert (Fate.AMBIGUOUS, "provider_timed_out") == (error.fate, error.code)


@pytest.mark.parametrize("name", CAP_MB)
async def test_compressed_answer_is_not_unpacked(name: str) -> None:
    """A hundred kilobytes of gzip that unpack to 128 MB; compression was not asked for."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(packer.compress(bytes(8 * MB)) for _ in range(16)) + packer.flush()
    async with calling(name) as (server, call):
        server.always = Fault(body=packed, headers={"Content-Encoding": "gzip"})
        async with measuring(f"{name} gzip") as measured:
            error = await fate_of(call)

    assert error.fate in (Fate.AMBIGUOUS, Fate.RETRY)
    assert measured.peak_mb < 60


@pytest.mark.parametrize("kind", ["unpacks-large", "no-alpha", "sizes-differ", "garbage", "nested-name"])
async def test_zip_made_to_hurt(kind: str) -> None:
    async with calling("removebg") as (server, call):
        headers = {"X-Credits-Charged": "1"}
        server.always = Fault(body=_zip(kind), content_type="application/zip", headers=headers)
        async with measuring(f"zip {kind}") as measured:
            error = await fate_of(call)

    why = "wrong_size" if kind == "sizes-differ" else "bad_zip"
    assert (Fate.AMBIGUOUS, why) == (error.fate, error.data["why"])
    assert measured.peak_mb < 160


def _zip(kind: str) -> bytes:
    if kind == "garbage":
        return b"PK\x03\x04" + bytes(500)
    picture = noise_png(64, 48)
    members: dict[str, bytes] = {"color.jpg": picture, "alpha.png": picture}
    if kind == "unpacks-large":
        members["color.jpg"] = bytes(300 * MB)
    elif kind == "no-alpha":
        del members["alpha.png"]
    elif kind == "sizes-differ":
        members["alpha.png"] = noise_png(48, 64)
    else:
        members = {"../../color.jpg": picture, "/alpha.png": picture}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


async def test_preview_that_is_no_picture_is_passed_over() -> None:
    """The real picture may still come; a broken preview is no reason to lose it."""
    previews: list[int] = []
    async with calling("openai", on_partial=lambda _, at: previews.append(at)) as (server, call):
        events: list[dict[str, Any]] = [
            {"type": "image_edit.partial_image", "b64_json": "AAAA", "partial_image_index": 0},
            {"type": "image_edit.partial_image", "b64_json": None, "partial_image_index": 1},
            {"type": "image_edit.completed", "b64_json": base64.b64encode(plain_png()).decode(),
             "usage": {"input_tokens": 1, "output_tokens": 1}},
        ]  # fmt: skip
        body = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events)
        server.always = Fault(body=body.encode(), content_type="text/event-stream")

        answer = await call()

    assert [] == previews
    assert "0.000038" == str(answer.usage.cost_usd)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"data: {\n\n",
        b"data: [1]\n\n",
        b"event: x\ndata: {}\n\n",
        b"data: \xff\xfe\n\n",
        b"data: [DONE]\n\n",
    ],
)
async def test_stream_that_says_nothing_is_retried(body: bytes) -> None:
    async with calling("openai", on_partial=lambda _, __: None) as (server, call):
        server.always = Fault(body=body, content_type="text/event-stream")

        error = await fate_of(call)

    assert (Fate.RETRY, "answer_unreadable") == (error.fate, error.code)


@pytest.mark.parametrize("end", [b"", b"data: {\n\n"])
async def test_a_stream_that_ends_after_a_preview_may_have_been_billed(end: bytes) -> None:
    event = {"type": "image_edit.partial_image", "b64_json": base64.b64encode(plain_png()).decode(),
             "partial_image_index": 0}  # fmt: skip
    body = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() + end
    async with calling("openai", on_partial=lambda _, __: None) as (server, call):
        server.always = Fault(body=body, content_type="text/event-stream")

        error = await fate_of(call)

    assert (Fate.AMBIGUOUS, "answer_unreadable") == (error.fate, error.code)


@pytest.mark.parametrize(
    "usage",
    [None, [], {}, {"input_tokens": -5, "output_tokens": 10}, {"input_tokens": "many", "output_tokens": 1},
     {"input_tokens": 10**40, "output_tokens": 1}, {"input_tokens": True, "output_tokens": 1}],
)  # fmt: skip
async def test_absurd_usage_is_priced_by_the_estimate(usage: Any) -> None:
    """A provider's figure must not make a call free, negative or ruinous."""
    body = {"data": [{"b64_json": base64.b64encode(plain_png()).decode()}], "usage": usage}
    async with calling("openai") as (server, call):
        assert isinstance(server, OpenAIServer)
        server.always = Fault(body=json.dumps(body).encode(), content_type="application/json")

        answer = await call()

    assert "estimate" == answer.usage.units["priced_by"]
    assert 0 < answer.usage.cost_usd < 1


async def test_only_counts_are_kept_of_a_usage() -> None:
    """It is stored with the step: neither 60 MB nor a thousand levels of it."""
    usage = {
        "input_tokens": 50, "output_tokens": 10, "more": "x" * 100_000, "total_tokens": {"a": {"b": {}}},
        "input_tokens_details": {"text_tokens": 10, "image_tokens": -1, "notes": []},
    }  # fmt: skip
    body = {"data": [{"b64_json": base64.b64encode(plain_png()).decode()}], "usage": usage}
    async with calling("openai") as (server, call):
        server.always = Fault(body=json.dumps(body).encode(), content_type="application/json")

        answer = await call()

    kept = {
        "input_tokens": 50,
        "output_tokens": 10,
        "input_tokens_details": {"text_tokens": 10},
    }
    assert kept == answer.usage.units


async def test_errors_name_no_vendor_type() -> None:
    async with calling("openai") as (server, call):
        server.always = Fault(status=500)

        error = await fate_of(call)

    assert type(error) is ProviderError
