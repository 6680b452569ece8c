"""OpenAI's image endpoints as the SDK speaks them: edits, generations, models.

Strict where the real API is strict (sizes, parameters of the wrong generation of models), since a server
that takes everything proves nothing. Its prices are its own, so that the ledger has something to be
compared with.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from aiohttp import web

from tests.protocol_servers.pictures import paint_scene
from tests.protocol_servers.wire import (
    Answer,
    Call,
    Fault,
    ProtocolServer,
    Refusal,
    count_tokens,
    read_form,
)

_USD_PER_TOKEN = {"text": Decimal("0.000005"), "image": Decimal("0.000008"), "out": Decimal("0.000030")}
_TOKENS = {"low": 196, "medium": 439, "high": 1756, "xhigh": 3122, "max": 7024, "auto": 439}
_TOKENS_PER_REFERENCE = 1024
_TOKENS_PER_PARTIAL = 100
_GPT_FIELDS = frozenset({
    "model", "prompt", "size", "quality", "output_format", "n", "background", "safety_identifier",
    "stream", "partial_images", "input_fidelity", "output_compression", "user", "moderation",
})  # fmt: skip
_DALLE_FIELDS = frozenset({"model", "prompt", "size", "quality", "n", "response_format", "style", "user"})
_DALLE_SIZES = {
    "dall-e-2": {"256x256", "512x512", "1024x1024"},
    "dall-e-3": {"1024x1024", "1792x1024", "1024x1792"},
}
_DALLE_USD = Decimal("0.04")


class OpenAIServer(ProtocolServer):
    """`base_url` is what the SDK takes. models: id -> shutdown date or None.

    answer_with: "b64" or "url" for DALL·E-shaped requests; pictures behind URLs are served from `/files`.
    partial_wait_s: between streamed previews. images_per_minute: stated in headers, and enforced if
    `enforce_rate`. obeys: paints no product where only the backdrop is asked for, unlike some models.
    """

    name = "openai"

    def __init__(self) -> None:
        super().__init__()
        self.models: dict[str, str | None] = {"gpt-image-2.6-sunburst": None, "dall-e-3": None}
        self.answer_with = "b64"
        self.partial_wait_s = 0.0
        self.images_per_minute = 5
        self.enforce_rate = False
        self.stream_error: dict[str, Any] | None = None
        self.size_sent: tuple[int, int] | None = None
        self.obeys = True
        self.files: dict[str, bytes] = {}
        self._taken_s: list[float] = []

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/images/edits", self._edits),
            web.post("/v1/images/generations", self._generations),
            web.get("/v1/models", self._models),
            web.get("/files/{name}", self._file),
        ]

    def error_body(self, fault: Fault, message: str) -> Any:
        error = {"message": message, "type": fault.type or "invalid_request_error", "param": None,
                 "code": fault.code}  # fmt: skip
        return {"error": error | (fault.details or {})}

    def rate_headers(self) -> dict[str, str]:
        left = max(0, self.images_per_minute - len(self._recent()))
        return {
            "x-ratelimit-limit-requests": str(self.images_per_minute),
            "x-ratelimit-remaining-requests": str(left),
            "x-ratelimit-reset-requests": f"{60 // max(1, self.images_per_minute)}s",
            "x-ratelimit-remaining-tokens": "99000",
            "x-ratelimit-reset-tokens": "6m0s",
        }

    async def _edits(self, request: web.Request) -> web.StreamResponse:
        return await self.serve(request, work=self._edit)

    async def _generations(self, request: web.Request) -> web.StreamResponse:
        return await self.serve(request, work=self._generate)

    async def _models(self, request: web.Request) -> web.StreamResponse:
        async def work(request: web.Request, call: Call) -> Answer:
            self._authorise(request)
            data = [
                {"id": name, "object": "model", "created": 1, "owned_by": "openai"}
                | ({"shutdown_date": gone} if gone else {})
                for name, gone in self.models.items()
            ]
            return Answer(json.dumps({"object": "list", "data": data}).encode(), "application/json")

        return await self.serve(request, work=work)

    async def _file(self, request: web.Request) -> web.StreamResponse:
        async def work(request: web.Request, call: Call) -> Answer:
            return Answer(self.files[request.match_info["name"]], "image/png")

        return await self.serve(request, work=work)

    async def _edit(self, request: web.Request, call: Call) -> Answer:
        self._authorise(request)
        files = await read_form(request, call)
        references = files.get("image[]", []) + files.get("image", [])
        if not 1 <= len(references) <= 16:
            raise Refusal(400, "invalid_value", "give 1 to 16 images")
        if call.fields.get("model", "").startswith("dall-e"):
            return await self._dalle(call, references)
        return await self._gpt(call, references)

    async def _generate(self, request: web.Request, call: Call) -> Answer:
        self._authorise(request)
        call.fields.update(await request.json())
        if str(call.fields.get("model", "")).startswith("dall-e"):
            return await self._dalle(call, [])
        return await self._gpt(call, [])

    async def _gpt(self, call: Call, references: list[bytes]) -> Answer:
        fields = call.fields
        self._allow(fields, _GPT_FIELDS)
        width, height = (int(side) for side in str(fields.get("size", "1024x1024")).split("x"))
        if width % 16 or height % 16 or max(width, height) > 3 * min(width, height):
            raise Refusal(400, "invalid_value", "size")
        if not 655_360 <= width * height <= 8_294_400:
            raise Refusal(400, "invalid_value", "size")
        quality = str(fields.get("quality", "auto"))
        if quality not in _TOKENS:
            raise Refusal(400, "invalid_value", "quality")
        self._take()
        streams = str(fields.get("stream", "")).lower() == "true"
        partials = int(fields.get("partial_images", 0)) if streams else 0
        usage = self._usage(str(fields["prompt"]), len(references), width * height, quality, partials)
        cost = (
            usage["input_tokens_details"]["text_tokens"] * _USD_PER_TOKEN["text"]
            + usage["input_tokens_details"]["image_tokens"] * _USD_PER_TOKEN["image"]
            + usage["output_tokens"] * _USD_PER_TOKEN["out"]
        )
        sent = self.size_sent or (width, height)
        shown = references[0] if references and not self._wants_backdrop(fields) else None
        picture = await asyncio.to_thread(paint_scene, *sent, shown)
        encoded = base64.b64encode(picture).decode()
        if streams:
            return self._stream(call, encoded, usage, partials, cost)
        body = {"created": 1, "data": [{"b64_json": encoded}], "output_format": "png", "usage": usage}
        return Answer(json.dumps(body).encode(), "application/json", cost_usd=cost, usage=usage)

    async def _dalle(self, call: Call, references: list[bytes]) -> Answer:
        fields = call.fields
        self._allow(fields, _DALLE_FIELDS)
        sizes = _DALLE_SIZES.get(str(fields["model"]), _DALLE_SIZES["dall-e-3"])
        if fields.get("size") not in sizes:
            raise Refusal(400, "invalid_size", "size")
        if fields.get("quality", "standard") not in ("standard", "hd"):
            raise Refusal(400, "invalid_value", "quality")
        if len(str(fields["prompt"])) > 4000:
            raise Refusal(400, "string_above_max_length", "prompt")
        self._take()
        width, height = (int(side) for side in str(fields["size"]).split("x"))
        shown = references[0] if references and not self._wants_backdrop(fields) else None
        picture = await asyncio.to_thread(paint_scene, width, height, shown)
        if fields.get("response_format", "url") == "url" or self.answer_with == "url":
            self.files[f"{call.number}.png"] = picture
            item = {"url": f"{self.url}/files/{call.number}.png", "revised_prompt": "as asked"}
        else:
            item = {"b64_json": base64.b64encode(picture).decode(), "revised_prompt": "as asked"}
        body = {"created": 1, "data": [item]}
        return Answer(json.dumps(body).encode(), "application/json", cost_usd=_DALLE_USD)

    def _wants_backdrop(self, fields: Mapping[str, Any]) -> bool:
        return self.obeys and "only the backdrop" in " ".join(str(fields["prompt"]).split())

    def _stream(
        self, call: Call, encoded: str, usage: dict[str, Any], partials: int, cost: Decimal
    ) -> Answer:
        kind = "image_edit" if call.path.endswith("edits") else "image_generation"
        pieces = []
        for index in range(partials):
            event = {"type": f"{kind}.partial_image", "b64_json": encoded, "partial_image_index": index,
                     "created_at": 1, "output_format": "png", "quality": "high", "background": "opaque",
                     "size": call.fields["size"]}  # fmt: skip
            pieces.append((self.partial_wait_s, _event(event)))
        if self.stream_error is not None:
            error = {"type": "error", "error": self.stream_error}
            return Answer(b"", "text/event-stream", pieces=[*pieces, (0.0, _event(error, name="error"))])
        done = {"type": f"{kind}.completed", "b64_json": encoded, "created_at": 1, "output_format": "png",
                "quality": "high", "background": "opaque", "size": call.fields["size"],
                "usage": usage}  # fmt: skip
        pieces.append((self.partial_wait_s, _event(done)))
        return Answer(b"", "text/event-stream", pieces=pieces, cost_usd=cost, usage=usage)

    def _usage(
        self, prompt: str, references: int, pixels: int, quality: str, partials: int
    ) -> dict[str, Any]:
        text = count_tokens(prompt)
        image = references * _TOKENS_PER_REFERENCE
        out = math.ceil(_TOKENS[quality] * pixels / 1024**2) + partials * _TOKENS_PER_PARTIAL
        return {
            "input_tokens": text + image,
            "input_tokens_details": {"text_tokens": text, "image_tokens": image},
            "output_tokens": out,
            "total_tokens": text + image + out,
        }

    def _authorise(self, request: web.Request) -> None:
        if request.headers.get("Authorization") != f"Bearer {self.api_key}":
            raise Refusal(401, "invalid_api_key", "Incorrect API key provided: sk-wrong-****")

    def _allow(self, fields: dict[str, Any], known: frozenset[str]) -> None:
        unknown = sorted(fields.keys() - known)
        if unknown or not fields.get("prompt"):
            raise Refusal(400, "unknown_parameter", f"Unknown parameter: {unknown}")

    def _recent(self) -> list[float]:
        now = asyncio.get_running_loop().time()
        self._taken_s = [at for at in self._taken_s if at > now - 60]
        return self._taken_s

    def _take(self) -> None:
        if self.enforce_rate and len(self._recent()) >= self.images_per_minute:
            raise Refusal(429, "rate_limit_exceeded", "images per minute", kind="requests")
        self._taken_s.append(asyncio.get_running_loop().time())


def _event(data: dict[str, Any], name: str | None = None) -> bytes:
    return f"event: {name or data['type']}\ndata: {json.dumps(data)}\n\n".encode()
