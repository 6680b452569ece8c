"""Placing a cut-out product on a canvas: trimming, scaling, the white main image.

The product's pixels are scaled and, when enlarged, gently sharpened; they are never repainted.
Pictures are PIL images: cut-outs RGBA with straight alpha, finished pictures RGB, sRGB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from daemon.errors import Reject
from daemon.imaging import codec

FloatMask = npt.NDArray[np.float32]  # h x w, 0..1
FloatPicture = npt.NDArray[np.float32]  # h x w x 3, 0..1

_SEEN_ALPHA = 8  # fainter pixels are the cut-out's noise, not the product
_SOLID_ALPHA = 250


@dataclass(frozen=True, slots=True)
class Placed:
    """A scaled product and where its top left corner stands on the canvas (px)."""

    product: Image.Image
    x: int
    y: int

    @property
    def right(self) -> int:
        return self.x + self.product.width

    @property
    def bottom(self) -> int:
        return self.y + self.product.height


def read_cutout(png: bytes) -> Image.Image:
    """A cut-out as RGBA. Errors: those of `codec.decode`."""
    picture = Image.fromarray(codec.decode(png))
    # `convert` copies what is RGBA already, 160 MB of 40 MP.
    return picture if picture.mode == "RGBA" else picture.convert("RGBA")


def trim(cutout: Image.Image) -> Image.Image:
    """The cut-out without its empty surroundings.

    Errors: Reject, code cutout_empty, when nothing is left to show.
    """
    if cutout.mode != "RGBA":
        cutout = cutout.convert("RGBA")
    box = cutout.getchannel("A").point(lambda a: 255 if a >= _SEEN_ALPHA else 0).getbbox()
    if box is None or min(box[2] - box[0], box[3] - box[1]) < 8:
        raise Reject(
            "The cut-out shows no product.",
            code="cutout_empty",
            hint="Use a photo in which the product is larger and stands out from its background.",
        )
    return cutout.crop(box)


def scale_into(product: Image.Image, width_px: float, height_px: float) -> Image.Image:
    """The product as large as fits the box, its shape kept. Enlarged ones are sharpened gently."""
    scale = min(width_px / product.width, height_px / product.height)
    size = (max(1, round(product.width * scale)), max(1, round(product.height * scale)))
    scaled = product.resize(size, Image.Resampling.LANCZOS)
    return _sharpen(scaled, sigma_px=min(2.5, 0.6 * scale), amount=0.45) if scale > 1.15 else scaled


def place(
    product: Image.Image,
    *,
    centre_x: float,
    width_px: float,
    height_px: float,
    bottom: float | None = None,
    centre_y: float | None = None,
) -> Placed:
    """The trimmed product scaled into a box, centred on centre_x, standing on `bottom` or centred on centre_y."""
    scaled = scale_into(product, width_px, height_px)
    if bottom is not None:
        y = bottom - scaled.height
    else:
        y = (centre_y if centre_y is not None else 0.0) - scaled.height / 2
    return Placed(scaled, round(centre_x - scaled.width / 2), round(y))


@dataclass(frozen=True, slots=True)
class OnWhite:
    """The main image; fill: the longer side of what is solid of the product's mask, as a share of the frame's."""

    picture: Image.Image
    fill: float


def place_on_white(cutout: Image.Image, size_px: int = 2000, *, fill: float = 0.90) -> OnWhite:
    """The main image: a white square, the whole product centred, its longest side `fill` of the frame.

    Shapes: RGB, size_px x size_px; 255,255,255 wherever the product is not. No shadow, no reflection.
    Source: Amazon product image requirements (main image: pure white, product at least 85 % of the frame).
    """
    placed = place(
        trim(cutout), centre_x=size_px / 2, centre_y=size_px / 2, width_px=size_px * fill,
        height_px=size_px * fill,
    )  # fmt: skip
    canvas = Image.new("RGB", (size_px, size_px), (255, 255, 255))
    canvas.paste(placed.product, (placed.x, placed.y), placed.product)
    # Haze that a service left around the product is no product.
    solid = placed.product.getchannel("A").point(lambda a: 255 if a >= 128 else 0).getbbox()
    left, top, right, bottom = solid or (0, 0, 0, 0)
    return OnWhite(canvas, max(right - left, bottom - top) / size_px)


def fit_frame(picture: Image.Image, width_px: int, height_px: int) -> Image.Image:
    """The picture at exactly this size: scaled to cover the frame, the overhang cut evenly. RGB."""
    scale = max(width_px / picture.width, height_px / picture.height)
    seen_width, seen_height = width_px / scale, height_px / scale
    left, top = (picture.width - seen_width) / 2, (picture.height - seen_height) / 2
    return picture.convert("RGB").resize(
        (width_px, height_px), Image.Resampling.LANCZOS,
        box=(left, top, left + seen_width, top + seen_height),
    )  # fmt: skip


def alpha_on_canvas(placed: Placed, width_px: int, height_px: int) -> FloatMask:
    """The product's alpha (0..1) where it stands, over a canvas of this size."""
    canvas = Image.new("L", (width_px, height_px), 0)
    canvas.paste(placed.product.getchannel("A"), (placed.x, placed.y))
    return np.asarray(canvas, dtype=np.float32) / np.float32(255)


