"""Where a picture's pixels come from, written into the file itself as an XMP packet.

Source: IPTC Photo Metadata Standard 2025.1 (Iptc4xmpExt:DigitalSourceType) with the NewsCodes vocabulary
http://cv.iptc.org/newscodes/digitalsourcetype/; EU AI Act Art. 50(2), whose grace period ends 2026-12-02.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from xml.etree import ElementTree as ET
from xml.sax.saxutils import quoteattr

TOOL = "listingd"
_VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_EXT = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_XMP = "http://ns.adobe.com/xap/1.0/"
_OURS = "urn:listingd:provenance:1"
_PACKET = re.compile(rb"<\?xpacket begin=.*?<\?xpacket end=.{1,4}\?>", re.DOTALL)


class Made(StrEnum):
    """How the pixels came to be; the values are IPTC's own codes."""

    CAPTURED = "digitalCapture"  # the seller's pixels: cropped, cut out on white, scaled
    COMPOSED = "compositeCapture"  # several of the seller's captures put together
    DRAWN = "composite"  # the seller's pixels with type, lines or a scene drawn by code
    PAINTED_AROUND = "compositeWithTrainedAlgorithmicMedia"  # the seller's product in a generated scene
    GENERATED = "trainedAlgorithmicMedia"  # a model painted all of it, the product included


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a file says about itself."""

    made: Made
    provider: str
    model: str
    creator_tool: str


def packet(made: Made, *, provider: str, model: str) -> bytes:
    """The XMP packet (UTF-8) for `codec.encode_jpeg` and `codec.encode_png`."""
    properties = {
        "Iptc4xmpExt:DigitalSourceType": _VOCABULARY + made.value,
        "xmp:CreatorTool": TOOL,
        "listingd:Provider": _printable(provider),
        "listingd:Model": _printable(model),
    }
    attributes = "".join(f"\n    {name}={quoteattr(value)}" for name, value in properties.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        f' <rdf:RDF xmlns:rdf="{_RDF}">\n'
        f'  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="{_EXT}" xmlns:xmp="{_XMP}"'
        f' xmlns:listingd="{_OURS}"{attributes}/>\n'
        " </rdf:RDF>\n"
        "</x:xmpmeta>\n"
        '<?xpacket end="r"?>'
    ).encode()


def read(data: bytes) -> Provenance | None:
    """What a file that we wrote says about itself; None when it carries no packet of ours."""
    found = _PACKET.search(data)
    if found is None:
        return None
    try:
        # Bounded by our own upload limit, and expat refuses amplifying entities since 2.4.1.
        root = ET.fromstring(found.group().decode("utf-8"))  # noqa: S314 -- see above
    except (ET.ParseError, UnicodeDecodeError):
        return None
    description = root.find(f".//{{{_RDF}}}Description")
    if description is None:
        return None
    source = description.get(f"{{{_EXT}}}DigitalSourceType", "").removeprefix(_VOCABULARY)
    if source not in set(Made):
        return None
    return Provenance(
        made=Made(source),
        provider=description.get(f"{{{_OURS}}}Provider", ""),
        model=description.get(f"{{{_OURS}}}Model", ""),
        creator_tool=description.get(f"{{{_XMP}}}CreatorTool", ""),
    )


def _printable(text: str) -> str:
    """Model names come from providers: XML allows no control characters."""
    return "".join(ch for ch in text if ch.isprintable())[:200]
