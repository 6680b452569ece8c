"""Pictures that are made to hurt whoever opens them, and what the codec says of each."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image

from tests.protocol_servers.pictures import encode_png

MB = 1024 * 1024


def bomb() -> bytes:
    """13 300 x 13 300 one-bit pixels in 21 KB; converting it took 858 MB."""
    side = 13_300
    rows = zlib.compress(bytes(1 + side // 8 + 1) * side, 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def noise_png(width_px: int, height_px: int) -> bytes:
    return encode_png(Image.effect_noise((width_px, height_px), 80).convert("RGB"))


def plain_png() -> bytes:
    """A good picture of the size that is asked for."""
    return encode_png(Image.new("RGB", (1600, 1600), (200, 190, 180)))


def animated(kind: str) -> bytes:
    frames = [Image.effect_noise((200, 200), 40 + at).convert("RGB") for at in range(2)]
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], duration=100)
    return out.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n(id) (r) file\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://169.254.169.254/"/></svg>'

PICTURES: dict[str, tuple[Callable[[], bytes], str]] = {
    "bomb": (bomb, "image_pixels"),
    "truncated": (lambda: noise_png(400, 400)[:100_000], "image_truncated"),
    "damaged": (lambda: _flip(noise_png(400, 400)), "image_damaged"),
    "animated-png": (lambda: animated("PNG"), "image_animated"),
    "animated-webp": (lambda: animated("WEBP"), "image_animated"),
    "gif": (lambda: animated("GIF"), "image_format"),
    "eps": (lambda: EPS, "image_format"),
    "svg": (lambda: SVG, "image_format"),
    "html": (lambda: b"<html>no</html>", "image_unrecognised"),
    "empty": (lambda: b"", "image_empty"),
    "one-pixel": (lambda: noise_png(1, 1), "wrong_size"),
    "wrong-ratio": (lambda: noise_png(1600, 900), "wrong_size"),
    "under-half": (lambda: noise_png(700, 700), "wrong_size"),
}


def _flip(data: bytes) -> bytes:
    return data[:60_000] + bytes(b ^ 0xFF for b in data[60_000:60_100]) + data[60_100:]
