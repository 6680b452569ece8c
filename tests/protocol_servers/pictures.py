"""The pictures that the protocol servers answer with: plain, quick to encode, and never a canned file."""

from __future__ import annotations

import io
import zipfile

import numpy as np
from PIL import Image


def paint_scene(width_px: int, height_px: int, reference: bytes | None) -> bytes:
    """A PNG: a warm gradient with the reference picture, if any, standing in its middle."""
    rows = np.linspace(0, 1, height_px, dtype=np.float32)[:, None, None]
    top, bottom = np.array([236, 228, 214], np.float32), np.array([168, 148, 124], np.float32)
    pixels = np.broadcast_to(top + (bottom - top) * rows, (height_px, width_px, 3)).astype(np.uint8)
    scene = Image.fromarray(np.ascontiguousarray(pixels))
    if reference is not None:
        with Image.open(io.BytesIO(reference)) as opened:
            product = opened.convert("RGBA")
        box = product.getchannel("A").getbbox()
        product = product.crop(box) if box else product
        product.thumbnail((width_px * 7 // 10, height_px * 7 // 10))
        at = ((width_px - product.width) // 2, height_px * 9 // 10 - product.height)
        scene.paste(product, at, product)
    return encode_png(scene)


def cut_from_border(photo: bytes, max_pixels: int | None = None) -> Image.Image:
    """The photo as RGBA, transparent where it looks like its own border; scaled down to `max_pixels`."""
    with Image.open(io.BytesIO(photo)) as opened:
        picture = opened.convert("RGB")
    if max_pixels is not None and picture.width * picture.height > max_pixels:
        scale = (max_pixels / (picture.width * picture.height)) ** 0.5
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    pixels = np.asarray(picture, dtype=np.int16)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    distance = np.abs(pixels - np.median(border, axis=0)).max(axis=2)
    alpha = np.clip((distance - 12) * 10, 0, 255).astype(np.uint8)
    picture.putalpha(Image.fromarray(alpha))
    return picture


def encode_png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def zip_layers(cutout: Image.Image) -> bytes:
    """remove.bg's ZIP answer: color.jpg (no alpha) and alpha.png (grey)."""
    colour, alpha = io.BytesIO(), io.BytesIO()
    cutout.convert("RGB").save(colour, "JPEG", quality=95)
    cutout.getchannel("A").save(alpha, "PNG")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("color.jpg", colour.getvalue())
        archive.writestr("alpha.png", alpha.getvalue())
    return out.getvalue()
