"""Bytes to pixels and back, safely.

    bytes --inspect--> PictureInfo        header only: nothing is decoded, nothing large is allocated
    bytes --decode---> Picture            upright, sRGB, 8 bit, no metadata
    Picture --encode_jpeg, encode_png---> bytes with an sRGB profile and, if given, an XMP packet

Bytes are hostile until `inspect` has passed: its own header readers come before any Pillow code, because
Pillow opens 43 formats and only warns about a 21 KB PNG that unpacks to 858 MB, and because warning
filters are shared by all threads. EXIF (GPS, serial numbers) never leaves this module.

Error codes: image_empty, image_unrecognised, image_format, image_animated, image_pixels, image_truncated,
image_damaged, image_bytes.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from daemon.errors import InvalidInput, TooLarge, UnsupportedMedia

Picture = NDArray[np.uint8]
"""h x w x 3 RGB or h x w x 4 RGBA (straight alpha), uint8, sRGB, upright."""

Format = Literal["JPEG", "PNG", "WEBP"]
CONTENT_TYPES: dict[Format, str] = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}

MAX_PIXELS = 40_000_000
MAX_SIDE_PX = 12_000
MAX_PARTS = 100_000  # markers or chunks, which Python walks here and in Pillow: a photo has thousands at most
MAX_SCANS = 100  # a progressive JPEG costs a pass over the frame for each scan; cameras write about ten

_BAND_ROWS = 64
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_TAKEN = "Send the photo as JPEG, PNG or WEBP."
_NOT_TAKEN = {
    b"GIF8": "GIF", b"II*\x00": "TIFF", b"MM\x00*": "TIFF", b"BM": "BMP", b"%PDF": "PDF",
    b"8BPS": "PSD", b"%!PS": "EPS", b"<svg": "SVG", b"<?xm": "SVG or XML",
}  # fmt: skip
_NOT_SOF = (0xC4, 0xC8, 0xCC)  # DHT, JPG, DAC lie within the range of the frame headers
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})


@dataclass(frozen=True, slots=True)
class PictureInfo:
    """What the header says. width_px, height_px: upright, that is after the EXIF orientation."""

    format: Format
    width_px: int
    height_px: int
    content_type: str


@dataclass(frozen=True, slots=True)
class _Header:
    format: Format
    width_px: int  # as stored, before the EXIF orientation
    height_px: int
    animated: bool
    complete: bool
    exif: bytes


def inspect(data: bytes) -> PictureInfo:
    """Format and size of a picture, read from its header alone; the name it came under plays no part.

    Errors: InvalidInput (image_empty, image_truncated, image_damaged), UnsupportedMedia
    (image_unrecognised, image_format, image_animated), TooLarge (image_pixels).
    """
    header = _read_header(data)
    width_px, height_px = header.width_px, header.height_px
    if _orientation(header.exif) >= 5:
        width_px, height_px = height_px, width_px
    return PictureInfo(header.format, width_px, height_px, CONTENT_TYPES[header.format])


def decode(data: bytes) -> Picture:
    """The pixels: upright, sRGB, RGB or RGBA uint8. An alpha channel that is opaque everywhere is dropped.

    Errors: those of `inspect`; InvalidInput image_damaged when the pixel data cannot be read to the end.
    """
    header = _read_header(data)
    openers: dict[Format, Callable[[io.BytesIO], Image.Image]] = {
        "JPEG": JpegImagePlugin.JpegImageFile,
        "PNG": PngImagePlugin.PngImageFile,
        "WEBP": WebPImagePlugin.WebPImageFile,
    }
    if header.format == "JPEG":
        # Pillow looks for a resolution in the EXIF block and warns when that is broken: hide it.
        data = data.replace(b"Exif\x00\x00", b"Void\x00\x00")
    try:
        with openers[header.format](io.BytesIO(data)) as image:
            if image.size != (header.width_px, header.height_px):
                raise _damaged("its header contradicts itself")
            image.load()
            picture = _to_srgb(image)
    # Pillow's decoders end in any of these on broken input; Warning when filters make errors of warnings.
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError,
            OverflowError, struct.error, Warning) as exc:  # fmt: skip
        raise _damaged("its pixel data is broken or cut off") from exc
    if has_alpha(picture) and int(picture[..., 3].min()) == 255:
        picture = picture[..., :3]
    return _turn_upright(picture, _orientation(header.exif))


def encode_jpeg(
    picture: Picture, *, max_bytes: int = 10_000_000, quality: int = 93, xmp: bytes | None = None
) -> bytes:
    """A baseline JPEG without alpha (transparent pixels come out on white), 4:4:4, sRGB profile embedded.

    max_bytes: quality is lowered by steps of 6 down to 60 until the file fits.
    Errors: TooLarge image_bytes when it does not fit at quality 60.
    """
    image = Image.fromarray(flatten_on_white(picture))
    while True:
        out = io.BytesIO()
        extra = {"xmp": xmp} if xmp else {}
        # 4:4:4: chroma subsampling smears the product's edge and drawn text over the pure white.
        image.save(out, "JPEG", quality=quality, subsampling=0,
                   icc_profile=srgb_profile(), **extra)  # fmt: skip
        if out.tell() <= max_bytes:
            return out.getvalue()
        if quality <= 60:
            raise TooLarge(
                f"The finished JPEG has {out.tell()} bytes at the lowest quality, over {max_bytes}.",
                code="image_bytes",
                hint="Ask for a smaller size_px.",
                data={"size_bytes": out.tell(), "max_bytes": max_bytes},
            )
        quality = max(60, quality - 6)


def encode_png(picture: Picture, *, xmp: bytes | None = None) -> bytes:
    """A PNG, RGB or RGBA as the picture is but black where nothing shows, sRGB profile embedded."""
    if has_alpha(picture):
        # A service may leave the whole photo under its alpha 0: most of the bytes, and not for a buyer's eyes.
        picture = picture * (picture[..., 3:] > 0)
    info = PngImagePlugin.PngInfo()
    if xmp:
        info.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8"))
    out = io.BytesIO()
    # Level 4: 2000 x 2000 px in 0.47 s, level 6 takes 1.05 s for 4 % less (2 cores, 2026-11-23).
    Image.fromarray(picture).save(out, "PNG", compress_level=4, icc_profile=srgb_profile(), pnginfo=info)
    return out.getvalue()


def thumbnail(data: bytes, width_px: int) -> tuple[bytes, str]:
    """A smaller copy (bytes, content type): PNG when the picture has alpha, else JPEG. Never enlarged.

    Errors: those of `decode`.
    """
    picture = decode(data)
    height, width = picture.shape[:2]
    if width_px < width:
        picture = resize(picture, width_px, max(1, round(height * width_px / width)))
    if has_alpha(picture):
        return encode_png(picture), CONTENT_TYPES["PNG"]
    return encode_jpeg(picture, quality=85), CONTENT_TYPES["JPEG"]


def resize(picture: Picture, width_px: int, height_px: int) -> Picture:
    """The picture at another size; with alpha, colours are weighted by it so that no fringe appears."""
    shrinks = width_px * height_px < picture.shape[0] * picture.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    if not has_alpha(picture):
        return np.asarray(cv2.resize(picture, (width_px, height_px), interpolation=how), dtype=np.uint8)
    # Plane by plane: all four as floats took 1.4 GB of a 40 MP picture.
    alpha = picture[..., 3]
    cover = np.clip(cv2.resize(alpha.astype(np.float32), (width_px, height_px), interpolation=how), 0, 255)
    resized = np.empty((height_px, width_px, 4), dtype=np.uint8)
    resized[..., 3] = cover + 0.5
    for channel in range(3):
        weighted = np.multiply(picture[..., channel], alpha, dtype=np.float32)
        weighted = cv2.resize(weighted, (width_px, height_px), interpolation=how)
        resized[..., channel] = np.clip(weighted / np.maximum(cover, 1) + 0.5, 0, 255)
    return resized


def flatten_on_white(picture: Picture) -> Picture:
    """The picture as RGB, transparent parts on exactly 255,255,255."""
    if not has_alpha(picture):
        return picture
    flat = np.empty((*picture.shape[:2], 3), dtype=np.uint8)
    # Band by band: a whole 40 MP picture in floats took 1.2 GB.
    for rows in bands(len(picture)):
        alpha = picture[rows, :, 3:].astype(np.float32) / 255
        flat[rows] = picture[rows, :, :3] * alpha + 255 * (1 - alpha) + 0.5
    return flat


def bands(height_px: int) -> Iterator[slice]:
    """The rows of a picture, a few at a time: work in floats on all of them at once takes gigabytes."""
    for top in range(0, height_px, _BAND_ROWS):
        yield slice(top, min(top + _BAND_ROWS, height_px))


def bands_around(height_px: int, reach_px: int) -> Iterator[tuple[slice, slice, slice]]:
    """The same for work that looks at the rows near by: (rows, those with their neighbours, the rows within these)."""
    for rows in bands(height_px):
        top = max(0, rows.start - reach_px)
        yield rows, slice(top, rows.stop + reach_px), slice(rows.start - top, rows.stop - top)


def has_alpha(picture: Picture) -> bool:
    """True for RGBA."""
    return bool(picture.shape[2] == 4)


@functools.cache
def srgb_profile() -> bytes:
    """The ICC profile that every encoded picture carries; the same bytes in every process."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    # lcms writes the moment of creation (ICC.1:2022, 7.2.1, bytes 24..35); equal pictures shall be equal bytes.
    profile[24:36] = struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    return bytes(profile)


