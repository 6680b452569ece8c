"""Measuring finished images: what the checks are told is what the bytes hold."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from daemon.imaging import codec, measure


def on_white(box: tuple[int, int, int, int], size: int = 400) -> codec.Picture:
    """A dark block (left, top, right, bottom) on pure white."""
    picture = np.full((size, size, 3), 255, np.uint8)
    left, top, right, bottom = box
    picture[top:bottom, left:right] = (40, 60, 80)
    return picture


@pytest.mark.parametrize("encode", [codec.encode_jpeg, codec.encode_png])
def test_a_block_on_white_is_measured(encode: object) -> None:
    data = encode(on_white((100, 20, 300, 380)))  # type: ignore[operator]

    found = measure.measure(data)

    assert ("RGB", "sRGB", False, False) == (found.mode, found.colour_space, found.has_alpha, found.has_exif)
    assert (400, 400, len(data)) == (found.width_px, found.height_px, found.size_bytes)
    assert 1.0 == found.white_border
    assert found.fill == pytest.approx(0.9, abs=0.02)
    assert 0 == found.edges_touched


def test_one_pixel_that_is_nearly_white_in_the_border_is_seen() -> None:
    picture = on_white((100, 20, 300, 380))
    picture[1, 1] = (254, 255, 255)

    assert measure.measure(codec.encode_png(picture)).white_border < 1.0


def test_touched_edges_are_counted() -> None:
    assert 2 == measure.measure(codec.encode_png(on_white((0, 0, 300, 380)))).edges_touched


def test_an_empty_frame_has_no_fill() -> None:
    found = measure.measure(codec.encode_png(on_white((0, 0, 0, 0))))

    assert (1.0, 0.0, 0.0, 0) == (found.white_border, found.fill, found.seen, found.edges_touched)


def test_a_known_mask_tells_the_fill_and_the_pixels_what_is_seen_of_it() -> None:
    found = measure.measure(codec.encode_png(on_white((100, 100, 300, 300))), fill=0.9)

    assert (0.9, 0.5) == (found.fill, found.seen)


def test_foreign_colours_alpha_and_camera_data_are_seen() -> None:
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    out = io.BytesIO()
    Image.new("RGBA", (60, 60), (10, 20, 30, 128)).save(out, "PNG", exif=exif)

    found = measure.measure(out.getvalue(), generated=True)

    assert ("RGBA", "untagged") == (found.mode, found.colour_space)
    assert found.has_alpha
    assert found.has_exif
    assert found.generated
