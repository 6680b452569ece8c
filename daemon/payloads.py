"""Inputs and results of each kind of job, as pydantic models: the one place where their fields stand.

The same models validate HTTP bodies, SQL-enqueued inputs and the OpenAPI document. Unknown fields are
refused, strings are bounded, NUL and lone surrogates never pass. No I/O.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from daemon.amazon.aplus_limits import AplusModule

Slot = Literal["main", "angle", "lifestyle", "infographic", "detail", "dimensions", "in_the_box"]
PACK_SLOTS: tuple[Slot, ...] = (
    "main", "angle", "lifestyle", "infographic", "detail", "dimensions",
)  # fmt: skip


_SURROGATE = re.compile("[\ud800-\udfff]")


def _is_storable(value: str) -> str:
    """Postgres text holds no NUL and UTF-8 no lone surrogate: refuse both where they enter."""
    if "\x00" in value:
        raise ValueError("must not contain NUL")
    if _SURROGATE.search(value):
        raise ValueError("must not contain lone surrogates")
    return value


Line = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=500),
    AfterValidator(_is_storable),
]
Colour = Annotated[str, StringConstraints(pattern=r"^#[0-9a-fA-F]{6}$")]


class Payload(BaseModel):
    """Strict about names, immutable once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PhotoRef(Payload):
    """Where a photo comes from: exactly one of the three."""

    upload_id: UUID | None = None
    url: Annotated[str, StringConstraints(max_length=2048, pattern=r"^https?://\S+$")] | None = None
    asset_id: UUID | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> PhotoRef:
        if sum(v is not None for v in (self.upload_id, self.url, self.asset_id)) != 1:
            raise ValueError("give exactly one of upload_id, url, asset_id")
        return self


class Dimensions(Payload):
    """Outer measures of the product, in `unit`; the drawing shows what is given."""

    length: Decimal | None = Field(default=None, gt=0, lt=100_000, max_digits=10)
    width: Decimal | None = Field(default=None, gt=0, lt=100_000, max_digits=10)
    height: Decimal | None = Field(default=None, gt=0, lt=100_000, max_digits=10)
    unit: Literal["mm", "cm", "m", "in", "ft"] = "cm"

    @model_validator(mode="after")
    def _at_least_one(self) -> Dimensions:
        if self.length is None and self.width is None and self.height is None:
            raise ValueError("give at least one of length, width, height")
        return self


class Product(Payload):
    """The seller's facts. Every word drawn on a picture comes from here."""

    title: Line
    brand: Annotated[str, StringConstraints(strip_whitespace=True, max_length=100)] | None = None
    bullets: tuple[Line, ...] = Field(default=(), max_length=8)
    category: Annotated[str, StringConstraints(strip_whitespace=True, max_length=100)] | None = None
    dimensions: Dimensions | None = None
    in_the_box: tuple[Line, ...] = Field(default=(), max_length=20)
    sku: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,40}$")] | None = None

    @field_validator("brand", "category")
    @classmethod
    def _storable(cls, value: str | None) -> str | None:
        return None if value is None or value == "" else _is_storable(value)


class Style(Payload):
    """How the pictures should feel; the product itself is never restyled."""

    prompt: Annotated[str, StringConstraints(max_length=2000), AfterValidator(_is_storable)] = ""
    background: Annotated[str, StringConstraints(max_length=200), AfterValidator(_is_storable)] = ""
    palette: tuple[Colour, ...] = Field(default=(), max_length=6)


class _ImageBase(Payload):
    photo: PhotoRef
    photos: tuple[PhotoRef, ...] = Field(default=(), max_length=8)  # further views, best first
    product: Product
    style: Style = Style()
    size_px: int = Field(default=2000, ge=1000, le=4000)
    format: Literal["jpeg", "png"] = "jpeg"
    preview: bool = False
    model: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:/-]{1,100}$")] | None = None
    quality: Literal["low", "medium", "high", "xhigh", "max", "standard", "hd", "auto"] | None = None


class ImageInput(_ImageBase):
    """Input of kind `image`: one listing image."""

    slot: Slot


class PackInput(_ImageBase):
    """Input of kind `pack`: the complete set of listing images, one `image` child a slot."""

    slots: tuple[Slot, ...] = Field(default=PACK_SLOTS, min_length=1, max_length=7)

    @field_validator("slots")
    @classmethod
    def _no_twins(cls, value: tuple[Slot, ...]) -> tuple[Slot, ...]:
        if len(set(value)) != len(value):
            raise ValueError("names a slot twice")
        return value


class AplusInput(Payload):
    """Input of kind `aplus`: an A+ document with its images."""

    product: Product
    photo: PhotoRef | None = None
    photos: tuple[PhotoRef, ...] = Field(
        default=(),
        max_length=8,
        description="Taken so that a pack's photos fit here too; the pictures of the document show `photo` alone.",
    )
    modules: tuple[AplusModule, ...] | None = Field(default=None, min_length=1, max_length=5)
    style: Style = Style()
    locale: Annotated[str, StringConstraints(pattern=r"^[a-z]{2}-[A-Z]{2}$")] = "en-US"
    tone: Annotated[str, StringConstraints(max_length=200), AfterValidator(_is_storable)] | None = None
    content_type: Literal["EBC", "EMC"] = "EBC"


class PingInput(Payload):
    """Input of kind `ping`, the self-test: echoes, sleeps, fails as often as asked."""

    echo: Any = None
    sleep_s: float = Field(default=0, ge=0, le=3600)
    fail_times: int = Field(default=0, ge=0, le=10)


class WebhookInput(Payload):
    """Input of kind `webhook`, one delivery; made by the database alone (sql/functions/queue_webhook_event.sql).

    body: the exact text every attempt sends; url: of a job's own webhook, else the endpoint says it.
    """

    endpoint_id: UUID | None = None
    url: str | None = None
    message_id: str
    type: str
    body: str


INPUTS: dict[str, type[Payload]] = {
    "image": ImageInput,
    "pack": PackInput,
    "aplus": AplusInput,
    "ping": PingInput,
}
"""Kind -> model of its input, as callers may ask for it."""

INNER_INPUTS: dict[str, type[Payload]] = {"webhook": WebhookInput}
"""The same of the kinds that only the daemon makes."""
