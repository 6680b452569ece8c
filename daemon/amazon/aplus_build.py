"""From sound texts and facts to Amazon's document: code places texts, pictures, rows and alt texts. No I/O.

    AplusDraft + AplusFacts + pictures ──build_document──▶ ContentDocumentRequest

Without Amazon credentials there is no upload, so each image carries a placeholder uploadDestinationId
that names its file: "placeholder/aplus-module1-block.jpg".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from daemon.amazon import aplus_modules as amazon
from daemon.amazon.aplus_draft import AplusDraft, AplusFacts, BlockDraft, ModuleDraft, SpecRow
from daemon.amazon.aplus_limits import LIMITS, MAX_COMPARISON_TITLE, MAX_METRIC_LABEL, AplusModule
from daemon.amazon.aplus_words import Words, capitalise

ALT_TEXT = 100
LIST_ROW = 100  # a specification as a bullet
PLACEHOLDER = "placeholder/"


@dataclass(frozen=True, slots=True)
class ImagePlace:
    """A place for a picture in a document.

    slot: unique in the document ("module1-block"); module: its module; width_px, height_px: the size it is
    shown at; topic: what the text beside it says, empty when there is none.
    """

    slot: str
    module: AplusModule
    width_px: int
    height_px: int
    topic: str = ""

    @property
    def file_name(self) -> str:
        return f"aplus-{self.slot}.jpg"

    @property
    def upload_destination_id(self) -> str:
        return PLACEHOLDER + self.file_name


def list_places(draft: AplusDraft) -> tuple[ImagePlace, ...]:
    """Every place for a picture that the document of this draft will have, in reading order."""
    places = []
    for index, module in enumerate(draft.modules):
        for number, (path, size) in enumerate(_image_paths(module)):
            name = path.removesuffix("/image").replace("/", "-").lower()
            topic = module.blocks[number] if number < len(module.blocks) else BlockDraft()
            places.append(
                ImagePlace(
                    f"module{index + 1}-{name}", module.module, *size, topic.headline or topic.body[:200]
                )
            )
    return tuple(places)


def _image_paths(module: ModuleDraft) -> list[tuple[str, tuple[int, int]]]:
    """The paths of a module's images with their sizes; "*" is unrolled over the draft's blocks."""
    paths: list[tuple[str, tuple[int, int]]] = []
    for path, size in LIMITS[module.module].images.items():
        count = (len(module.blocks) or 1) if "*" in path else 1
        paths += [(path.replace("*", str(n)), size) for n in range(count)]
    return paths


def build_document(
    draft: AplusDraft,
    facts: AplusFacts,
    words: Words,
    *,
    locale: str,
    content_type: str,
) -> amazon.ContentDocumentRequest:
    """The document with a placeholder image at every place of `list_places`.

    Errors: pydantic.ValidationError when a text breaks Amazon's schema; `read_draft` prevents that.
    """
    places = list_places(draft)
    modules = []
    for index, module in enumerate(draft.modules):
        own = [place for place in places if place.slot.startswith(f"module{index + 1}-")]
        images = [_image(place, facts, words) for place in own]
        payload = _BUILDERS[module.module](_Source(module, images, facts, words))
        modules.append(
            {"contentModuleType": module.module, amazon.payload_key(module.module): payload.dump()}
        )
    return amazon.ContentDocumentRequest.model_validate(
        {
            "contentDocument": {
                "name": facts.short_title,
                "contentType": content_type,
                "locale": locale,
                "contentModuleList": modules,
            }
        }
    )


@dataclass(frozen=True, slots=True)
class _Source:
    """What one module is built from; `images` in the order of `list_places`."""

    draft: ModuleDraft
    images: Sequence[amazon.ImageComponent]
    facts: AplusFacts
    words: Words

    @property
    def headline(self) -> amazon.TextComponent | None:
        return _text(self.draft.headline)

    def block(self, index: int) -> amazon.StandardImageTextBlock:
        """The block with its image."""
        draft = self.draft.blocks[index]
        return amazon.StandardImageTextBlock(
            image=self.images[index], headline=_text(draft.headline), body=_paragraphs(draft.body)
        )

    def text_block(self, index: int) -> amazon.StandardTextBlock | None:
        """The block without an image, or None when the writer wrote fewer."""
        if index >= len(self.draft.blocks):
            return None
        draft = self.draft.blocks[index]
        return amazon.StandardTextBlock(headline=_text(draft.headline), body=_paragraphs(draft.body))


def _image(place: ImagePlace, facts: AplusFacts, words: Words) -> amazon.ImageComponent:
    def pixels(value: int) -> amazon.IntegerWithUnits:
        return amazon.IntegerWithUnits(value=value)

    return amazon.ImageComponent(
        upload_destination_id=place.upload_destination_id,
        image_crop_specification=amazon.ImageCropSpecification(
            size=amazon.ImageDimensions(width=pixels(place.width_px), height=pixels(place.height_px)),
            offset=amazon.ImageOffsets(x=pixels(0), y=pixels(0)),
        ),
        alt_text=_alt_text(place, facts, words),
    )


def _alt_text(place: ImagePlace, facts: AplusFacts, words: Words) -> str:
    """What the picture shows, for those who hear the page: the product, and the topic where it fits."""
    if place.module == "STANDARD_COMPANY_LOGO":
        return facts.brand[:ALT_TEXT]
    topic = place.topic.lower()
    if not topic or topic == words.about.lower() or topic in facts.short_title.lower():
        return facts.short_title
    longer = (f"{name}{words.colon}{place.topic}" for name in (facts.short_title, facts.name))
    return next((text for text in longer if len(text) <= ALT_TEXT), facts.short_title)


def _text(value: str) -> amazon.TextComponent | None:
    return amazon.TextComponent(value=value.strip()) if value.strip() else None


def _paragraphs(value: str) -> amazon.ParagraphComponent | None:
    texts = [text for text in map(_text, value.splitlines()) if text]
    return amazon.ParagraphComponent(text_list=texts) if texts else None


def _list(values: Sequence[str]) -> amazon.StandardTextListBlock | None:
    texts = [text for text in map(_text, values) if text]
    items = [amazon.TextItem(position=n, text=text) for n, text in enumerate(texts, 1)]
    return amazon.StandardTextListBlock(text_list=items) if items else None


def _body(source: _Source) -> amazon.ParagraphComponent:
    body = _paragraphs(source.draft.blocks[0].body)
    assert body is not None  # read_draft lets no block pass that says nothing
    return body


def comparison_rows(facts: AplusFacts) -> tuple[SpecRow, ...]:
    """The rows that fit a comparison table: short labels and values, the title left to its column."""
    fitting = (row for row in facts.rows[1:] if len(row.label) <= MAX_METRIC_LABEL and len(row.value) <= 250)
    return tuple(fitting)[:10]


def _build_logo(source: _Source) -> amazon.Part:
    return amazon.StandardCompanyLogo(company_logo=source.images[0])


def _build_comparison(source: _Source) -> amazon.Part:
    rows = comparison_rows(source.facts)
    column = amazon.StandardComparisonProductBlock(
        position=1,
        image=source.images[0],
        title=source.facts.short_title[:MAX_COMPARISON_TITLE],
        highlight=True,
        metrics=[amazon.PlainTextItem(position=n, value=row.value) for n, row in enumerate(rows, 1)],
    )
    labels = [amazon.PlainTextItem(position=n, value=row.label) for n, row in enumerate(rows, 1)]
    return amazon.StandardComparisonTable(product_columns=[column], metric_row_labels=labels)


def _build_three(source: _Source) -> amazon.Part:
    blocks = {f"block{n + 1}": source.block(n) for n in range(3)}
    return amazon.StandardThreeImageText(headline=source.headline, **blocks)


def _build_four(source: _Source) -> amazon.Part:
    blocks = {f"block{n + 1}": source.block(n) for n in range(4)}
    return amazon.StandardFourImageText(headline=source.headline, **blocks)


def _build_quadrant(source: _Source) -> amazon.Part:
    blocks = {f"block{n + 1}": source.block(n) for n in range(4)}
    return amazon.StandardFourImageTextQuadrant(**blocks)


def _build_header(source: _Source) -> amazon.Part:
    return amazon.StandardHeaderImageText(headline=source.headline, block=source.block(0))


def _build_sidebar(source: _Source) -> amazon.Part:
    return amazon.StandardImageSidebar(
        headline=source.headline,
        image_caption_block=amazon.StandardImageCaptionBlock(
            image=source.images[0], caption=_text(source.facts.short_title)
        ),
        description_text_block=source.text_block(0),
        description_list_block=_list(source.draft.bullets),
        sidebar_image_text_block=source.block(1),
    )


def _build_overlay(source: _Source) -> amazon.Part:
    return amazon.StandardImageTextOverlay(overlay_color_type="DARK", block=source.block(0))


def _build_multiple(source: _Source) -> amazon.Part:
    blocks = [
        amazon.StandardImageTextCaptionBlock(
            block=source.block(n), caption=_text(draft.headline or source.facts.short_title)
        )
        for n, draft in enumerate(source.draft.blocks)
    ]
    return amazon.StandardMultipleImageText(blocks=blocks)


def _build_description(source: _Source) -> amazon.Part:
    return amazon.StandardProductDescription(body=_body(source))


def _build_highlights(source: _Source) -> amazon.Part:
    return amazon.StandardSingleImageHighlights(
        image=source.images[0],
        headline=source.headline,
        text_block1=source.text_block(0),
        text_block2=source.text_block(1),
        text_block3=source.text_block(2),
        bulleted_list_block=amazon.StandardHeaderTextListBlock(
            headline=_text(capitalise(source.words.features)), block=_list(source.draft.bullets)
        ),
    )


def _build_specs_detail(source: _Source) -> amazon.Part:
    rows = [f"{row.label}{source.words.colon}{row.value}" for row in source.facts.rows]
    return amazon.StandardSingleImageSpecsDetail(
        headline=source.headline,
        image=source.images[0],
        description_block1=source.text_block(0),
        description_block2=source.text_block(1),
        specification_headline=_text(capitalise(source.words.specifications)),
        specification_list_block=amazon.StandardHeaderTextListBlock(
            block=_list([row for row in rows if len(row) <= LIST_ROW][:8])
        ),
    )


def _build_side(source: _Source) -> amazon.Part:
    return amazon.StandardSingleSideImage(image_position_type="LEFT", block=source.block(0))


def _build_tech_specs(source: _Source) -> amazon.Part:
    rows = [
        amazon.StandardTextPairBlock(label=_text(row.label), description=_text(row.value))
        for row in source.facts.rows
    ]
    return amazon.StandardTechSpecs(
        headline=_text(capitalise(source.words.specifications)), specification_list=rows, table_count=1
    )


def _build_text(source: _Source) -> amazon.Part:
    return amazon.StandardText(headline=source.headline, body=_body(source))


_BUILDERS: Mapping[AplusModule, Callable[[_Source], amazon.Part]] = {
    "STANDARD_COMPANY_LOGO": _build_logo,
    "STANDARD_COMPARISON_TABLE": _build_comparison,
    "STANDARD_FOUR_IMAGE_TEXT": _build_four,
    "STANDARD_FOUR_IMAGE_TEXT_QUADRANT": _build_quadrant,
    "STANDARD_HEADER_IMAGE_TEXT": _build_header,
    "STANDARD_IMAGE_SIDEBAR": _build_sidebar,
    "STANDARD_IMAGE_TEXT_OVERLAY": _build_overlay,
    "STANDARD_MULTIPLE_IMAGE_TEXT": _build_multiple,
    "STANDARD_PRODUCT_DESCRIPTION": _build_description,
    "STANDARD_SINGLE_IMAGE_HIGHLIGHTS": _build_highlights,
    "STANDARD_SINGLE_IMAGE_SPECS_DETAIL": _build_specs_detail,
    "STANDARD_SINGLE_SIDE_IMAGE": _build_side,
    "STANDARD_TECH_SPECS": _build_tech_specs,
    "STANDARD_TEXT": _build_text,
    "STANDARD_THREE_IMAGE_TEXT": _build_three,
}
