"""What a request to an OpenAI-compatible image server looks like, by the model's name.

    gpt-image-2 and later   edit with references, any size, streaming, safety_identifier
    gpt-image-1*, chatgpt-image-latest   the same with three fixed sizes
    dall-e-2                edit of a square RGBA picture: what is transparent gets painted
    dall-e-*                text to picture; then only the surroundings are asked for

DALL·E itself is gone since 2026-05-12; compatible servers still take its requests.
Source: facts of the Images API, 2026-11-23.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any

from daemon.providers.protocols import PaintRequest
from daemon.providers.token_count import most_tokens

LONG_SIDE_PX = 1600  # Amazon's zoom needs this much; every further pixel is paid for
PARTIAL_IMAGES = 2
_MIN_PIXELS, _STEP_PX, _MAX_RATIO = 655_360, 16, 3.0
_MAX_REFERENCES = 16
_PROMPT_CHARS = {"gpt": 32_000, "dall-e-2": 1000, "dall-e": 4000}
_OLD_GPT = ("gpt-image-1", "chatgpt-image-latest")
_OLD_GPT_SIZES = ((1024, 1024), (1536, 1024), (1024, 1536))
_DALLE_SIZES = ((1024, 1024), (1792, 1024), (1024, 1792))

# Output tokens of a 1024 x 1024 picture: gpt-image-2.5's figures, low and medium times four as 2.6 is said
# to use. An estimate reserves money, so it leans high; the answer's own usage settles it.
_OUT_TOKENS = {"low": 784, "medium": 1756, "high": 1756, "xhigh": 3122, "max": 7024}
_TOKENS_PER_REFERENCE = 2048

SCENE_ORDER = (
    "Show only the surroundings that the following text describes, with free, level space in the lower middle"
    " where a product will be set later. Leave the product itself and all lettering out.\n\n"
)
_COUNTS = frozenset(
    {"input_tokens", "output_tokens", "total_tokens", "text_tokens", "image_tokens", "cached_tokens"}
)
_DETAILS = frozenset({"input_tokens_details", "output_tokens_details"})


class Shape(StrEnum):
    """What a model is asked to do: edit references, fill transparency, paint surroundings."""

    EDIT = "edit"
    FILL = "fill"
    SCENE = "scene"


@dataclass(frozen=True, slots=True)
class ImagePrices:
    """USD per million tokens; per_image: for servers whose answers state no usage."""

    text_in_usd: Decimal = Decimal(5)
    image_in_usd: Decimal = Decimal(8)
    image_out_usd: Decimal = Decimal(30)
    per_image_usd: Decimal | None = None


def shape_of(model: str) -> Shape:
    """The kind of request that a model of this name takes."""
    if model == "dall-e-2":
        return Shape.FILL
    return Shape.SCENE if model.startswith("dall-e") else Shape.EDIT


def fit_size(model: str, width_px: int, height_px: int) -> tuple[int, int]:
    """(width, height) to ask this model for: the wanted ratio as nearly as it can, near LONG_SIDE_PX."""
    shape = shape_of(model)
    if shape is Shape.FILL:
        return 1024, 1024
    if shape is Shape.SCENE or model.startswith(_OLD_GPT):
        sizes = _DALLE_SIZES if shape is Shape.SCENE else _OLD_GPT_SIZES
        wanted = math.log(width_px / height_px)
        return min(sizes, key=lambda size: abs(math.log(size[0] / size[1]) - wanted))
    ratio = min(_MAX_RATIO, max(1 / _MAX_RATIO, width_px / height_px))
    long_px = float(min(LONG_SIDE_PX, max(width_px, height_px)))
    width, height = (long_px, long_px / ratio) if ratio >= 1 else (long_px * ratio, long_px)
    grow = max(1.0, math.sqrt(_MIN_PIXELS / (width * height)))
    # Rounding up keeps both limits: the pixel count only grows, and 3:1 stays at most 3:1.
    return _round_up(width * grow), _round_up(height * grow)


def fit_quality(model: str, quality: str) -> str:
    """The nearest word this generation of models knows."""
    if shape_of(model) is not Shape.EDIT:
        return "hd" if quality in ("high", "xhigh", "max", "hd") else "standard"
    quality = {"standard": "medium", "hd": "high"}.get(quality, quality)
    newer = model.startswith("gpt-image-2.")
    return "high" if quality in ("xhigh", "max") and not newer else quality


def request_fields(request: PaintRequest, model: str, quality: str, *, stream: bool) -> dict[str, Any]:
    """The parameters besides the pictures, as the SDK names them."""
    width, height = fit_size(model, request.width_px, request.height_px)
    fields: dict[str, Any] = {
        "model": model,
        "n": 1,
        "size": f"{width}x{height}",
        "quality": fit_quality(model, quality),
    }
    if shape_of(model) is Shape.EDIT:
        fields |= {"prompt": request.prompt[: _PROMPT_CHARS["gpt"]], "output_format": "png",
                   "background": "opaque"}  # fmt: skip
        if request.user_hash:
            fields["safety_identifier"] = request.user_hash
        if stream:
            fields |= {"stream": True, "partial_images": PARTIAL_IMAGES}
        return fields
    fields["response_format"] = "b64_json"
    if request.user_hash:
        fields["user"] = request.user_hash
    if shape_of(model) is Shape.FILL:
        del fields["quality"]  # dall-e-2 knows one
        return fields | {"prompt": request.prompt[: _PROMPT_CHARS["dall-e-2"]]}
    return fields | {"prompt": (SCENE_ORDER + request.prompt)[: _PROMPT_CHARS["dall-e"]], "style": "natural"}


def references_of(request: PaintRequest) -> list[tuple[bytes, str]]:
    """(bytes, name) of the pictures that the model shall keep to: the cut-out first."""
    photos = [(photo, f"photo-{at}") for at, photo in enumerate(request.photos, 1)]
    return [(request.cutout_png, "product"), *photos][:_MAX_REFERENCES]


def estimate_usd(request: PaintRequest, model: str, quality: str, prices: ImagePrices) -> Decimal:
    """What a call will cost at most, as far as anyone can tell beforehand. USD."""
    if prices.per_image_usd is not None:
        return prices.per_image_usd
    width, height = fit_size(model, request.width_px, request.height_px)
    out = _OUT_TOKENS.get(fit_quality(model, quality), _OUT_TOKENS["high"]) * width * height / 1024**2
    return price_tokens(
        prices,
        text_in=most_tokens(request.prompt),
        image_in=_TOKENS_PER_REFERENCE * len(references_of(request)),
        out=math.ceil(out) + 100 * PARTIAL_IMAGES,
    )


def price_usage(usage: Mapping[str, Any], prices: ImagePrices) -> Decimal | None:
    """What the answer's own usage costs, USD; None when it states none that can be read.

    A picture of no tokens is how servers fill the place that do not count. Input that is not told apart is priced as
    pictures, the dearer of the two.
    """
    out, total_in = _tokens(usage.get("output_tokens")), _tokens(usage.get("input_tokens"))
    if not out or total_in is None:
        return None
    details = usage.get("input_tokens_details")
    text = _tokens(details.get("text_tokens")) if isinstance(details, Mapping) else None
    text = min(text or 0, total_in)
    return price_tokens(prices, text_in=text, image_in=total_in - text, out=out)


def read_counts(usage: Mapping[str, Any]) -> dict[str, Any]:
    """The token counts of an answer's usage, and those of its details; whatever else a server puts there is left out."""
    flat = {name: n for name, n in usage.items() if name in _COUNTS and _tokens(n) is not None}
    details = {name: part for name, part in usage.items() if name in _DETAILS and isinstance(part, Mapping)}
    return flat | {
        name: {count: n for count, n in part.items() if count in _COUNTS and _tokens(n) is not None}
        for name, part in details.items()
    }


def price_tokens(prices: ImagePrices, *, text_in: int, image_in: int, out: int) -> Decimal:
    """USD of so many tokens."""
    priced = text_in * prices.text_in_usd + image_in * prices.image_in_usd + out * prices.image_out_usd
    return priced / 1_000_000


def _tokens(value: object) -> int | None:
    """A count as a provider may state it; booleans, text, negative and absurd figures are none."""
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9
    return value if good and isinstance(value, int) else None


def _round_up(side: float) -> int:
    # The tolerance keeps 480.0000001 at 480.
    return math.ceil((side - 1e-6) / _STEP_PX) * _STEP_PX
