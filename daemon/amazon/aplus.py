"""Checks of an A+ content document before it goes to Amazon: schema, editor limits, images, wording. No I/O.

    document ──▶ schema ──▶ modules ──▶ texts ──▶ images ──▶ policy ──▶ canary ──▶ checks

Each rule gives one pass, or one warn or fail for every place that breaks it, with a JSON pointer to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from pydantic import ValidationError

from daemon.amazon.aplus_limits import (
    IMAGE_FORMATS,
    IMAGE_MODE,
    LIMITS,
    MAX_IMAGE_BYTES,
    MAX_MODULES,
    AplusModule,
)
from daemon.amazon.aplus_modules import ContentDocumentRequest, payload_key
from daemon.amazon.checks import Check
from daemon.amazon.policy import check_text

TEXT_KEYS = frozenset({"value", "altText", "title", "name"})
MODULE_LIST = "/contentDocument/contentModuleList"


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image file as measured: size in px and bytes, format ("JPEG", "PNG") and mode ("RGB") by Pillow."""

    width_px: int
    height_px: int
    size_bytes: int
    format: str
    mode: str


@dataclass(frozen=True, slots=True)
class _Place:
    """A value inside one module: its JSON pointer and the value."""

    pointer: str
    value: Any


def check_document(
    document: Mapping[str, Any],
    images: Mapping[str, ImageFacts],
    *,
    canaries: Sequence[str] = (),
) -> tuple[Check, ...]:
    """Every rule's outcome for `document`, the body of createContentDocument as plain JSON.

    images: uploadDestinationId -> the measured file; canaries: strings that stood in a prompt and must
    not have found their way into a text. A document that breaks the schema is judged by its wording only.
    """
    broken = _check_schema(document)
    checks = list(broken or [_passed("aplus.schema", "The document follows the A+ Content API 2020-11-01.")])
    if not broken:
        checks += _check_modules(document)
        checks += _or_pass("aplus.text_length", _check_lengths(document), "Every text fits its place.")
        checks += _or_pass("aplus.image", _check_images(document, images), "Every image fits its place.")
    texts = list(_texts(document, ""))
    checks += _or_pass("policy", _check_wording(texts), "No text breaks a content rule.")
    checks += _or_pass("aplus.canary", _check_canaries(texts, canaries), "No text repeats the instructions.")
    return tuple(checks)


def _passed(rule: str, detail: str) -> Check:
    return Check(rule, "pass", detail=detail)


def _or_pass(rule: str, found: Iterator[Check], detail: str) -> list[Check]:
    return list(found) or [_passed(rule, detail)]


def escape_key(key: object) -> str:
    """A key as one step of a JSON pointer (RFC 6901)."""
    return str(key).replace("~", "~0").replace("/", "~1")


def _check_schema(document: Mapping[str, Any]) -> list[Check]:
    try:
        ContentDocumentRequest.model_validate(document)
    except ValidationError as exc:
        return [
            Check(
                "aplus.schema",
                "fail",
                measured=str(error["input"])[:60],
                detail=error["msg"],
                pointer="".join("/" + escape_key(key) for key in error["loc"]),
            )
            for error in exc.errors(include_url=False, include_context=False)
        ]
    return []


def _modules(document: Mapping[str, Any]) -> Iterator[tuple[AplusModule, str, Mapping[str, Any]]]:
    """Type, pointer and payload of each module of a document that follows the schema."""
    for index, module in enumerate(document["contentDocument"]["contentModuleList"]):
        kind = cast("AplusModule", module["contentModuleType"])
        key = payload_key(kind)
        yield kind, f"{MODULE_LIST}/{index}/{key}", module[key]


def _check_modules(document: Mapping[str, Any]) -> Iterator[Check]:
    modules = list(_modules(document))
    outcome = "pass" if len(modules) <= MAX_MODULES else "fail"
    detail = f"The editor takes at most {MAX_MODULES} standard modules."
    yield Check("aplus.modules", cast("Any", outcome), len(modules), MAX_MODULES, detail, MODULE_LIST)
    for kind, pointer, payload in modules:
        if kind == "STANDARD_COMPARISON_TABLE" and len(payload.get("productColumns") or ()) < 2:
            detail = "The table compares one product only: add the ASINs to compare it with."
            yield Check("aplus.comparison", "warn", 1, 2, detail, f"{pointer}/productColumns")


def _find(value: Any, path: str, pointer: str) -> Iterator[_Place]:
    """The values at `path`, where "*" is any position; a missing one has the value None."""
    if not path:
        yield _Place(pointer, value)
        return
    key, _, rest = path.partition("/")
    if key == "*":
        for index, item in enumerate(value or ()):
            yield from _find(item, rest, f"{pointer}/{index}")
    else:
        yield from _find((value or {}).get(key), rest, f"{pointer}/{key}")