# --- headers ---------------------------------------------------------------------------------------


def _read_header(data: bytes) -> _Header:
    if not data:
        raise InvalidInput("The file is empty (0 bytes).", code="image_empty", hint="Send the photo again.")
    try:
        if data.startswith(b"\xff\xd8\xff"):
            header = _read_jpeg(data)
        elif data.startswith(_PNG_MAGIC):
            header = _read_png(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            header = _read_webp(data)
        else:
            raise _unsupported(data)
    except (struct.error, IndexError) as exc:
        raise _truncated() from exc
    if header.width_px < 1 or header.height_px < 1:
        raise _damaged("it has no pixels") if header.complete else _truncated()
    pixels = header.width_px * header.height_px
    if pixels > MAX_PIXELS or max(header.width_px, header.height_px) > MAX_SIDE_PX:
        raise TooLarge(
            f"The picture has {header.width_px} x {header.height_px} pixels, more than we take.",
            code="image_pixels",
            hint=f"Send at most {MAX_PIXELS // 1_000_000} megapixels and {MAX_SIDE_PX} pixels a side.",
            data={"width_px": header.width_px, "height_px": header.height_px,
                  "max_pixels": MAX_PIXELS, "max_side_px": MAX_SIDE_PX},
        )  # fmt: skip
    if header.animated:
        raise UnsupportedMedia("The picture is animated.", code="image_animated", hint="Send a still photo.")
    if not header.complete:
        raise _truncated()
    return header


def _read_jpeg(data: bytes) -> _Header:
    """Walk the markers to the first scan. Source: ITU-T T.81 annex B."""
    at, width, height, exif = 2, 0, 0, b""
    for _ in range(MAX_PARTS):
        if data[at] != 0xFF:
            raise _damaged("its JPEG markers are out of step")
        marker = data[at + 1]
        if marker == 0xFF or marker in _BARE_MARKERS:
            at += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == 0xD9 or length < 2:
            raise _damaged("it has no picture in it")
        body = at + 4
        if 0xC0 <= marker <= 0xCF and marker not in _NOT_SOF:
            height, width = struct.unpack_from(">HH", data, body + 1)
        elif marker == 0xE1 and not exif and data[body : body + 6] == b"Exif\x00\x00":
            exif = data[body + 6 : at + 2 + length]
        elif marker == 0xDA:
            break
        at += 2 + length
    else:
        raise _too_many_parts()
    if data.count(b"\xff\xda", at) > MAX_SCANS:
        raise _damaged(f"it has more than {MAX_SCANS} scans")
    # Inside a scan FF is always stuffed, so the first FFD9 after it is the end; phones append more after it.
    return _Header("JPEG", width, height, False, data.find(b"\xff\xd9", at) > 0, exif)


def _read_png(data: bytes) -> _Header:
    """Walk the chunks. Source: PNG third edition, sections 5 and 11 (acTL: animated)."""
    width, height = struct.unpack_from(">II", data, 16)
    if data[12:16] != b"IHDR":
        raise _damaged("its first chunk is no PNG header")
    exif, animated, complete = b"", False, False
    for name, body in _chunks(data, 8, ">I4s", pad=0, tail=4):
        if name == b"acTL":
            animated = struct.unpack_from(">I", body)[0] > 1
        elif name == b"eXIf":
            exif = bytes(body)
        elif name == b"IEND":
            complete = True
            break
    return _Header("PNG", width, height, animated, complete, exif)


def _read_webp(data: bytes) -> _Header:
    """Canvas, flags and EXIF. Source: WebP container specification; RFC 6386 9.1; lossless section 3."""
    width = height = 0
    exif, animated = b"", False
    for name, body in _chunks(data, 12, "<4sI", pad=1, tail=0):
        if name == b"VP8X":
            animated = bool(body[0] & 0x02)
            width = 1 + int.from_bytes(body[4:7], "little")
            height = 1 + int.from_bytes(body[7:10], "little")
        elif name == b"VP8 " and not width:
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", body, 6))
        elif name == b"VP8L" and not width:
            bits = int.from_bytes(body[1:5], "little")
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif name == b"EXIF":
            exif = bytes(body).removeprefix(b"Exif\x00\x00")
    (riff_size,) = struct.unpack_from("<I", data, 4)
    return _Header("WEBP", width, height, animated, riff_size + 8 <= len(data), exif)


def _chunks(data: bytes, at: int, layout: str, *, pad: int, tail: int) -> Iterator[tuple[bytes, memoryview]]:
    """(name, body) of each whole chunk from offset `at`; stops quietly where the bytes end.

    Errors: InvalidInput image_damaged past MAX_PARTS.
    """
    view = memoryview(data)
    for _ in range(MAX_PARTS):
        if at + 8 > len(data):
            return
        first, second = struct.unpack_from(layout, data, at)
        name, size = (second, first) if isinstance(first, int) else (first, second)
        body = view[at + 8 : at + 8 + size]
        if len(body) < size:
            return
        yield name, body
        at += 8 + size + tail + (size & pad)
    raise _too_many_parts()


def _orientation(exif: bytes) -> int:
    """The EXIF orientation, 1..8; 1 when there is none or it cannot be read. Source: EXIF 3.0, 4.6.5.1.

    Pillow's reader warns about broken EXIF, which is no reason to refuse a good photo.
    """
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (offset,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, offset)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, offset + 2 + 12 * entry)
            if tag == 0x0112 and kind == 3:
                return value if 1 <= value <= 8 else 1
    except (struct.error, KeyError):
        return 1
    return 1


