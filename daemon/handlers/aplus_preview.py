"""An A+ document as one HTML page, the way a shopper would see it: for people, not for Amazon.

The page is self-contained: images are data URIs, there is no script, and its policy forbids to load
anything. Every word from outside is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape

from daemon.amazon import aplus_modules as amazon
from daemon.amazon.checks import Check

_MARKS = {"pass": "✓", "warn": "!", "fail": "✗"}
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root{color-scheme:light}
body{margin:0;background:#fff;color:#0f1111;font:15px/1.55 "Amazon Ember",Arial,sans-serif;overflow-wrap:anywhere}
main,header,footer{max-width:970px;margin:0 auto;padding:0 20px}
header{padding-top:28px;border-bottom:1px solid #d5d9d9;margin-bottom:28px}
header h1{font-size:15px;font-weight:400;color:#565959;margin:0 0 14px}
section{margin:0 0 40px}
h2{font-size:24px;line-height:1.25;margin:0 0 12px}
h3{font-size:17px;line-height:1.3;margin:14px 0 6px}
p{margin:0 0 10px}
img+p{margin-top:12px}
img{display:block;max-width:100%;height:auto}
ul{margin:0;padding-left:20px}
.row{display:grid;gap:26px}
.two{grid-template-columns:1fr 1fr}.three{grid-template-columns:repeat(3,1fr)}
.four{grid-template-columns:repeat(4,1fr)}
.side{display:grid;grid-template-columns:300px 1fr;gap:28px;align-items:start}
.side.right{grid-template-columns:1fr 300px}.side.right img{order:2}
.quadrant{display:grid;grid-template-columns:135px 1fr;gap:18px;align-items:start}
.aside{display:grid;grid-template-columns:300px 1fr 350px;gap:24px;align-items:start}
.overlay{position:relative}.overlay img{width:100%}
.overlay div{position:absolute;left:4%;top:50%;transform:translateY(-50%);width:40%;padding:20px 24px;
box-sizing:border-box;border-radius:2px}
.overlay h3{margin-top:0;font-size:20px}.overlay p:last-child{margin:0}
.DARK div{background:rgba(15,17,17,.74);color:#fff}.LIGHT div{background:rgba(255,255,255,.86)}
figure{margin:0}figcaption{font-size:13px;color:#565959;margin-top:6px}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:9px 12px;border:1px solid #d5d9d9}
th{width:34%;background:#f3f5f5;font-weight:700}
footer{border-top:1px solid #d5d9d9;padding:22px 20px 44px;font-size:13px;color:#565959}
footer li{list-style:none;margin:0 0 4px}.pass b{color:#067d62}.warn b{color:#b35900}.fail b{color:#b12704}
code{font-size:12px}
@media(max-width:720px){.row,.side,.side.right,.aside{grid-template-columns:1fr}
.overlay div{position:static;transform:none;width:auto}.DARK div{background:#0f1111}}
"""


def render_preview(
    document: amazon.ContentDocument, images: Mapping[str, bytes], checks: Sequence[Check]
) -> bytes:
    """The page as UTF-8 HTML. images: uploadDestinationId -> JPEG bytes; checks stand at its foot."""
    modules = "\n".join(_Page(images).module(module) for module in document.content_module_list)
    findings = "\n".join(
        f'<li class="{check.outcome}"><b>{_MARKS[check.outcome]}</b> {escape(check.rule)}: '
        f"{escape(check.detail)} <code>{escape(check.pointer)}</code></li>"
        for check in checks
    )
    return f"""<!doctype html>
<html lang="{escape(document.locale)}"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{escape(document.name)}</title><style>{_STYLE}</style></head><body>
<header><h1>From the manufacturer (preview, not from Amazon)</h1></header>
<main>
{modules}
</main>
<footer><ul>
{findings}
</ul></footer></body></html>
""".encode()


