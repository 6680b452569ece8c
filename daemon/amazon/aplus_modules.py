"""Amazon's A+ content document as pydantic models: parts, the 15 standard modules, the document. No I/O.

The limits here are those of the API; the editor's, which are tighter, stand in aplus_limits.py.
JSON names are Amazon's camelCase, unknown keys are refused, and `dump` leaves out what is not set.

Source: Selling Partner API, A+ Content API v2020-11-01 (amzn/selling-partner-api-models), read 2026-11-23.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic.alias_generators import to_camel

from daemon.amazon.aplus_limits import AplusModule


class Part(BaseModel):
    """Any object of the document."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, alias_generator=to_camel, populate_by_name=True
    )

    def dump(self) -> dict[str, Any]:
        """The object as Amazon reads it: camelCase, no nulls."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def _refuse_twins(positions: Iterable[int]) -> None:
    taken = list(positions)
    if len(set(taken)) != len(taken):
        raise ValueError("two items have the same position")


# Parts of modules


class Decorator(Part):
    """Rich text: `type` for `length` characters from `offset`."""

    type: (
        Literal[
            "LIST_ITEM", "LIST_ORDERED", "LIST_UNORDERED", "STYLE_BOLD", "STYLE_ITALIC", "STYLE_LINEBREAK",
            "STYLE_PARAGRAPH", "STYLE_UNDERLINE",
        ]
        | None
    ) = None  # fmt: skip
    offset: int | None = Field(default=None, ge=0, le=10_000)
    length: int | None = Field(default=None, ge=0, le=10_000)
    depth: int | None = Field(default=None, ge=0, le=100)


class TextComponent(Part):
    value: str = Field(min_length=1, max_length=10_000)
    decorator_set: list[Decorator] | None = None

    @field_validator("value")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is blank")
        return value

    @field_validator("decorator_set")
    @classmethod
    def _no_twins(cls, value: list[Decorator] | None) -> list[Decorator] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError("holds a decorator twice")
        return value


class ParagraphComponent(Part):
    text_list: list[TextComponent] = Field(min_length=1, max_length=100)


class TextItem(Part):
    position: int = Field(ge=1, le=100)
    text: TextComponent


class PlainTextItem(Part):
    position: int = Field(ge=1, le=100)
    value: str = Field(min_length=1, max_length=250)


class IntegerWithUnits(Part):
    value: int = Field(ge=0)
    units: Literal["pixels"] = "pixels"


class ImageDimensions(Part):
    width: IntegerWithUnits
    height: IntegerWithUnits


class ImageOffsets(Part):
    x: IntegerWithUnits
    y: IntegerWithUnits


class ImageCropSpecification(Part):
    size: ImageDimensions
    offset: ImageOffsets | None = None


class ImageComponent(Part):
    upload_destination_id: str = Field(min_length=1)
    image_crop_specification: ImageCropSpecification
    alt_text: str = Field(min_length=1, max_length=100)


class StandardTextBlock(Part):
    headline: TextComponent | None = None
    body: ParagraphComponent | None = None


class StandardImageTextBlock(StandardTextBlock):
    image: ImageComponent | None = None


class StandardImageCaptionBlock(Part):
    image: ImageComponent | None = None
    caption: TextComponent | None = None


class StandardImageTextCaptionBlock(Part):
    block: StandardImageTextBlock | None = None
    caption: TextComponent | None = None


class StandardTextListBlock(Part):
    text_list: list[TextItem] = Field(max_length=8)

    @field_validator("text_list")
    @classmethod
    def _own_positions(cls, value: list[TextItem]) -> list[TextItem]:
        _refuse_twins(item.position for item in value)
        return value


class StandardHeaderTextListBlock(Part):
    headline: TextComponent | None = None
    block: StandardTextListBlock | None = None


class StandardTextPairBlock(Part):
    label: TextComponent | None = None
    description: TextComponent | None = None


class StandardComparisonProductBlock(Part):
    position: int = Field(ge=1, le=6)
    image: ImageComponent | None = None
    title: str | None = Field(default=None, min_length=1, max_length=80)
    asin: str | None = Field(default=None, min_length=10)
    highlight: bool | None = None
    metrics: list[PlainTextItem] | None = Field(default=None, max_length=10)

    @field_validator("metrics")
    @classmethod
    def _own_positions(cls, value: list[PlainTextItem] | None) -> list[PlainTextItem] | None:
        _refuse_twins(item.position for item in value or ())
        return value


# The 15 standard modules


class StandardCompanyLogo(Part):
    company_logo: ImageComponent


class StandardComparisonTable(Part):
    product_columns: list[StandardComparisonProductBlock] | None = Field(default=None, max_length=6)
    metric_row_labels: list[PlainTextItem] | None = Field(default=None, max_length=10)

    @model_validator(mode="after")
    def _own_positions(self) -> Self:
        _refuse_twins(item.position for item in self.product_columns or ())
        _refuse_twins(item.position for item in self.metric_row_labels or ())
        return self


class StandardFourImageTextQuadrant(Part):
    block1: StandardImageTextBlock
    block2: StandardImageTextBlock
    block3: StandardImageTextBlock
    block4: StandardImageTextBlock


class StandardThreeImageText(Part):
    headline: TextComponent | None = None
    block1: StandardImageTextBlock | None = None
    block2: StandardImageTextBlock | None = None
    block3: StandardImageTextBlock | None = None


class StandardFourImageText(StandardThreeImageText):
    block4: StandardImageTextBlock | None = None


class StandardHeaderImageText(Part):
    headline: TextComponent | None = None
    block: StandardImageTextBlock | None = None


class StandardImageSidebar(Part):
    headline: TextComponent | None = None
    image_caption_block: StandardImageCaptionBlock | None = None
    description_text_block: StandardTextBlock | None = None
    description_list_block: StandardTextListBlock | None = None
    sidebar_image_text_block: StandardImageTextBlock | None = None
    sidebar_list_block: StandardTextListBlock | None = None


class StandardImageTextOverlay(Part):
    overlay_color_type: Literal["DARK", "LIGHT"]
    block: StandardImageTextBlock | None = None


class StandardMultipleImageText(Part):
    blocks: list[StandardImageTextCaptionBlock] | None = None


class StandardProductDescription(Part):
    body: ParagraphComponent


class StandardSingleImageHighlights(Part):
    image: ImageComponent | None = None
    headline: TextComponent | None = None
    text_block1: StandardTextBlock | None = None
    text_block2: StandardTextBlock | None = None
    text_block3: StandardTextBlock | None = None
    bulleted_list_block: StandardHeaderTextListBlock | None = None


class StandardSingleImageSpecsDetail(Part):
    headline: TextComponent | None = None
    image: ImageComponent | None = None
    description_headline: TextComponent | None = None
    description_block1: StandardTextBlock | None = None
    description_block2: StandardTextBlock | None = None
    specification_headline: TextComponent | None = None
    specification_list_block: StandardHeaderTextListBlock | None = None
    specification_text_block: StandardTextBlock | None = None


class StandardSingleSideImage(Part):
    image_position_type: Literal["LEFT", "RIGHT"]
    block: StandardImageTextBlock | None = None


class StandardTechSpecs(Part):
    headline: TextComponent | None = None
    specification_list: list[StandardTextPairBlock] = Field(min_length=4, max_length=16)
    table_count: int | None = Field(default=None, ge=1, le=2)


class StandardText(Part):
    headline: TextComponent | None = None
    body: ParagraphComponent


# The document


def payload_key(module: str) -> str:
    """The key a module's payload stands under: STANDARD_TEXT gives "standardText"."""
    return to_camel(module.lower())


