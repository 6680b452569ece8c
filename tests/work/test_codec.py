"""Reading hostile and ordinary pictures, writing clean ones."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from daemon.errors import InvalidInput, ListingdError, TooLarge, UnsupportedMedia
from daemon.imaging import codec, provenance

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos"


def gradient(width: int = 60, height: int = 40, alpha: bool = False) -> codec.Picture:
    """A picture whose corners all differ, so that every turn shows."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 // (width - 1), y * 255 // (height - 1), np.full_like(x, 90)]
    if alpha:
        planes.append(np.where(x < width // 2, 255, 0))
    return np.dstack(planes).astype(np.uint8)


def saved(picture: codec.Picture, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, kind, **options)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing: what a decompression bomb looks like."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(20_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def frames(kind: str) -> bytes:
    out = io.BytesIO()
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(out, kind, save_all=True, append_images=[second])
    return out.getvalue()


def with_orientation(picture: codec.Picture, kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.0)}  # GPS
    return saved(picture, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {"lossless": True}))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_format_and_size_come_from_the_bytes(kind: str) -> None:
    info = codec.inspect(saved(gradient(), kind))

    assert codec.PictureInfo(kind, 60, 40, f"image/{kind.lower()}") == info  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}, {"exif": b"Exif\x00\x00II*\x00"}])
def test_every_kind_of_webp_header_is_read(options: dict[str, Any]) -> None:
    for alpha in (False, True):
        info = codec.inspect(saved(gradient(61, 43, alpha), "WEBP", **options))

        assert (61, 43) == (info.width_px, info.height_px)


@pytest.mark.parametrize(
    ("data", "error", "code"),
    [
        (b"", InvalidInput, "image_empty"),
        (b"hello, I am no image", UnsupportedMedia, "image_unrecognised"),
        (b"\x00" * 64, UnsupportedMedia, "image_unrecognised"),
        (b"GIF89a" + bytes(20), UnsupportedMedia, "image_format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", UnsupportedMedia, "image_format"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(20), UnsupportedMedia, "image_format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", UnsupportedMedia, "image_format"),
        (png_header(13_300, 13_300), TooLarge, "image_pixels"),
        (png_header(12_001, 1), TooLarge, "image_pixels"),
        (png_header(2**31, 2**31), TooLarge, "image_pixels"),
        (png_header(0, 10), InvalidInput, "image_damaged"),
        (frames("PNG"), UnsupportedMedia, "image_animated"),
        (frames("WEBP"), UnsupportedMedia, "image_animated"),
        (b"\xff\xd8\xff", InvalidInput, "image_truncated"),
        (b"\x89PNG\r\n\x1a\n", InvalidInput, "image_truncated"),
        (b"RIFF\x10\x00\x00\x00WEBP", InvalidInput, "image_truncated"),
        (b"RIFF\x04\x00\x00\x00WEBP", InvalidInput, "image_damaged"),
        (b"\xff\xd8\xff\xd9\x00\x04ab", InvalidInput, "image_damaged"),
    ],
)  # fmt: skip
def test_unusable_bytes_are_refused_from_the_header(
    data: bytes, error: type[ListingdError], code: str
) -> None:
    with pytest.raises(error) as refused:
        codec.inspect(data)

    assert code == refused.value.code
    assert refused.value.message
    assert refused.value.hint or code == "image_damaged"


@pytest.mark.parametrize(
    ("start", "part"),
    [
        (b"\xff\xd8", b"\xff"),
        (b"\xff\xd8", b"\xff\xe0\x00\x02"),
        (png_header(8, 8)[:33], struct.pack(">I4sI", 0, b"teXt", 0)),
        (b"RIFF\xff\xff\xff\x00WEBP", b"junk\x00\x00\x00\x00"),
    ],
    ids=["fill bytes", "JPEG segments", "PNG chunks", "WEBP chunks"],
)
def test_a_header_of_nothing_but_parts_is_not_walked_to_its_end(start: bytes, part: bytes) -> None:
    """An upload of 25 MiB of them took three seconds of the interpreter."""
    with pytest.raises(InvalidInput) as refused:
        codec.inspect(start + part * (codec.MAX_PARTS + 1) + bytes(16))

    assert "image_damaged" == refused.value.code
    assert f"more than {codec.MAX_PARTS} parts" in refused.value.message


def test_the_bomb_is_small_and_never_unpacked() -> None:
    """21 KB of PNG took 858 MB in Pillow: the refusal must come before any pixel exists."""
    bomb = png_header(13_300, 13_300)

    assert len(bomb) < 22_000
    with pytest.raises(TooLarge):
        codec.decode(bomb)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.98, 0.6, 0.2])
