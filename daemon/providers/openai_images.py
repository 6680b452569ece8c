"""OpenAI Images, and servers that speak its protocol, through the vendor's async SDK.

One request per call: the SDK's own retries (three POSTs for one 500, a billing 429 included) are off. The
seller's cut-out and photos go along as references. Everything that comes back is capped while it streams,
read in a thread, and decoded before it counts as a picture.

Must never: retry, follow a redirect, pass on the vendor's prose (it may quote keys and prompts).
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from daemon.errors import Fate, ListingdError, ProviderError, TooLarge
from daemon.later import later
from daemon.providers import fates, openai_shapes
from daemon.providers.answers import check_ratio, photo_rejected, read_picture, unusable
from daemon.providers.capped_client import classify_transport, open_client, open_sdk
from daemon.providers.guard import Network, fetch_bytes
from daemon.providers.openai_shapes import ImagePrices, Shape
from daemon.providers.protocols import ModelNotice, PaintAnswer, PaintRequest, PartialImage, Usage
from daemon.providers.rates import read_rate
from daemon.shield import finish

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from daemon.imaging import codec
    from daemon.providers import scene
else:
    codec, scene = later("daemon.imaging.codec"), later("daemon.providers.scene")

_NAME = "openai"
# 8.3 MP of noise is 25 MB of PNG, a third more in base64; a stream carries previews besides.
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_PICTURE_BYTES = 40 * 1024 * 1024
MAX_CONTAINERS = 10_000
_SLOW = frozenset({"high", "xhigh", "max", "hd", "auto"})


@dataclass(frozen=True, slots=True)
class _Body:
    """The one picture of an answer, as base64 text or behind a URL."""

    b64: str | None
    url: str | None
    usage: Mapping[str, Any]


class OpenAIImages:
    """A PaintProvider.

    quality: low, medium, high, xhigh, max, auto, standard, hd; timeout_high_s: deadline of a call at high quality
    or above, timeout_s of the others; allowed: private networks that URLs in
    answers may lead to (a self-hosted server's own). The SDK (1.5 s, 51 MB) loads at the first call.
    """

    def __init__(
        self,
        *,
        api_key: str,
        base_url: str,
        model: str,
        quality: str,
        prices: ImagePrices,
        concurrency: int = 8,
        timeout_s: float = 240.0,
        timeout_high_s: float = 360.0,
        allowed: Sequence[Network] = (),
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self._api_key = api_key
        self._base_url = base_url
        self._model = model
        self._quality = quality
        self._prices = prices
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._timeout_high_s = timeout_high_s
        self._allowed = tuple(allowed)
        self._max_answer_bytes = max_answer_bytes
        self._names = fates.NameFailures()
        self._opening = asyncio.Lock()
        self._client: AsyncOpenAI | None = None

    @property
    def name(self) -> str:
        return _NAME

    @property
    def fingerprint(self) -> str:
        return f"openai/1:{urlsplit(self._base_url).hostname}:{self._model}:{self._quality}"

    def estimate_usd(self, request: PaintRequest) -> Decimal:
        return openai_shapes.estimate_usd(request, *self._wished(request), self._prices)

    async def paint(
        self, request: PaintRequest, *, timeout_s: float, on_partial: PartialImage | None = None
    ) -> PaintAnswer:
        """One picture for one request. on_partial: ask for streamed previews (each costs 100 tokens).

        Errors: ProviderError, its data carrying cost_usd where the call is known to be billed; permanent
        photo_rejected when a reference is no picture: nothing was sent then.
        """
        client = await self._open()
        own_s = self._timeout_high_s if self._wished(request)[1] in _SLOW else self._timeout_s
        timeout_s = min(timeout_s, own_s)
        try:
            async with asyncio.timeout(timeout_s):
                raw, streamed = await self._call(client, request, on_partial)
        except TimeoutError as exc:
            raise fates.problem(_NAME, Fate.AMBIGUOUS, "provider_timed_out") from exc
        self._names.clear()
        # From here on it is paid for: neither a busy machine that takes long to read it nor a cancel throws it away.
        return await finish(self._read(raw, streamed, request, timeout_s))

    async def find_shutdown(self, *, timeout_s: float) -> ModelNotice | None:
        """The announced end of the configured model, or None; also None when the server cannot say."""
        try:
            client = await self._open()
        except ProviderError:
            return None  # the first job says why
        import openai  # in memory now: the client was built in a thread

        try:
            async with asyncio.timeout(timeout_s):
                raw = await client.models.with_raw_response.list()
            listed = json.loads(raw.content)["data"]
            entry = next(e for e in listed if e["id"] == self._model and e.get("shutdown_date"))
            return ModelNotice(_NAME, self._model, _read_date(entry["shutdown_date"]))
        except (openai.OpenAIError, TimeoutError, TooLarge):
            return None
        except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RecursionError):
            return None  # compatible servers list what they like

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def _open(self) -> AsyncOpenAI:
        async with self._opening:
            if self._client is None:
                self._client = await open_sdk(_NAME, self._build)
            return self._client

    def _build(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        # One connection more than pictures: the question about models must not wait for one of them.
        http = open_client(self._max_answer_bytes, concurrency=self._concurrency + 1)
        return AsyncOpenAI(api_key=self._api_key, base_url=self._base_url, max_retries=0, http_client=http)

    def _wished(self, request: PaintRequest) -> tuple[str, str]:
        return request.model or self._model, request.quality or self._quality

    async def _call(
        self, client: AsyncOpenAI, request: PaintRequest, on_partial: PartialImage | None
    ) -> tuple[Any, _Body | None]:
        """The SDK's whole answer; of a stream its picture besides."""
        import openai

        model, quality = self._wished(request)
        shape = openai_shapes.shape_of(model)
        streams = on_partial is not None and shape is Shape.EDIT
        fields = openai_shapes.request_fields(request, model, quality, stream=streams)
        try:
            images = await asyncio.to_thread(_pictures_for, request, shape)
        except ListingdError as exc:
            raise photo_rejected(_NAME, exc) from exc
        try:
            if shape is Shape.SCENE:
                raw = await client.images.with_raw_response.generate(**fields)
            else:
                raw = await client.images.with_raw_response.edit(image=images, **fields)
            if not streams or on_partial is None:
                return raw, None
            if (body := await _read_stream(raw.parse(), on_partial)) is None:
                raise _unreadable(raw)
            return raw, body
        except openai.APIError as exc:
            raise self._translate(exc) from exc
        except TooLarge as exc:
            raise fates.problem(_NAME, Fate.AMBIGUOUS, "answer_too_large") from exc

    async def _read(
        self, raw: Any, streamed: _Body | None, request: PaintRequest, timeout_s: float
    ) -> PaintAnswer:
        """What an answer holds, priced and checked. timeout_s: to fetch the picture where a URL leads to it."""
        body = streamed or await asyncio.to_thread(_read_body, raw.content)
        if body is None:
            raise _unreadable(raw)
        model = self._wished(request)[0]
        shape = openai_shapes.shape_of(model)
        usage = self._price(body.usage, request)
        paid = {"cost_usd": str(usage.cost_usd), "usage": dict(usage.units)}
        data = await self._fetch(body, timeout_s, paid)
        size = openai_shapes.fit_size(model, request.width_px, request.height_px)
        image = await asyncio.to_thread(_finish, data, request, size, shape, paid)
        return PaintAnswer(
            image=image,
            usage=usage,
            model=model,
            generated=True,
            derived=_DERIVED[shape].format(model=model),
            request_id=raw.request_id,
            rate=read_rate(raw.headers),
        )

    def _price(self, usage: Mapping[str, Any], request: PaintRequest) -> Usage:
        stated = openai_shapes.price_usage(usage, self._prices)
        if stated is not None:
            return Usage(stated, openai_shapes.read_counts(usage))
        return Usage(self.estimate_usd(request), {"priced_by": "estimate"})

    async def _fetch(self, body: _Body, timeout_s: float, paid: Mapping[str, Any]) -> bytes:
        """The picture's bytes. Once billed, a lost picture is worth one more try at most: ambiguous."""
        if body.b64 is not None:
            try:
                return await asyncio.to_thread(base64.b64decode, body.b64, validate=True)
            except ValueError as exc:
                raise unusable(_NAME, Fate.AMBIGUOUS, "not_base64", paid) from exc
        try:
            return await fetch_bytes(
                body.url or "", max_bytes=MAX_PICTURE_BYTES, deadline_s=timeout_s, allowed=self._allowed
            )
        except ProviderError as exc:
            raise unusable(_NAME, Fate.AMBIGUOUS, exc.code, paid) from exc

    def _translate(self, exc: Exception) -> ProviderError:
        import openai

        if isinstance(exc, openai.APIConnectionError):
            return fates.problem(_NAME, *classify_transport(exc, self._names))
        if isinstance(exc, openai.APIResponseValidationError):
            return fates.problem(_NAME, Fate.RETRY, "answer_unreadable", status=exc.status_code)
        assert isinstance(exc, openai.APIError)
        status = exc.status_code if isinstance(exc, openai.APIStatusError) else None
        fate, ours = fates.classify(
            fates.OPENAI, fates.Fault(status, code=exc.code or "", type=str(exc.type or ""))
        )
        return fates.problem(
            _NAME, fate, ours,
            status=status,
            headers=exc.response.headers if isinstance(exc, openai.APIStatusError) else None,
            request_id=exc.request_id if isinstance(exc, openai.APIStatusError) else None,
            data={"provider_code": (exc.code or "")[:100], **_moderation(exc.body)},
        )  # fmt: skip


_DERIVED = {
    Shape.EDIT: "edited by {model} from the seller's cut-out and photos",
    Shape.FILL: "surroundings painted by {model} around the seller's product pixels",
    Shape.SCENE: "surroundings by {model}, the seller's product pixels set into them",
}


def _pictures_for(request: PaintRequest, shape: Shape) -> Any:
    """The `image` parameter: (name, bytes, content type), one or several. Errors: the codec's."""
    if shape is Shape.SCENE:
        return None
    if shape is Shape.FILL:
        canvas = scene.set_in_scene(None, codec.decode(request.cutout_png), 1024, 1024)
        return ("product.png", codec.encode_png(canvas), "image/png")
    files = []
    for data, name in openai_shapes.references_of(request):
        info = codec.inspect(data)
        files.append((f"{name}.{info.format.lower()}", data, info.content_type))
    return files


def _unreadable(raw: Any) -> ProviderError:
    return fates.problem(_NAME, Fate.RETRY, "answer_unreadable", status=200, request_id=raw.request_id)


def _finish(
    data: bytes, request: PaintRequest, size: tuple[int, int], shape: Shape, paid: Mapping[str, Any]
) -> bytes:
    """The checked picture, with the product set into it where the model painted surroundings only."""
    picture = read_picture(data, provider=_NAME, paid=paid, fate=Fate.AMBIGUOUS)
    check_ratio(picture, *size, provider=_NAME, paid=paid, fate=Fate.AMBIGUOUS)
    if shape is not Shape.SCENE:
        return data
    product = codec.decode(request.cutout_png)
    composed = scene.set_in_scene(
        codec.flatten_on_white(picture), product, picture.shape[1], picture.shape[0]
    )
    return codec.encode_png(composed)


def _read_body(content: bytes) -> _Body | None:
    """What a whole answer holds; None when it is no answer of this protocol."""
    if (
        content.count(b"[") + content.count(b"{") > MAX_CONTAINERS
    ):  # parsing 64 MiB of them holds the interpreter
        return None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or not isinstance(document.get("data"), list) or not document["data"]:
        return None
    first = document["data"][0]
    return _body_of(first, document.get("usage")) if isinstance(first, dict) else None


def _body_of(item: Mapping[str, Any], usage: object) -> _Body | None:
    b64, url = item.get("b64_json"), item.get("url")
    if not isinstance(b64, str) and not isinstance(url, str):
        return None
    return _Body(
        b64 if isinstance(b64, str) else None,
        url if isinstance(url, str) else None,
        usage if isinstance(usage, dict) else {},
    )


async def _read_stream(stream: Any, on_partial: PartialImage) -> _Body | None:
    """The last event's picture; earlier ones go to on_partial. None when the stream ends without any.

    Errors: ProviderError ambiguous when it ends after a preview: the picture was begun, and likely billed.
    """
    has_begun = False
    try:
        async with stream:
            async for event in stream:
                kind = str(getattr(event, "type", ""))
                if kind.endswith(".completed"):
                    document = event.model_dump()
                    if body := _body_of(document, document.get("usage")):
                        return body
                if kind.endswith(".partial_image"):
                    has_begun = True
                    partial = await asyncio.to_thread(_read_partial, event.b64_json)
                    if partial is not None:
                        on_partial(partial, int(event.partial_image_index))
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass  # events that are no JSON, or lack what their type promises
    if has_begun:
        raise fates.problem(_NAME, Fate.AMBIGUOUS, "answer_unreadable", status=200)
    return None


def _read_partial(b64: object) -> bytes | None:
    """A preview's bytes; a preview that is no picture is passed over, the real one may still come."""
    try:
        data = base64.b64decode(str(b64), validate=True)
        codec.decode(data)
    except (ValueError, ListingdError):
        return None
    return data


def _moderation(body: object) -> dict[str, Any]:
    """What to keep of moderation_details: the stage and the categories."""
    details = body.get("moderation_details") if isinstance(body, dict) else None
    if not isinstance(details, dict):
        return {}
    categories = details.get("categories")
    return {
        "moderation_stage": str(details.get("moderation_stage", ""))[:40],
        "categories": [str(c)[:40] for c in categories[:20]] if isinstance(categories, list) else None,
    }


def _read_date(value: object) -> date:
    """A date as servers write it: ISO text or a Unix time. Errors: ValueError."""
    if isinstance(value, int | float):
        try:
            return datetime.fromtimestamp(value, UTC).date()
        except (OverflowError, OSError) as exc:  # more than C's time_t or its year hold
            raise ValueError("no time that a calendar knows") from exc
    return date.fromisoformat(str(value)[:10])