class ContentModule(Part):
    """One module: its type and exactly the payload of that type."""

    content_module_type: AplusModule
    standard_company_logo: StandardCompanyLogo | None = None
    standard_comparison_table: StandardComparisonTable | None = None
    standard_four_image_text: StandardFourImageText | None = None
    standard_four_image_text_quadrant: StandardFourImageTextQuadrant | None = None
    standard_header_image_text: StandardHeaderImageText | None = None
    standard_image_sidebar: StandardImageSidebar | None = None
    standard_image_text_overlay: StandardImageTextOverlay | None = None
    standard_multiple_image_text: StandardMultipleImageText | None = None
    standard_product_description: StandardProductDescription | None = None
    standard_single_image_highlights: StandardSingleImageHighlights | None = None
    standard_single_image_specs_detail: StandardSingleImageSpecsDetail | None = None
    standard_single_side_image: StandardSingleSideImage | None = None
    standard_tech_specs: StandardTechSpecs | None = None
    standard_text: StandardText | None = None
    standard_three_image_text: StandardThreeImageText | None = None

    @model_validator(mode="after")
    def _one_matching_payload(self) -> Self:
        given = [name for name, value in self if name != "content_module_type" and value is not None]
        wanted = self.content_module_type.lower()
        if given != [wanted]:
            raise ValueError(f"{self.content_module_type} needs exactly the payload {to_camel(wanted)}")
        return self


class ContentDocument(Part):
    """What Amazon calls an A+ content document."""

    name: str = Field(min_length=1, max_length=100)
    content_type: Literal["EBC", "EMC"]
    content_sub_type: str | None = Field(default=None, min_length=1)
    locale: Annotated[str, StringConstraints(pattern=r"^[a-z]{2,}-[A-Z0-9]{2,}$")]
    content_module_list: list[ContentModule] = Field(min_length=1, max_length=100)


class ContentDocumentRequest(Part):
    """The body of createContentDocument."""

    content_document: ContentDocument