# --- pixels ----------------------------------------------------------------------------------------


def _to_srgb(image: Image.Image) -> Picture:
    """RGB, or RGBA where the file has transparency, colours converted from the embedded profile.

    Band by band: Pillow's conversions of a whole 40 MP picture, one beside the other, took 0.7 GB.
    """
    is_clear = image.has_transparency_data
    is_grey_16 = image.mode.startswith("I")
    mode = "RGB" if is_clear else "L" if is_grey_16 else image.mode
    if mode not in ("RGB", "L", "CMYK"):
        mode = "RGB"
    transform = _find_transform(image.info.get("icc_profile"), mode)
    picture = np.empty((image.height, image.width, 4 if is_clear else 3), dtype=np.uint8)
    for rows in bands(image.height):
        band = image.crop((0, rows.start, image.width, rows.stop))
        if is_grey_16:  # Pillow's own conversion clips instead of scaling
            band = Image.fromarray((np.asarray(band).astype(np.uint32) >> 8).astype(np.uint8))
        if is_clear:
            band = band.convert("RGBA")
            picture[rows, :, 3] = np.asarray(band.getchannel("A"))
        band = band.convert(mode)
        changed = ImageCms.applyTransform(band, transform) if transform else None
        picture[rows, :, :3] = np.asarray(changed or band.convert("RGB"))
    return picture


