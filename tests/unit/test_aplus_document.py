"""Our model of the document agrees with Amazon's own; broken documents are refused with a pointer."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from pydantic import ValidationError

from daemon.amazon.aplus import ImageFacts, check_document
from daemon.amazon.aplus_limits import LIMITS, AplusModule
from daemon.amazon.aplus_modules import ContentDocumentRequest, payload_key
from daemon.amazon.checks import Check, has_failed

DATA = Path(__file__).parents[3] / "shared" / "data" / "aplus"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="../shared/data is absent")
FILE = "aplus-media/sc/0000.jpg"
GOOD_FILE = ImageFacts(970, 600, 200_000, "JPEG", "RGB")
MODULES = "/contentDocument/contentModuleList"


@pytest.fixture
def example() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((DATA / "example_document.json").read_text())
    return document


@pytest.fixture(scope="module")
def oracle() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((DATA / "content_document.schema.json").read_text()))


def failed(checks: tuple[Check, ...]) -> set[tuple[str, str]]:
    return {(check.rule, check.pointer) for check in checks if check.outcome == "fail"}


def test_example_document_survives_a_round_trip(example: dict[str, Any]) -> None:
    assert example == ContentDocumentRequest.model_validate(example).dump()


def test_example_document_passes_every_check(example: dict[str, Any]) -> None:
    checks = check_document(example, {FILE: GOOD_FILE}, canaries=("zq81-canary",))

    assert {"pass"} == {check.outcome for check in checks}
    assert {
        "aplus.schema", "aplus.modules", "aplus.text_length", "aplus.image", "policy", "aplus.canary",
    } == {check.rule for check in checks}  # fmt: skip


def test_all_fifteen_modules_have_limits_and_a_payload() -> None:
    modules = get_args(AplusModule)

    assert len(modules) == 15
    assert set(modules) == set(LIMITS)


def test_limits_name_only_places_that_exist() -> None:
    """A path with a typing error would silently limit nothing."""
    schema = json.loads((DATA / "content_document.schema.json").read_text())
    definitions = schema["$defs"]

    for module, limits in LIMITS.items():
        payload = definitions["ContentModule"]["properties"][payload_key(module)]
        for path in (*limits.texts, *limits.images):
            place = payload
            for key in path.split("/"):
                place = definitions[place["$ref"].rpartition("/")[2]] if "$ref" in place else place
                place = place["items"] if key == "*" else place["properties"][key]


Breaker = Callable[[dict[str, Any]], Any]


def modules_of(document: dict[str, Any]) -> list[Any]:
    listed: list[Any] = document["contentDocument"]["contentModuleList"]
    return listed


def block_of(document: dict[str, Any]) -> dict[str, Any]:
    block: dict[str, Any] = modules_of(document)[0]["standardHeaderImageText"]["block"]
    return block


def specs_of(document: dict[str, Any]) -> list[Any]:
    rows: list[Any] = modules_of(document)[2]["standardTechSpecs"]["specificationList"]
    return rows


def crop_of(document: dict[str, Any]) -> dict[str, Any]:
    crop: dict[str, Any] = block_of(document)["image"]["imageCropSpecification"]
    return crop


AGAINST_SCHEMA: dict[str, tuple[Breaker, str]] = {
    "no name": (lambda d: d["contentDocument"].pop("name"), "/contentDocument/name"),
    "long name": (lambda d: d["contentDocument"].update(name="x" * 101), "/contentDocument/name"),
    "unknown key": (lambda d: d["contentDocument"].update(price=1), "/contentDocument/price"),
    "no module": (lambda d: modules_of(d).clear(), MODULES),
    "foreign content type": (lambda d: d["contentDocument"].update(contentType="ABC"),
                             "/contentDocument/contentType"),
    "unknown module": (lambda d: modules_of(d)[3].update(contentModuleType="PREMIUM_VIDEO"),
                       f"{MODULES}/3/contentModuleType"),
    "payload of another module": (lambda d: modules_of(d)[3].update(contentModuleType="STANDARD_TECH_SPECS"),
                                  f"{MODULES}/3"),
    "two payloads": (lambda d: modules_of(d)[3].update(standardProductDescription={
        "body": {"textList": [{"value": "Oak."}]}}), f"{MODULES}/3"),
    "three specs": (lambda d: specs_of(d).pop(), f"{MODULES}/2/standardTechSpecs/specificationList"),
    "seventeen specs": (lambda d: specs_of(d).extend(specs_of(d)[:1] * 13),
                        f"{MODULES}/2/standardTechSpecs/specificationList"),
    "long alt text": (lambda d: block_of(d)["image"].update(altText="x" * 101),
                      f"{MODULES}/0/standardHeaderImageText/block/image/altText"),
    "no alt text": (lambda d: block_of(d)["image"].pop("altText"),
                    f"{MODULES}/0/standardHeaderImageText/block/image/altText"),
    "no crop": (lambda d: block_of(d)["image"].pop("imageCropSpecification"),
                f"{MODULES}/0/standardHeaderImageText/block/image/imageCropSpecification"),
    "empty text": (lambda d: block_of(d)["headline"].update(value=""),
                   f"{MODULES}/0/standardHeaderImageText/block/headline/value"),
    "number as text": (lambda d: block_of(d)["headline"].update(value=7),
                       f"{MODULES}/0/standardHeaderImageText/block/headline/value"),
    "empty paragraph": (lambda d: block_of(d)["body"]["textList"].clear(),
                        f"{MODULES}/0/standardHeaderImageText/block/body/textList"),
    "three tables of specs": (lambda d: modules_of(d)[2]["standardTechSpecs"].update(tableCount=3),
                              f"{MODULES}/2/standardTechSpecs/tableCount"),
}  # fmt: skip


@pytest.mark.parametrize("name", AGAINST_SCHEMA)
def test_document_against_the_schema_is_refused_by_us_and_by_amazons_schema(
    name: str, example: dict[str, Any], oracle: jsonschema.Draft202012Validator
) -> None:
    spoil, pointer = AGAINST_SCHEMA[name]
    spoil(example)

    with pytest.raises(jsonschema.ValidationError):
        oracle.validate(example)
    assert ("aplus.schema", pointer) in failed(check_document(example, {FILE: GOOD_FILE}))


STRICTER: dict[str, Breaker] = {
    "blank text": lambda d: block_of(d)["headline"].update(value="  "),
    "crop in inches": lambda d: crop_of(d)["size"]["width"].update(units="inches"),
    "locale in words": lambda d: d["contentDocument"].update(locale="english"),
    "two columns at one position": lambda d: modules_of(d).append(
        {"contentModuleType": "STANDARD_COMPARISON_TABLE",
         "standardComparisonTable": {"productColumns": [{"position": 1}, {"position": 1}]}}),
}  # fmt: skip


@pytest.mark.parametrize("name", STRICTER)
def test_document_against_amazons_prose_is_refused_too(name: str, example: dict[str, Any]) -> None:
    """Rules that Amazon states in descriptions only, where the schema is silent."""
    STRICTER[name](example)

    with pytest.raises(ValidationError):
        ContentDocumentRequest.model_validate(example)


HEADER = f"{MODULES}/0/standardHeaderImageText"
AGAINST_EDITOR: dict[str, tuple[Breaker, str, str]] = {
    "six modules": (lambda d: modules_of(d).extend(modules_of(d)[:2]), "aplus.modules", MODULES),
    "long headline": (lambda d: block_of(d)["headline"].update(value="x" * 151),
                      "aplus.text_length", f"{HEADER}/block/headline"),
    "long paragraph in two parts": (
        lambda d: block_of(d)["body"].update(textList=[{"value": "x" * 3001}, {"value": "y" * 3000}]),
        "aplus.text_length", f"{HEADER}/block/body"),
    "long spec label": (lambda d: specs_of(d)[2]["label"].update(value="x" * 31), "aplus.text_length",
                        f"{MODULES}/2/standardTechSpecs/specificationList/2/label"),
    "header without image": (lambda d: block_of(d).pop("image"),
                             "aplus.image_missing", f"{HEADER}/block/image"),
    "small image": (lambda d: crop_of(d)["size"]["width"].update(value=969),
                    "aplus.image_size", f"{HEADER}/block/image"),
    "crop beyond the file": (lambda d: crop_of(d)["offset"]["x"].update(value=1),
                             "aplus.image_crop", f"{HEADER}/block/image"),
    "unknown file": (lambda d: block_of(d)["image"].update(uploadDestinationId="other.jpg"),
                     "aplus.image_file", f"{HEADER}/block/image"),
    "price": (lambda d: block_of(d)["headline"].update(value="Just $9"),
              "policy.price", f"{HEADER}/block/headline/value"),
    "link in the alt text": (lambda d: block_of(d)["image"].update(altText="See https://a.example"),
                             "policy.contact", f"{HEADER}/block/image/altText"),
    "e-mail address": (lambda d: block_of(d)["headline"].update(value="Write to me@acme.example"),
                       "policy.contact", f"{HEADER}/block/headline/value"),
    "HTML": (lambda d: block_of(d)["headline"].update(value="<b>Oak</b>"),
             "policy.html", f"{HEADER}/block/headline/value"),
    "canary": (lambda d: block_of(d)["headline"].update(value="My code is ZQ-81 CANARY"),
               "aplus.canary", f"{HEADER}/block/headline/value"),
}  # fmt: skip


@pytest.mark.parametrize("name", AGAINST_EDITOR)
def test_document_against_the_editor_or_the_policy_is_refused(name: str, example: dict[str, Any]) -> None:
    spoil, rule, pointer = AGAINST_EDITOR[name]
    spoil(example)

    checks = check_document(example, {FILE: GOOD_FILE}, canaries=("zq81canary",))

    assert (rule, pointer) in failed(checks)
    assert ("aplus.schema", "") not in failed(checks)


@pytest.mark.parametrize(
    ("file", "rule"),
    [
        (ImageFacts(970, 600, 2_000_001, "JPEG", "RGB"), "aplus.image_bytes"),
        (ImageFacts(970, 600, 200_000, "WEBP", "RGB"), "aplus.image_format"),
        (ImageFacts(970, 600, 200_000, "JPEG", "CMYK"), "aplus.image_colour"),
        (ImageFacts(969, 600, 200_000, "JPEG", "RGB"), "aplus.image_crop"),
    ],
)
def test_unfit_image_file_is_refused(file: ImageFacts, rule: str, example: dict[str, Any]) -> None:
    assert rule in {found for found, _ in failed(check_document(example, {FILE: file}))}


def test_comparison_of_one_product_is_a_warning(example: dict[str, Any]) -> None:
    columns = [{"position": 1, "title": "Bottle", "image": copy.deepcopy(block_of(example)["image"])}]
    modules_of(example).append(
        {
            "contentModuleType": "STANDARD_COMPARISON_TABLE",
            "standardComparisonTable": {"productColumns": columns},
        }
    )

    checks = check_document(example, {FILE: GOOD_FILE})

    assert not has_failed(checks)
    assert [check.rule for check in checks if check.outcome == "warn"] == ["aplus.comparison"]


def test_wording_is_judged_even_when_the_schema_is_broken(example: dict[str, Any]) -> None:
    broken: Mapping[str, Any] = {"contentDocument": {"name": "Buy now"}, "other": [{"value": "Only $5"}]}

    rules = {rule for rule, _ in failed(check_document(broken, {}))}

    assert {"aplus.schema", "policy.call_to_action", "policy.price"} <= rules
