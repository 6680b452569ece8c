"""What a handler may ask of a provider, whoever serves it.

Three crafts, three protocols: cutting a product out of its photo, painting a picture around the real
product, and filling a JSON document. An adapter makes exactly one request per call (no retries of its
own: the queue owns those), bounds it by `timeout_s`, caps every answer while it streams, and translates
all vendor exceptions into `errors.ProviderError` with the right `Fate`. Adapters do no pricing beyond
what the answer itself states in `Usage`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Usage:
    """What one call used, as the provider reported it.

    cost_usd: what the call cost by the answer's own figures and the price table, USD;
    units: raw figures to keep for the books, e.g. {"input_tokens": 12, "credits": "1.0"}.
    """

    cost_usd: Decimal = Decimal(0)
    units: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RateHint:
    """What an answer's headers say about the provider's rate, for its lane. None: not said.

    limit, remaining: requests of the current window; reset_s: seconds until the window is full again;
    tokens_remaining, tokens_reset_s: the same for tokens, where the provider counts them.
    An error carries the same figures as a JSON object in `ProviderError.data["rate"]`.
    """

    limit: int | None = None
    remaining: int | None = None
    reset_s: float | None = None
    tokens_remaining: int | None = None
    tokens_reset_s: float | None = None


@dataclass(frozen=True, slots=True)
class CutoutAnswer:
    """png: RGBA PNG of the photo's full frame (same width and height in px), alpha 0 = background.

    confidence: 0..1 where the provider measures it, else None.
    """

    png: bytes
    usage: Usage
    model: str
    request_id: str | None = None
    confidence: float | None = None
    rate: RateHint | None = None


@dataclass(frozen=True, slots=True)
class PaintRequest:
    """One picture around the real product.

    slot: "angle" | "lifestyle" | "infographic" | an A+ image role; cutout_png: RGBA PNG of the product;
    photos: the seller's own photos (JPEG/PNG bytes), best first; prompt: full text, made from the prompt
    files; width_px, height_px: wanted size; seed: makes offline work repeatable;
    palette: "#rrggbb" colours the seller asked for; hints: facts an offline painter may use
    (category, background words).
    """

    slot: str
    cutout_png: bytes
    photos: tuple[bytes, ...]
    prompt: str
    width_px: int
    height_px: int
    seed: int = 0
    palette: tuple[str, ...] = ()
    hints: Mapping[str, str] = field(default_factory=dict)
    user_hash: str = ""  # sha256(salt + user), for the provider's abuse desk
    model: str | None = None  # None = the configured one
    quality: str | None = None


@dataclass(frozen=True, slots=True)
class PaintAnswer:
    """image: encoded bytes (PNG or JPEG), RGB, at least close to the wanted ratio; the caller fits it.

    generated: True when a model invented pixels, False when only the seller's pixels and drawn
    geometry are in it. derived: how the picture was made, in words for the job's record.
    """

    image: bytes
    usage: Usage
    model: str
    generated: bool
    derived: str = ""
    request_id: str | None = None
    rate: RateHint | None = None


@dataclass(frozen=True, slots=True)
class JsonRequest:
    """Fill a JSON document. schema: JSON Schema (the adapter reduces it to what its vendor takes).

    facts: what the prompt says, for machines: a writer that works by rules reads these and no prompt.
    """

    prompt: str
    schema: Mapping[str, Any]
    images: tuple[bytes, ...] = ()
    model: str | None = None
    max_output_tokens: int = 8192
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JsonAnswer:
    """text: the raw answer, not validated: the caller checks it against its own model."""

    text: str
    finish: str
    usage: Usage
    model: str
    request_id: str | None = None
    rate: RateHint | None = None


PartialImage = Callable[[bytes, int], None]
"""Called with (image bytes, index from 0) for each streamed preview."""


class CutoutProvider(Protocol):
    """Cuts the product out of one photo."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """Everything besides the photo that decides the answer (protocol, model, version)."""
        ...

    def estimate_usd(self, width_px: int, height_px: int) -> Decimal: ...

    def rate_cost(self, width_px: int, height_px: int) -> float:
        """How many of the account's calls a minute one photo of this size takes."""
        ...

    async def cut_out(self, photo: bytes, *, timeout_s: float) -> CutoutAnswer: ...

    async def close(self) -> None: ...


class PaintProvider(Protocol):
    """Paints one picture around the product."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def estimate_usd(self, request: PaintRequest) -> Decimal: ...

    async def paint(
        self, request: PaintRequest, *, timeout_s: float, on_partial: PartialImage | None = None
    ) -> PaintAnswer: ...

    async def close(self) -> None: ...


class TextProvider(Protocol):
    """Fills a JSON document from a prompt."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def estimate_usd(self, request: JsonRequest) -> Decimal: ...

    async def generate_json(self, request: JsonRequest, *, timeout_s: float) -> JsonAnswer: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ModelNotice:
    """A provider announces the end of the model that is configured."""

    provider: str
    model: str
    shutdown_on: date


@runtime_checkable
class AnnouncesShutdown(Protocol):
    """A provider that can be asked whether its model is about to end."""

    async def find_shutdown(self, *, timeout_s: float) -> ModelNotice | None: ...


@dataclass(frozen=True, slots=True)
class Providers:
    """The configured providers, offline ones where nothing is configured."""

    cutout: CutoutProvider
    paint: PaintProvider
    text: TextProvider