def _find_transform(profile: object, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From an embedded profile to sRGB; none for a profile that is sRGB already, broken, or of another mode."""
    if not isinstance(profile, bytes) or not profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        # An sRGB round trip moves pixels by one step: the seller's own pixels shall stay as they are.
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        target = ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile()))
        return ImageCms.buildTransform(source, target, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _turn_upright(picture: Picture, orientation: int) -> Picture:
    if orientation >= 5:
        picture = picture.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        picture = picture[::-1]
    if orientation in (2, 3, 6, 7):
        picture = picture[:, ::-1]
    return np.ascontiguousarray(picture)


# --- refusals --------------------------------------------------------------------------------------


def _unsupported(data: bytes) -> UnsupportedMedia:
    named = next((name for magic, name in _NOT_TAKEN.items() if data.startswith(magic)), None)
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        named = "AVIF" if brand in (b"avif", b"avis") else "HEIC" if brand[:2] in (b"he", b"mi") else "video"
    if named:
        return UnsupportedMedia(
            f"The file is {named}, which we do not take.", code="image_format", hint=_TAKEN
        )
    return UnsupportedMedia("The file is not an image.", code="image_unrecognised", hint=_TAKEN)


def _truncated() -> InvalidInput:
    return InvalidInput(
        "The picture is cut off: the file ends too early.",
        code="image_truncated",
        hint="Send the whole file again.",
    )


def _too_many_parts() -> InvalidInput:
    return _damaged(f"its header has more than {MAX_PARTS} parts")


def _damaged(why: str) -> InvalidInput:
    return InvalidInput(
        f"The picture cannot be read: {why}.",
        code="image_damaged",
        hint="Open it in a photo program, save it as JPEG or PNG and send that.",
    )
