"""A small product for tests: a mug-like thing with a face, as a cut-out and as a photo on white."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from daemon.payloads import Dimensions, Product

FACTS = Product(
    title="Stoneware mug, 350 ml",
    brand="Verdana",
    bullets=(
        "Generous size: holds 350 ml",
        "Thick walls: keeps tea warm",
        "Easy to clean: goes into the dishwasher",
    ),
    category="Kitchen",
    dimensions=Dimensions.model_validate({"length": "12", "width": "9", "height": "10"}),
    in_the_box=("Mug", "Care leaflet"),
    sku="MUG-350",
)


def draw_product(width: int = 300, height: int = 360, margin: int = 60) -> Image.Image:
    """RGBA cut-out in a larger frame: teal body with a gradient, an orange label with fine stripes."""
    frame = (width + 2 * margin, height + 2 * margin)
    body = np.zeros((frame[1], frame[0], 4), np.uint8)
    shade = np.linspace(1.0, 0.6, frame[0])[None, :, None]
    body[..., :3] = np.rint(np.array([30, 110, 120]) * shade).astype(np.uint8)
    mask = Image.new("L", frame, 0)
    box = (margin, margin, margin + width - 1, margin + height - 1)
    ImageDraw.Draw(mask).rounded_rectangle(box, 30, fill=255)
    body[..., 3] = np.asarray(mask)
    picture = Image.fromarray(body)
    pen = ImageDraw.Draw(picture)
    left, top = margin + width // 4, margin + height // 5
    pen.rectangle((left, top, left + width // 2, top + height // 4), (230, 120, 60, 255))
    for x in range(left + 6, left + width // 2 - 6, 8):
        pen.line((x, top + 8, x, top + height // 4 - 8), (250, 240, 220, 255), 3)
    return picture


def as_png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def photo(width: int = 300, height: int = 360) -> bytes:
    """The product on an evenly lit, nearly white sheet, with a camera's softness; JPEG."""
    cutout = draw_product(width, height, margin=110)
    ground = Image.new("RGB", cutout.size, (243, 243, 243))
    ground.paste(cutout, (0, 0), cutout)
    out = io.BytesIO()
    ground.filter(ImageFilter.GaussianBlur(1.5)).save(out, "JPEG", quality=97, subsampling=0)
    return out.getvalue()