class _Page:
    """Renders modules; `images` are the files behind their upload ids."""

    def __init__(self, images: Mapping[str, bytes]) -> None:
        self._images = images

    def module(self, module: amazon.ContentModule) -> str:
        (payload,) = [value for key, value in module if key != "content_module_type" and value is not None]
        render: Callable[[amazon.Part], str] = getattr(self, f"_{module.content_module_type.lower()}")
        return f"<section>{render(payload)}</section>"

    # Parts

    def _image(self, image: amazon.ImageComponent | None) -> str:
        if image is None:
            return ""
        data = self._images.get(image.upload_destination_id)
        source = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" if data else ""
        size = image.image_crop_specification.size
        return (
            f'<img src="{source}" alt="{escape(image.alt_text)}" width="{size.width.value}" '
            f'height="{size.height.value}">'
        )

    def _text(self, text: amazon.TextComponent | None, tag: str) -> str:
        return f"<{tag}>{escape(text.value)}</{tag}>" if text else ""

    def _body(self, body: amazon.ParagraphComponent | None) -> str:
        return "".join(self._text(text, "p") for text in body.text_list) if body else ""

    def _list(self, block: amazon.StandardTextListBlock | None) -> str:
        items = "".join(self._text(item.text, "li") for item in block.text_list) if block else ""
        return f"<ul>{items}</ul>" if items else ""

    def _block(self, block: amazon.StandardTextBlock | None) -> str:
        """Image (if the block can have one), headline, body."""
        if block is None:
            return ""
        image = self._image(block.image) if isinstance(block, amazon.StandardImageTextBlock) else ""
        return f"<div>{image}{self._words(block)}</div>"

    def _words(self, block: amazon.StandardTextBlock) -> str:
        return self._text(block.headline, "h3") + self._body(block.body)

    def _headed_list(self, block: amazon.StandardHeaderTextListBlock | None) -> str:
        return self._text(block.headline, "h3") + self._list(block.block) if block else ""

    # Modules, each named after its type

    def _standard_company_logo(self, payload: amazon.StandardCompanyLogo) -> str:
        return self._image(payload.company_logo)

    def _standard_comparison_table(self, payload: amazon.StandardComparisonTable) -> str:
        columns = payload.product_columns or []
        heads = "".join(f"<td>{self._image(c.image)}<h3>{escape(c.title or '')}</h3></td>" for c in columns)
        rows = []
        for label in payload.metric_row_labels or []:
            cells = (
                "".join(escape(m.value) for m in column.metrics or [] if m.position == label.position)
                for column in columns
            )
            rows.append(f"<tr><th>{escape(label.value)}</th>{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
        return f"<table><tr><th></th>{heads}</tr>{''.join(rows)}</table>"

    def _standard_three_image_text(self, payload: amazon.StandardThreeImageText) -> str:
        blocks = (payload.block1, payload.block2, payload.block3)
        row = "".join(map(self._block, blocks))
        return f'{self._text(payload.headline, "h2")}<div class="row three">{row}</div>'

    def _standard_four_image_text(self, payload: amazon.StandardFourImageText) -> str:
        blocks = (payload.block1, payload.block2, payload.block3, payload.block4)
        row = "".join(map(self._block, blocks))
        return f'{self._text(payload.headline, "h2")}<div class="row four">{row}</div>'

    def _standard_four_image_text_quadrant(self, payload: amazon.StandardFourImageTextQuadrant) -> str:
        blocks = (payload.block1, payload.block2, payload.block3, payload.block4)
        cells = "".join(
            f'<div class="quadrant">{self._image(b.image)}<div>{self._words(b)}</div></div>' for b in blocks
        )
        return f'<div class="row two">{cells}</div>'

    def _standard_header_image_text(self, payload: amazon.StandardHeaderImageText) -> str:
        return self._text(payload.headline, "h2") + self._block(payload.block)

    def _standard_image_sidebar(self, payload: amazon.StandardImageSidebar) -> str:
        main = payload.image_caption_block
        picture = self._image(main.image) + self._text(main.caption, "figcaption") if main else ""
        middle = self._block(payload.description_text_block) + self._list(payload.description_list_block)
        side = self._block(payload.sidebar_image_text_block) + self._list(payload.sidebar_list_block)
        columns = f"<figure>{picture}</figure><div>{middle}</div><div>{side}</div>"
        return f'{self._text(payload.headline, "h2")}<div class="aside">{columns}</div>'

    def _standard_image_text_overlay(self, payload: amazon.StandardImageTextOverlay) -> str:
        block = payload.block
        inside = f"{self._image(block.image)}<div>{self._words(block)}</div>" if block else ""
        return f'<div class="overlay {payload.overlay_color_type}">{inside}</div>'

    def _standard_multiple_image_text(self, payload: amazon.StandardMultipleImageText) -> str:
        blocks = [entry.block for entry in payload.blocks or [] if entry.block]
        return f'<div class="row two">{"".join(map(self._block, blocks))}</div>'

    def _standard_product_description(self, payload: amazon.StandardProductDescription) -> str:
        return self._body(payload.body)

    def _standard_single_image_highlights(self, payload: amazon.StandardSingleImageHighlights) -> str:
        blocks = map(self._block, (payload.text_block1, payload.text_block2, payload.text_block3))
        words = f"<div>{self._text(payload.headline, 'h2')}{''.join(blocks)}"
        words += self._headed_list(payload.bulleted_list_block) + "</div>"
        return f'<div class="side">{self._image(payload.image)}{words}</div>'

    def _standard_single_image_specs_detail(self, payload: amazon.StandardSingleImageSpecsDetail) -> str:
        words = self._text(payload.description_headline, "h3")
        words += self._block(payload.description_block1) + self._block(payload.description_block2)
        words += self._text(payload.specification_headline, "h3")
        words += self._headed_list(payload.specification_list_block)
        words += self._block(payload.specification_text_block)
        image = self._image(payload.image)
        return f'{self._text(payload.headline, "h2")}<div class="side">{image}<div>{words}</div></div>'

    def _standard_single_side_image(self, payload: amazon.StandardSingleSideImage) -> str:
        block = payload.block
        inside = f"{self._image(block.image)}<div>{self._words(block)}</div>" if block else ""
        side = " right" if payload.image_position_type == "RIGHT" else ""
        return f'<div class="side{side}">{inside}</div>'

    def _standard_tech_specs(self, payload: amazon.StandardTechSpecs) -> str:
        rows = "".join(
            f"<tr>{self._text(row.label, 'th')}{self._text(row.description, 'td')}</tr>"
            for row in payload.specification_list
        )
        return f"{self._text(payload.headline, 'h2')}<table>{rows}</table>"

    def _standard_text(self, payload: amazon.StandardText) -> str:
        return self._text(payload.headline, "h2") + self._body(payload.body)
