"""Placing the product, its shadows, scenes and the close-up."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from daemon.errors import Reject
from daemon.imaging import compose, detail, scenes, shadows
from daemon.imaging.colours import contrast, from_lch, palette_of, to_lch
from tests.work.products import draw_product


def _box_of_not_white(picture: Image.Image) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero((np.asarray(picture) < 255).any(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@pytest.mark.parametrize(("width", "height"), [(300, 360), (400, 90), (60, 420)])
def test_product_on_white_is_centred_and_fills_the_frame(width: int, height: int) -> None:
    picture = compose.place_on_white(draw_product(width, height), 1000).picture

    left, top, right, bottom = _box_of_not_white(picture)
    assert picture.size == (1000, 1000)
    assert max(right - left, bottom - top) >= 850
    assert abs(left - (1000 - right)) <= 2
    assert abs(top - (1000 - bottom)) <= 2


def test_everything_around_the_product_is_pure_white() -> None:
    pixels = np.asarray(compose.place_on_white(draw_product(), 1000).picture).copy()
    left, top, right, bottom = _box_of_not_white(Image.fromarray(pixels))

    pixels[top:bottom, left:right] = 255

    assert (pixels == 255).all()


def test_haze_around_a_product_does_not_fill_the_frame() -> None:
    hazy = np.full((400, 400, 4), 255, np.uint8)
    hazy[..., 3] = 10
    hazy[100:300, 150:250, 3] = 255

    assert compose.place_on_white(Image.fromarray(hazy), 1000).fill == pytest.approx(0.45, abs=0.01)


def test_enlarging_leaves_no_dark_rim_around_the_product() -> None:
    """Straight alpha hides black under transparent pixels; resizing must not pull it into the edge."""
    white = Image.new("RGBA", (80, 80), (0, 0, 0, 0))
    white.paste((250, 250, 250, 255), (10, 10, 70, 70))

    picture = compose.place_on_white(white, 600).picture

    assert np.asarray(picture).min() >= 245


def test_cutout_without_product_is_refused() -> None:
    with pytest.raises(Reject, match="no product") as refused:
        compose.place_on_white(Image.new("RGBA", (50, 50), (0, 0, 0, 0)), 600)

    assert refused.value.code == "cutout_empty"


def test_shadow_falls_away_from_the_light() -> None:
    alpha = np.zeros((300, 400), np.float32)
    alpha[80:250, 170:230] = 1

    _, from_left = shadows.shade_ground(alpha, light_from_left=True)
    _, from_right = shadows.shade_ground(alpha, light_from_left=False)

    assert from_left[:, 240:].sum() > 5 * from_left[:, :160].sum()
    assert from_right[:, :160].sum() > 5 * from_right[:, 240:].sum()


def test_contact_shadow_lies_at_the_foot() -> None:
    alpha = np.zeros((300, 400), np.float32)
    alpha[80:250, 170:230] = 1

    contact, _ = shadows.shade_ground(alpha)

    assert contact[245:256, 180:220].mean() > 0.3
    assert contact[:150].max() < 0.05


def test_ground_follows_feet_at_different_heights() -> None:
    alpha = np.zeros((100, 100), np.float32)
    alpha[20:60, 10:90] = 1
    alpha[60:80, 10:15] = 1
    alpha[60:90, 48:53] = 1

    ground = shadows.ground_line(alpha)

    assert ground[12] >= 79
    assert ground[50] == 89
    assert np.isnan(ground[2])


def test_same_seed_paints_the_same_scene() -> None:
    first = scenes.paint_lifestyle(draw_product(), 320, 320, seed=5)
    again = scenes.paint_lifestyle(draw_product(), 320, 320, seed=5)
    other = scenes.paint_lifestyle(draw_product(), 320, 320, seed=6)

    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("size", [(320, 320), (970, 300), (485, 300), (150, 300), (175, 88)])
def test_scene_takes_any_shape(size: tuple[int, int]) -> None:
    assert scenes.paint_lifestyle(draw_product(), *size, seed=1, category="chair").size == size


def test_scene_keeps_the_products_colours() -> None:
    """At most the three percent of light and shade, and the grain."""
    flat = Image.new("RGBA", (200, 200), (120, 60, 160, 255))

    scene = np.asarray(scenes.paint_lifestyle(flat, 400, 400, seed=1), np.float32)

    frame = scene[190:230, 195:225].reshape(-1, 3).mean(axis=0)
    assert np.abs(frame / np.array([120, 60, 160]) - 1).max() < 0.05


def test_turned_product_is_narrower_and_nothing_is_added() -> None:
    product = Image.new("RGBA", (200, 300), (90, 140, 60, 255))

    turned = scenes.turn_product(product, 1.0)

    pixels = np.asarray(turned)
    seen = pixels[pixels[..., 3] > 200][:, :3].astype(int)
    assert 0.90 < turned.width / product.width < 0.97
    assert np.abs(seen - [90, 140, 60]).max() <= 2


def test_a_large_product_is_turned_at_the_size_it_is_shown_at() -> None:
    """Turned at its own size, a product of 40 MP took 2 GB in floats for a picture of 2000 px."""
    large = draw_product().resize((2400, 3000))

    tracemalloc.start()
    try:
        picture = scenes.paint_studio(large, 300, 300, seed=1, turn=1.0)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (300, 300) == picture.size
    assert peak_bytes < 4 * large.width * large.height


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(lambda side: compose.place_on_white(draw_product(), side), id="white"),
        pytest.param(lambda side: scenes.paint_sweep(palette_of(draw_product()), side, side), id="sweep"),
        pytest.param(lambda side: detail.crop_detail(draw_product(), side), id="close-up"),
        pytest.param(
            lambda side: compose.to_image(np.broadcast_to(np.float32(0.5), (side, side, 3))), id="to_image"
        ),
        pytest.param(
            lambda side: compose.shade(
                Image.new("RGB", (side, side)), np.full((side, side), 0.5, np.float32)
            ),
            id="shade",
        ),
    ],
)
def test_a_large_picture_is_drawn_in_little_more_than_its_own_size(work: Callable[[int], object]) -> None:
    """A picture of 4000 px took 1.4 GB of floats, for a photo of any size."""
    side = 2000
    work(100)  # what is loaded and kept at the first use

    tracemalloc.start()
    try:
        work(side)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 1.25 * side * side * 3 * 4  # one picture in floats


def test_close_up_shows_the_worked_part_of_the_product() -> None:
    close_up = detail.crop_detail(draw_product(), 500)

    orange = (np.abs(np.asarray(close_up.picture, np.int32) - [230, 120, 60]) < 30).all(axis=2)
    assert close_up.picture.size == (500, 500)
    assert orange.mean() > 0.08
    assert close_up.cover > 0.7


def test_blurred_photo_is_called_soft() -> None:
    sharp = draw_product()
    blurred = Image.fromarray(np.asarray(sharp).copy())
    small = sharp.resize((sharp.width // 8, sharp.height // 8)).resize(sharp.size, Image.Resampling.BICUBIC)
    blurred.paste(small.convert("RGB"), (0, 0))

    assert not detail.crop_detail(sharp, 300).is_soft
    assert detail.crop_detail(blurred, 300).sharpness < detail.crop_detail(sharp, 300).sharpness / 4


@pytest.mark.parametrize("colour", [(20, 20, 22), (250, 250, 248), (200, 30, 40), (90, 160, 70)])
def test_words_can_be_read_on_every_products_palette(colour: tuple[int, int, int]) -> None:
    """WCAG 2.2 AA: 4.5 to 1 for running text, 3 to 1 for large type."""
    palette = palette_of(Image.new("RGBA", (64, 64), (*colour, 255)))

    for ground in (palette.ground, palette.panel):
        assert contrast(palette.ink, ground) > 7
        assert contrast(palette.muted, ground) > 4.5
        assert contrast(palette.accent, ground) > 3


def test_colour_survives_the_way_through_oklch() -> None:
    for colour in ((12, 200, 97), (255, 255, 255), (1, 2, 3), (240, 128, 16)):
        assert max(abs(a - b) for a, b in zip(from_lch(*to_lch(colour)), colour, strict=True)) <= 1