def _length(value: Any) -> int:
    """Characters of a plain text, a text component or a whole paragraph."""
    if value is None:
        return 0
    if isinstance(value, str):
        return len(value)
    if "textList" in value:
        return sum(len(text["value"]) for text in value["textList"])
    return len(value["value"])


def _check_lengths(document: Mapping[str, Any]) -> Iterator[Check]:
    for kind, pointer, payload in _modules(document):
        for path, limit in LIMITS[kind].texts.items():
            for place in _find(payload, path, pointer):
                length = _length(place.value)
                if length > limit:
                    detail = f"The text has {length} characters; the editor takes {limit} here."
                    yield Check("aplus.text_length", "fail", length, limit, detail, place.pointer)


def _check_images(document: Mapping[str, Any], images: Mapping[str, ImageFacts]) -> Iterator[Check]:
    for kind, pointer, payload in _modules(document):
        for path, least in LIMITS[kind].images.items():
            for place in _find(payload, path, pointer):
                if place.value is None:
                    detail = "This place of the module needs an image."
                    yield Check("aplus.image_missing", "fail", None, list(least), detail, place.pointer)
                else:
                    yield from _check_image(place, least, images)


def _check_image(place: _Place, least: tuple[int, int], images: Mapping[str, ImageFacts]) -> Iterator[Check]:
    crop = place.value["imageCropSpecification"]
    size = (crop["size"]["width"]["value"], crop["size"]["height"]["value"])
    offset = crop.get("offset") or {"x": {"value": 0}, "y": {"value": 0}}
    end = (size[0] + offset["x"]["value"], size[1] + offset["y"]["value"])

    def fail(rule: str, measured: Any, limit: Any, detail: str) -> Check:
        return Check(f"aplus.{rule}", "fail", measured, limit, detail, place.pointer)

    if size[0] < least[0] or size[1] < least[1]:
        yield fail("image_size", list(size), list(least), "The image is smaller than its place.")
    facts = images.get(place.value["uploadDestinationId"])
    if facts is None:
        yield fail("image_file", None, None, "No file stands behind this uploadDestinationId.")
        return
    if end[0] > facts.width_px or end[1] > facts.height_px:
        whole = [facts.width_px, facts.height_px]
        yield fail("image_crop", list(end), whole, "The crop reaches beyond the image.")
    for check in check_image_file(facts):
        if check.outcome == "fail":
            yield replace(check, pointer=place.pointer)


def check_image_file(facts: ImageFacts) -> tuple[Check, ...]:
    """Bytes, format and colour of one image file, pass or fail each."""
    measured: tuple[tuple[str, Any, Any, bool, str], ...] = (
        ("image_bytes", facts.size_bytes, MAX_IMAGE_BYTES, facts.size_bytes <= MAX_IMAGE_BYTES,
         "The file must not be bigger."),
        ("image_format", facts.format, list(IMAGE_FORMATS), facts.format in IMAGE_FORMATS,
         "Amazon takes these formats."),
        ("image_colour", facts.mode, IMAGE_MODE, facts.mode == IMAGE_MODE, "The image must be plain RGB."),
    )  # fmt: skip
    return tuple(
        Check(f"aplus.{rule}", "pass" if fits else "fail", value, limit, detail)
        for rule, value, limit, fits, detail in measured
    )


def _texts(value: Any, pointer: str) -> Iterator[_Place]:
    """Every text that a shopper or a reviewer reads, wherever it stands."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(item, str) and key in TEXT_KEYS:
                yield _Place(f"{pointer}/{escape_key(key)}", item)
            else:
                yield from _texts(item, f"{pointer}/{escape_key(key)}")
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for index, item in enumerate(value):
            yield from _texts(item, f"{pointer}/{index}")


def _check_wording(texts: Sequence[_Place]) -> Iterator[Check]:
    for place in texts:
        for finding in check_text(place.value, place.pointer):
            yield finding.as_check()


def _check_canaries(texts: Sequence[_Place], canaries: Sequence[str]) -> Iterator[Check]:
    for place in texts:
        if contains_canary(place.value, canaries):
            detail = "The text repeats words from the writer's instructions."
            yield Check("aplus.canary", "fail", detail=detail, pointer=place.pointer)


def contains_canary(text: str, canaries: Sequence[str]) -> bool:
    """True when a canary stands in the text, whatever the case and the characters put between its own."""
    letters = _letters(text)
    return any(_letters(canary) in letters for canary in canaries if canary)


def _letters(text: str) -> str:
    keep: Callable[[str], bool] = str.isalnum
    return "".join(filter(keep, text.lower()))