def to_float(picture: Image.Image) -> FloatPicture:
    """The picture as h x w x 3, 0..1."""
    return np.asarray(picture.convert("RGB"), dtype=np.float32) / np.float32(255)


def to_image(picture: FloatPicture) -> Image.Image:
    """The picture as RGB, clipped to 0..1 first."""
    pixels = np.empty(picture.shape, dtype=np.uint8)
    for rows in codec.bands(len(picture)):
        pixels[rows] = np.rint(np.clip(picture[rows], 0, 1) * 255)
    return Image.fromarray(pixels)


def shade(picture: Image.Image, light: FloatMask) -> Image.Image:
    """The picture, RGB, times the light that falls on each pixel (1 = all of it)."""
    pixels = np.array(picture.convert("RGB"))
    for rows in codec.bands(len(pixels)):
        lit = pixels[rows] / np.float32(255) * light[rows, :, None]
        pixels[rows] = np.rint(np.clip(lit, 0, 1) * 255)
    return Image.fromarray(pixels)


def blur(array: npt.NDArray[np.float32], sigma_px: float) -> npt.NDArray[np.float32]:
    """Gaussian blur; wide ones run on a smaller copy, which looks the same and costs a tenth."""
    if sigma_px < 0.3:
        return array
    shrink = int(min(8, max(1, sigma_px // 3)))
    if shrink == 1:
        return np.asarray(cv2.GaussianBlur(array, (0, 0), sigma_px), dtype=np.float32)
    height, width = array.shape[:2]
    small = cv2.resize(
        array, (max(1, width // shrink), max(1, height // shrink)), interpolation=cv2.INTER_AREA
    )
    small = cv2.GaussianBlur(small, (0, 0), sigma_px / shrink)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def reach_of(sigma_px: float) -> int:
    """How many pixels away a blur still looks."""
    return math.ceil(4 * sigma_px) + 1


def _sharpen(product: Image.Image, *, sigma_px: float, amount: float) -> Image.Image:
    """Unsharp mask that knows alpha: what is outside the product does not ring into its edge."""
    pixels = np.asarray(product)
    sharp = pixels.copy()
    for rows, around, own in codec.bands_around(len(pixels), reach_of(sigma_px)):
        part = pixels[around].astype(np.float32)
        colour, alpha = part[..., :3], part[..., 3:] / 255
        weight = cv2.GaussianBlur(alpha, (0, 0), sigma_px)[own, :, None]
        smooth = cv2.GaussianBlur(colour * alpha, (0, 0), sigma_px)[own] / np.maximum(weight, 1e-3)
        solid = part[own, :, 3:] >= _SOLID_ALPHA
        sharp[rows, :, :3] = np.rint(np.clip(colour[own] + amount * solid * (colour[own] - smooth), 0, 255))
    return Image.fromarray(sharp)