def test_a_truncated_picture_is_refused(kind: str, kept: float) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    data = saved(noise, kind)

    with pytest.raises(InvalidInput) as refused:
        codec.inspect(data[: int(len(data) * kept)])

    assert "image_truncated" == refused.value.code


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_any_flipped_byte_ends_in_a_picture_or_in_our_own_error(kind: str) -> None:
    data = with_orientation(gradient(24, 16), kind, 6) if kind != "PNG" else saved(gradient(24, 16), kind)
    dice = np.random.default_rng(7)

    for _ in range(300):
        broken = bytearray(data)
        for at in dice.integers(0, len(data), 3):
            broken[at] = int(dice.integers(0, 256))
        with contextlib.suppress(ListingdError):
            assert codec.decode(bytes(broken)).shape[2] in (3, 4)


def test_bytes_after_the_end_of_a_jpeg_do_no_harm() -> None:
    """Phones append motion clips and second views."""
    data = saved(gradient(), "JPEG") + b"MotionPhoto" + bytes(500)

    assert (40, 60, 3) == codec.decode(data).shape


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied_and_dropped(kind: str, orientation: int) -> None:
    turned = with_orientation(gradient(), kind, orientation)
    wanted = Image.open(io.BytesIO(turned))
    transpose = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
    }.get(orientation)  # fmt: skip
    if transpose is not None:
        wanted = wanted.transpose(transpose)  # type: ignore[assignment]

    picture = codec.decode(turned)

    assert np.array_equal(np.asarray(wanted.convert("RGB")), picture)
    info = codec.inspect(turned)
    assert (picture.shape[1], picture.shape[0]) == (info.width_px, info.height_px)
    for again in (codec.encode_jpeg(picture), codec.encode_png(picture), codec.thumbnail(turned, 20)[0]):
        assert not Image.open(io.BytesIO(again)).getexif()


def test_broken_exif_does_not_spoil_a_good_photo() -> None:
    data = saved(gradient(), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x01")

    assert (40, 60, 3) == codec.decode(data).shape


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_every_mode_becomes_8_bit_rgb_or_rgba(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((10, 12), 0x8000, dtype=np.uint16))
    else:
        image = Image.new("RGBA", (12, 10), (128, 128, 128, 90)).convert("RGB" if mode == "CMYK" else "RGBA")
        image = image.convert(mode)
    out = io.BytesIO()
    image.save(out, "JPEG" if mode == "CMYK" else "PNG")

    picture = codec.decode(out.getvalue())

    assert (10, 12, 4 if mode in ("LA", "RGBA", "P") else 3) == picture.shape
    if mode not in ("1", "P"):
        assert abs(int(picture[5, 5, 0]) - 128) <= 3


def test_colours_of_another_profile_are_converted_to_srgb() -> None:
    """The same numbers mean another colour there: passing them through would shift the product."""
    swapped = (
        codec.srgb_profile().replace(b"rXYZ", b"tmp_").replace(b"bXYZ", b"rXYZ").replace(b"tmp_", b"bXYZ")
    )
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "bgrR".encode("utf-16-be"))

    def seen(profile: bytes | None) -> codec.Picture:
        return codec.decode(saved(gradient(), "PNG", icc_profile=profile))

    assert np.array_equal(gradient(), seen(codec.srgb_profile()))
    assert np.array_equal(gradient(), seen(b"nonsense"))
    assert np.abs(gradient()[..., ::-1].astype(int) - seen(swapped)).max() <= 4


def test_opaque_alpha_is_dropped_and_real_alpha_kept() -> None:
    opaque = np.dstack((gradient(), np.full((40, 60), 255, np.uint8)))

    assert (40, 60, 3) == codec.decode(saved(opaque, "PNG")).shape
    assert np.array_equal(gradient(alpha=True), codec.decode(saved(gradient(alpha=True), "PNG")))


def test_a_jpeg_has_no_alpha_and_pure_white_where_the_picture_was_clear() -> None:
    data = codec.encode_jpeg(gradient(alpha=True))

    image = Image.open(io.BytesIO(data))
    assert ("JPEG", "RGB") == (image.format, image.mode)
    assert (255, 255, 255) == image.getpixel((59, 20))
    assert codec.srgb_profile() == image.info["icc_profile"]


