"""The offline cut-out: right on plain backgrounds, honest everywhere else, wrong nowhere."""

from __future__ import annotations

import tracemalloc
from decimal import Decimal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from daemon.errors import Fate, InvalidInput, ProviderError
from daemon.imaging import codec, cutout, haze, matte
from daemon.providers.offline_cutout import OfflineCutout
from tests.protocol_servers.pictures import cut_from_border
from tests.work.product_scenes import (
    BACKDROPS,
    PRODUCTS,
    Scene,
    draw_scene,
    overlap,
    shoot,
    vase,
    worst_blot,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
DATA = Path(__file__).parents[3] / "shared" / "data"
CLIPPED = (262, 262, 262)  # a background overexposed to pure white


def cover_of(found: cutout.OfflineCutout) -> NDArray[np.float32]:
    return np.asarray(found.rgba[..., 3] / 255.0, dtype=np.float32)


def stacked(upper: Scene, lower: Scene, row: int) -> Scene:
    """Two paints on one thing, parted at a row."""
    rows = np.arange(upper.photo.shape[0])[:, None, None]
    return Scene(np.where(rows < row, upper.photo, lower.photo), upper.truth)


@pytest.mark.parametrize(
    "scene",
    [
        shoot(vase(), paint=(40, 120, 130)),
        shoot(vase(handle=True), paint=(40, 120, 130), gradient=60),
        shoot(vase(), paint=(128, 128, 130)),
        shoot(vase(), paint=(25, 25, 28)),
        shoot(vase(), paint=(200, 40, 40), sweep=CLIPPED, gradient=0),
        shoot(vase(), paint=(200, 40, 40), shadow=0.6),
        shoot(vase(), paint=(230, 200, 40), sweep=(60, 110, 190)),
        shoot(vase(), paint=(240, 232, 215)),
    ],
    ids=["teal", "handle", "grey", "black", "on clipped white", "deep shadow", "on blue", "cream"],
)
def test_a_product_on_a_plain_sweep_is_cut_out_without_its_shadow(scene: Scene) -> None:
    found = cutout.cut_out(scene.photo)

    assert found.is_sure, found.reasons
    assert overlap(cover_of(found), scene.truth) > 0.99


@pytest.mark.parametrize(
    "scene",
    [
        shoot(vase(), paint=(238, 239, 241)),
        shoot(vase(), paint=(250, 250, 250)),
        shoot(vase(), paint=(255, 255, 255), sweep=CLIPPED, gradient=0),
        shoot(vase(), paint=(226, 229, 231), shading=0.25),
        stacked(shoot(vase(), paint=(238, 239, 241)), shoot(vase(), paint=(40, 120, 130)), 400),
        stacked(shoot(vase(), paint=(250, 250, 250)), shoot(vase(), paint=(40, 120, 130)), 260),
        shoot(vase(), paint=(128, 128, 130), shadow=0.6),
    ],
    ids=["as the sweep", "whiter", "white on clipped", "glass", "white half", "white cap", "as its shadow"],
)  # fmt: skip
def test_a_product_that_cannot_be_told_from_its_background_is_refused(scene: Scene) -> None:
    """A white product on white must not come out eaten."""
    found = cutout.cut_out(scene.photo)

    assert not found.is_sure
    assert found.reasons


@pytest.mark.parametrize("sweep", [(238, 239, 241), CLIPPED], ids=["grey sweep", "clipped sweep"])
def test_a_white_label_is_not_delivered_as_a_hole(sweep: tuple[int, int, int]) -> None:
    scene = shoot(vase(), paint=(40, 120, 130), sweep=sweep, gradient=0)
    photo = scene.photo.copy()
    photo[500:600, 330:470] = np.minimum(sweep, 255)

    assert not cutout.cut_out(photo).is_sure


@pytest.mark.parametrize(
    ("product", "backdrop", "seed"),
    [
        ("chair", "table", 2014),
        ("two tones", "plain", 5036),
        ("two tones", "gradient", 101037),
        ("label", "glossy table", 100045),
    ],
    ids=[
        "legs that cross the horizon",
        "pale half like a shadow",
        "pale top that one method loses",
        "label like the wall",
    ],
)
def test_a_part_that_was_taken_for_background_is_missed(product: str, backdrop: str, seed: int) -> None:
    """Each came out sure once, without a part."""
    scene = draw_scene(product, backdrop, seed)

    found = cutout.cut_out(scene.photo)

    assert not found.is_sure or overlap(cover_of(found), scene.truth) > 0.99


@pytest.mark.parametrize("product", PRODUCTS)
def test_what_is_delivered_before_any_backdrop_is_right(product: str) -> None:
    """A refusal is no fault, a wrong picture is: no area of more than 1 % may be wrongly in or out."""
    first = PRODUCTS.index(product)
    scenes = [draw_scene(product, BACKDROPS[(first + n) % len(BACKDROPS)], 40 + n) for n in (0, 2)]

    delivered = [(found, scene) for scene in scenes if (found := cutout.cut_out(scene.photo)).is_sure]

    for found, scene in delivered:
        assert overlap(cover_of(found), scene.truth) > 0.96
        assert worst_blot(cover_of(found), scene.truth) < 0.01


def test_a_cropped_product_is_refused() -> None:
    found = cutout.cut_out(shoot(vase(), paint=(40, 120, 130)).photo[:600])

    assert not found.is_sure
    assert "The product touches the edge of the photo." in found.reasons


def test_an_empty_sweep_is_refused() -> None:
    empty = np.full((400, 500, 3), 240, np.uint8)

    assert not cutout.cut_out(empty).is_sure


def test_bars_around_a_picture_are_no_background() -> None:
    """car.jpg came out as a perfect cut-out of everything between its black bars."""
    busy = np.random.default_rng(1).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    photo = cv2.copyMakeBorder(
        cv2.resize(busy, (640, 400), interpolation=cv2.INTER_CUBIC), 50, 50, 6, 6, cv2.BORDER_CONSTANT
    )

    assert not cutout.cut_out(photo).is_sure


def test_no_fringe_of_the_old_background_is_left_on_the_edge() -> None:
    """Every pixel that shows has the product's hue: blue paper must not glow around a yellow vase."""
    scene = shoot(vase(), paint=(230, 200, 40), sweep=(60, 110, 190), shading=0.1, noise=0.5)

    rgba = cutout.cut_out(scene.photo).rgba

    edge = (rgba[..., 3] > 8) & (rgba[..., 3] < 250)
    assert edge.sum() > 500
    bluer = rgba[edge][:, 2].astype(int) > rgba[edge][:, 0].astype(int)
    assert bluer.mean() < 0.01


def test_the_background_is_fully_clear_and_the_body_fully_opaque() -> None:
    scene = shoot(vase(), paint=(40, 120, 130))

    alpha = cutout.cut_out(scene.photo).rgba[..., 3]

    far, deep = cv2.dilate(scene.truth, np.ones((9, 9))) == 0, cv2.erode(scene.truth, np.ones((9, 9))) == 1
    assert 0 == alpha[far].max()
    assert 255 == alpha[deep].min()


def test_a_large_photo_is_cut_in_tiles_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whole the planes of a 40 MP photo took 4 GB, and the kernel ended the daemon for it."""
    scene = shoot(vase(handle=True), paint=(40, 120, 130))
    photo, mask = codec.resize(scene.photo, 2000, 2000), scene.truth > 0.5
    tracemalloc.start()
    tiled = matte.cut_with_soft_edge(photo, mask)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    monkeypatch.setattr(matte, "_TILE_PX", 4000)

    assert np.array_equal(matte.cut_with_soft_edge(photo, mask), tiled)
    assert peak_bytes < 7 * tiled.nbytes


def test_the_same_photo_gives_the_same_bytes() -> None:
    photo = shoot(vase(300), paint=(40, 120, 130)).photo

    assert np.array_equal(cutout.cut_out(photo).rgba, cutout.cut_out(photo).rgba)


def test_a_photo_that_is_cut_out_already_is_taken_as_it_is() -> None:
    truth = vase(300)
    rgba = np.dstack((np.full((300, 300, 3), 90, np.uint8), (truth * 255).astype(np.uint8)))

    found = cutout.cut_out(rgba)

    assert found.is_sure
    assert np.array_equal(rgba, found.rgba)


@pytest.mark.parametrize("name", ["sample_photo.jpg", "sample_photo_angle.jpg"])
def test_the_sample_photo_is_cut_out_with_its_loop_open(name: str) -> None:
    photo = codec.decode((EXAMPLES / name).read_bytes())

    found = cutout.cut_out(photo)

    assert found.is_sure, found.reasons
    alpha = found.rgba[..., 3]
    contours, nesting = cv2.findContours(
        (alpha > 128).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    holes = [c for c, n in zip(contours, nesting[0], strict=True) if n[3] >= 0 and cv2.contourArea(c) > 500]
    assert 1 == len(holes)
    assert 0.18 < float((alpha > 128).mean()) < 0.26
    # Nothing grey and pale, as the shadow is, is left in the lowest rows of what was cut out.
    rows = np.flatnonzero((alpha > 128).any(axis=1))
    lowest = found.rgba[rows[-1] - 6 : rows[-1] + 1]
    assert float((lowest[lowest[..., 3] > 128][:, :3].min(axis=1) > 150).mean()) < 0.02


def test_a_plant_on_a_table_before_a_wall_is_cut_out() -> None:
    if not DATA.is_dir():
        pytest.skip("../shared/data is not here")
    found = cutout.cut_out(codec.decode((DATA / "photos" / "plant.jpg").read_bytes()))

    assert found.is_sure, found.reasons
    solid = found.rgba[..., 3] > 128
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    # Measured by hand: from the highest leaf to the foot of the pot, from the left leaf to the right one.
    assert np.abs(np.array([rows[0], rows[-1], columns[0], columns[-1]]) - [31, 296, 126, 345]).max() <= 3
    assert solid[230, 245]
    assert not solid[310].any(), "the table's reflection"


@pytest.mark.parametrize("name", ["car.jpg", "succulents.jpg", "chair.png"])
def test_a_photo_without_a_plain_background_is_refused(name: str) -> None:
    """Streets, gardens and floorboards are beyond it: none may be wrong and delivered."""
    if not DATA.is_dir():
        pytest.skip("../shared/data is not here")
    found = cutout.cut_out(codec.decode((DATA / "photos" / name).read_bytes()))

    assert found.confidence < 0.3


def test_a_real_providers_mask_is_judged_usable() -> None:
    if not DATA.is_dir():
        pytest.skip("../shared/data is not here")
    verdict = cutout.judge_mask(codec.decode((DATA / "removebg" / "person-in-field.out.png").read_bytes()))

    assert verdict.usable
    assert 0 < verdict.edge_contact < 0.45  # she is cropped by the photo's lower edge


def rgba_with(alpha: NDArray[Any]) -> codec.Picture:
    return np.dstack((np.full((*alpha.shape, 3), 90, np.uint8), alpha.astype(np.uint8)))


@pytest.mark.parametrize(
    "alpha",
    [
        np.zeros((100, 100)),
        np.full((100, 100), 255),
        np.pad(np.zeros((60, 60)), 20, constant_values=255),
        np.kron(np.indices((10, 10)).sum(axis=0) % 2 * (np.arange(10) % 2), np.ones((10, 10))) * 255,
    ],
    ids=["nothing", "everything", "inverted", "shreds"],
)
def test_a_mask_that_can_be_no_product_is_unusable(alpha: NDArray[Any]) -> None:
    verdict = cutout.judge_mask(rgba_with(alpha))

    assert not verdict.usable
    assert verdict.reasons


def test_a_picture_without_alpha_was_not_cut_out() -> None:
    assert not cutout.judge_mask(np.zeros((10, 10, 3), np.uint8)).usable


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("backdrop", ["plain", "glossy table"])
def test_a_right_mask_of_a_service_stays_as_it_is(product: str, backdrop: str) -> None:
    scene = draw_scene(product, backdrop, seed=2)
    given = np.dstack((scene.photo, (scene.truth * 255).astype(np.uint8)))

    cleaned = haze.take_off_haze(haze.take_off_shadow(given, scene.photo))

    # A pane as clear as its background counts for little; anything else stays to the pixel's share.
    assert overlap(cleaned[..., 3] / np.float32(255), scene.truth) > (0.96 if product == "glass" else 0.98)


def with_shadow(scene: Scene) -> codec.Picture:
    """A service's answer whose mask is the product and whatever else differs from the border."""
    given = np.asarray(cut_from_border(codec.encode_png(scene.photo))).copy()
    given[..., 3] = np.maximum(given[..., 3], (scene.truth * 255).astype(np.uint8))
    return given


@pytest.mark.parametrize(
    "scene",
    [
        shoot(vase(), paint=(40, 120, 130)),
        shoot(vase(), paint=(200, 40, 40), shadow=0.6),
        shoot(vase(handle=True), paint=(40, 120, 130), gradient=20),
        draw_scene("mug", "plain", 4),
        draw_scene("chair", "plain", 9),
        draw_scene("plant", "plain", 9),
    ],
    ids=["vase", "deep", "gradient", "mug", "chair", "plant"],
)
def test_a_shadow_in_the_mask_of_a_service_is_taken_off(scene: Scene) -> None:
    given = with_shadow(scene)

    cleaned = haze.take_off_haze(haze.take_off_shadow(given, scene.photo))

    before = overlap(given[..., 3] / np.float32(255), scene.truth)
    after = overlap(cleaned[..., 3] / np.float32(255), scene.truth)
    assert before < 0.94
    assert after > 0.96


def test_haze_away_from_the_product_is_taken_off_an_uploaded_cut_out() -> None:
    solid = np.zeros((400, 400), np.uint8)
    solid[100:300, 150:250] = 255
    solid[180:220, 180:220] = 90  # a window in the product
    shadow = np.zeros_like(solid)
    shadow[280:320, 150:380] = 70

    found = cutout.cut_out(rgba_with(np.maximum(solid, shadow)))

    alpha = found.rgba[..., 3]
    assert found.is_sure
    assert not alpha[:, 262:].any()
    assert (alpha[180:220, 180:220] == 90).all()
    assert (alpha[100:180, 150:250] == 255).all()


def test_a_product_that_is_see_through_itself_keeps_its_faint_parts() -> None:
    veil = np.zeros((400, 400), np.uint8)
    veil[100:300, 100:300] = 80
    veil[100:140, 150:250] = 255

    assert np.array_equal(cutout.cut_out(rgba_with(veil)).rgba[..., 3], veil)


async def test_the_provider_answers_a_full_frame_png_for_free() -> None:
    scene = shoot(vase(400), paint=(40, 120, 130))
    provider = OfflineCutout()

    answer = await provider.cut_out(codec.encode_jpeg(scene.photo), timeout_s=60)

    assert (400, 400, 4) == codec.decode(answer.png).shape
    assert Decimal(0) == answer.usage.cost_usd == provider.estimate_usd(400, 400)
    assert answer.confidence is not None
    assert answer.confidence >= cutout.SURE
    assert cutout.VERSION in provider.fingerprint


async def test_the_providers_refusal_tells_seller_and_operator_what_to_do() -> None:
    white = shoot(vase(400), paint=(238, 239, 241)).photo

    with pytest.raises(ProviderError) as refused:
        await OfflineCutout().cut_out(codec.encode_jpeg(white), timeout_s=60)

    assert (Fate.PERMANENT, "cutout_unreliable") == (refused.value.fate, refused.value.code)
    assert "plain" in refused.value.message
    assert "LISTINGD" not in refused.value.message
    for word in (
        "LISTINGD_CUTOUT__PROTOCOL", "LISTINGD_CUTOUT__API_KEY", "LISTINGD_CUTOUT__BASE_URL",
        "removebg", "rembg", "withoutbg",
    ):  # fmt: skip
        assert word in refused.value.hint


async def test_the_provider_refuses_bytes_that_are_no_picture() -> None:
    with pytest.raises(InvalidInput):
        await OfflineCutout().cut_out(b"", timeout_s=60)
