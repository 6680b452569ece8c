"""Servers of the three cut-out protocols: remove.bg (PNG and ZIP answers), rembg, withoutBG.

remove.bg's answers and headers follow the exchanges recorded in ../shared/data/removebg.
"""

from __future__ import annotations

import asyncio
import time
from decimal import Decimal
from typing import Any

from aiohttp import web
from PIL import UnidentifiedImageError

from tests.protocol_servers.pictures import cut_from_border, encode_png, zip_layers
from tests.protocol_servers.wire import (
    Answer,
    Call,
    Fault,
    ProtocolServer,
    ReceivedFile,
    Refusal,
    read_form,
)

_PREVIEW_PIXELS = 250_000
_PNG_PIXELS = 10_000_000


class RemoveBgServer(ProtocolServer):
    """remove.bg at `base_url`. usd_per_credit: this server's own price; credits: None = endless.

    max_pixels: the largest answer for size=auto (remove.bg's PNG ends at 10 MP).
    """

    name = "removebg"

    def __init__(self) -> None:
        super().__init__()
        self.usd_per_credit = Decimal("0.20")
        self.credits: Decimal | None = None
        self.max_pixels = _PNG_PIXELS

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1.0"

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/v1.0/removebg", self._remove), web.get("/v1.0/account", self._account)]

    def error_body(self, fault: Fault, message: str) -> Any:
        error = {"title": message} | ({"code": fault.code} if fault.code else {}) | (fault.details or {})
        return {"errors": [error]}

    def rate_headers(self) -> dict[str, str]:
        return {
            "X-Ratelimit-Limit": "500",
            "X-Ratelimit-Remaining": str(max(0, 500 - len(self.journal.calls))),
            "X-Ratelimit-Reset": str(int(time.time()) + 42),
        }

    async def _remove(self, request: web.Request) -> web.StreamResponse:
        return await self.serve(request, work=self._cut)

    async def _account(self, request: web.Request) -> web.StreamResponse:
        async def work(request: web.Request, call: Call) -> Answer:
            self._authorise(request)
            return Answer(b'{"data":{"attributes":{"credits":{"total":4943}}}}', "application/json")

        return await self.serve(request, work=work)

    async def _cut(self, request: web.Request, call: Call) -> Answer:
        self._authorise(request)
        files = await read_form(request, call)
        if len(files.get("image_file", [])) != 1:
            raise Refusal(400, "missing_source", "No image given")
        if self.credits is not None and self.credits < 1:
            raise Refusal(402, "insufficient_credits", "Insufficient credits")
        if call.files[0].size_bytes > 22_000_000:
            raise Refusal(400, "file_too_large", "File too large")
        wants_zip = call.fields.get("format") == "zip"
        # The real default is a quarter-megapixel preview: a client that forgets size=auto must notice.
        preview = call.fields.get("size", "preview") != "auto"
        limit = _PREVIEW_PIXELS if preview else self.max_pixels
        try:
            cutout = await asyncio.to_thread(cut_from_border, files["image_file"][0], limit)
        except UnidentifiedImageError as exc:
            raise Refusal(400, "invalid_file_type", "Not an image") from exc
        box = cutout.getchannel("A").getbbox()
        if box is None:
            raise Refusal(400, "unknown_foreground", "Could not identify foreground in image.")
        charged = Decimal("0.25") if preview else Decimal(1)
        if self.credits is not None:
            self.credits -= charged
        body = await asyncio.to_thread(zip_layers if wants_zip else encode_png, cutout)
        headers = {
            "X-Type": "product",
            "X-Width": str(cutout.width),
            "X-Height": str(cutout.height),
            "X-Max-Width": str(cutout.width),
            "X-Max-Height": str(cutout.height),
            "X-Credits-Charged": str(charged),
            "X-Foreground-Left": str(box[0]),
            "X-Foreground-Top": str(box[1]),
            "X-Foreground-Width": str(box[2] - box[0]),
            "X-Foreground-Height": str(box[3] - box[1]),
        }
        content_type = "application/zip" if wants_zip else "image/png"
        cost = charged * self.usd_per_credit
        return Answer(body, content_type, headers, cost_usd=cost, usage={"credits": str(charged)})

    def _authorise(self, request: web.Request) -> None:
        if request.headers.get("X-Api-Key") != self.api_key:
            raise Refusal(403, "auth_failed", "API Key invalid")


class _FreeServer(ProtocolServer):
    """Self-hosted: no key, no price, errors as FastAPI shapes them."""

    def error_body(self, fault: Fault, message: str) -> Any:
        return {"detail": message}

    async def _answer(self, photo: bytes) -> Answer:
        try:
            cutout = await asyncio.to_thread(cut_from_border, photo)
        except UnidentifiedImageError as exc:
            raise Refusal(422, None, "cannot identify image file") from exc
        return Answer(await asyncio.to_thread(encode_png, cutout), "image/png")


class RembgServer(_FreeServer):
    """`rembg s`: POST /api/remove, multipart field `file`."""

    name = "rembg"

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/api/remove", self._remove)]

    async def _remove(self, request: web.Request) -> web.StreamResponse:
        async def work(request: web.Request, call: Call) -> Answer:
            files = await read_form(request, call)
            if "file" not in files:
                raise Refusal(422, None, "field required")
            return await self._answer(files["file"][0])

        return await self.serve(request, work=work)


class WithoutBgServer(_FreeServer):
    """The withoutBG container: POST /v1/remove-background, the photo as the raw body."""

    name = "withoutbg"

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/v1/remove-background", self._remove)]

    async def _remove(self, request: web.Request) -> web.StreamResponse:
        async def work(request: web.Request, call: Call) -> Answer:
            photo = await request.read()
            if not request.content_type.startswith("image/"):
                raise Refusal(415, None, "send an image")
            call.files.append(ReceivedFile.read("body", "", request.content_type, photo))
            return await self._answer(photo)

        return await self.serve(request, work=work)