def test_a_jpeg_that_is_too_heavy_loses_quality_then_is_refused() -> None:
    noise = np.random.default_rng(1).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    full = len(codec.encode_jpeg(noise))

    assert len(codec.encode_jpeg(noise, max_bytes=full * 3 // 4)) <= full * 3 // 4
    with pytest.raises(TooLarge) as refused:
        codec.encode_jpeg(noise, max_bytes=1000)
    assert "image_bytes" == refused.value.code


def test_a_png_holds_nothing_of_what_was_cut_away() -> None:
    """A service left the whole photo under alpha 0: a cut-out too heavy to be read again, and what it hid."""
    rgba = np.dstack((gradient(), np.zeros((40, 60), np.uint8)))
    rgba[5:20, 5:20, 3] = 1

    seen = np.asarray(Image.open(io.BytesIO(codec.encode_png(rgba))))

    assert 0 == seen[seen[..., 3] == 0].max()
    assert np.array_equal(rgba[5:20, 5:20], seen[5:20, 5:20])


def test_equal_pictures_become_equal_bytes() -> None:
    """Content hashes of results are compared across processes."""
    assert codec.encode_jpeg(gradient()) == codec.encode_jpeg(gradient())
    assert b"\x07\xea\x00\x01\x00\x01" == codec.srgb_profile()[24:30]


def test_a_thumbnail_keeps_ratio_and_alpha_and_never_grows() -> None:
    small, small_type = codec.thumbnail(codec.encode_png(gradient(alpha=True)), 30)
    same, same_type = codec.thumbnail(codec.encode_jpeg(gradient()), 4000)

    assert ((20, 30, 4), "image/png") == (codec.decode(small).shape, small_type)
    assert ((40, 60, 3), "image/jpeg") == (codec.decode(same).shape, same_type)


def test_resizing_does_not_bleed_hidden_colour_over_the_edge() -> None:
    picture = np.zeros((40, 40, 4), np.uint8)
    picture[..., 1] = 255  # hidden green everywhere
    picture[:, :21] = (255, 0, 0, 255)

    small = codec.resize(picture, 10, 10)

    assert (small[..., 3] > 0).any()
    assert int(small[small[..., 3] > 8][:, 1].max()) <= 2


def test_resizing_weights_every_colour_by_its_cover() -> None:
    """The picture is worked on plane by plane; the result is that of all planes in double precision."""
    rgba = np.random.default_rng(3).integers(0, 256, (120, 90, 4), dtype=np.uint8)
    exact = rgba.astype(np.float64)
    cover = exact[..., 3:].reshape(40, 3, 30, 3, 1).mean(axis=(1, 3))
    weighted = (exact[..., :3] * exact[..., 3:]).reshape(40, 3, 30, 3, 3).mean(axis=(1, 3))

    small = codec.resize(rgba, 30, 40)

    expected = np.dstack((weighted / np.maximum(cover, 1), cover))
    assert np.abs(small - expected).max() < 0.51


def test_every_colour_under_every_alpha_is_laid_on_white_to_the_nearest_step() -> None:
    colour, alpha = np.mgrid[0:256, 0:256]
    rgba = np.dstack((colour, colour, colour, alpha)).astype(np.uint8)

    flat = codec.flatten_on_white(rgba)

    # In whole numbers: a half can never come up, as 255 is odd.
    expected = (colour * alpha + 255 * (255 - alpha) + 127) // 255
    assert np.array_equal(np.dstack([expected] * 3), flat)


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(lambda rgba, _: codec.flatten_on_white(rgba), id="flatten"),
        pytest.param(lambda rgba, _: codec.resize(rgba, 400, 300), id="resize"),
        pytest.param(lambda rgba, _: codec.encode_png(rgba), id="encode_png"),
        pytest.param(lambda _, png: codec.decode(png), id="decode"),
    ],
)
def test_a_picture_is_worked_on_in_its_own_size_and_little_more(
    work: Callable[[codec.Picture, bytes], object],
) -> None:
    """A cut-out of 40 MP took 1.4 GB more than its own 160 MB; several are worked on at a time."""
    rgba = gradient(2000, 1500, alpha=True)
    png = codec.encode_png(rgba)

    tracemalloc.start()
    try:
        work(rgba, png)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 1.6 * rgba.nbytes


@pytest.mark.parametrize("name", ["car.jpg", "chair.png", "plant.jpg", "succulents.jpg"])
def test_a_real_photo_is_read_by_its_bytes(name: str) -> None:
    if not PHOTOS.is_dir():
        pytest.skip("../shared/data is not here")
    data = (PHOTOS / name).read_bytes()

    info = codec.inspect(data)

    assert ("PNG" if name in ("chair.png", "succulents.jpg") else "JPEG") == info.format
    assert (info.height_px, info.width_px) == codec.decode(data).shape[:2]


@pytest.mark.parametrize("made", list(provenance.Made))
def test_provenance_survives_in_jpeg_and_png(made: provenance.Made) -> None:
    xmp = provenance.packet(made, provider='a "b" <c> & d', model="gpt-image-2.6")

    for data in (codec.encode_jpeg(gradient(), xmp=xmp), codec.encode_png(gradient(), xmp=xmp)):
        found = provenance.read(data)
        assert found is not None
        assert (made, 'a "b" <c> & d', "gpt-image-2.6") == (found.made, found.provider, found.model)
        assert found.creator_tool.startswith("listingd")
        codec.inspect(data)


def test_a_picture_without_provenance_says_none() -> None:
    assert provenance.read(codec.encode_jpeg(gradient())) is None
    assert provenance.read(b"no picture") is None
