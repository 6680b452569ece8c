"""Reading pictures out of providers' answers, which are as hostile as uploads.

A picture is decoded to its last pixel before it leaves an adapter: what a checkpoint keeps is never looked
at again by a paid call, so rubbish must not get that far.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from daemon.errors import Fate, ListingdError, ProviderError
from daemon.later import later
from daemon.providers.fates import problem

if TYPE_CHECKING:
    import numpy as np

    from daemon.imaging import codec, cutout, haze
else:
    np = later("numpy")
    codec, cutout = later("daemon.imaging.codec"), later("daemon.imaging.cutout")
    haze = later("daemon.imaging.haze")


def read_picture(data: bytes, *, provider: str, paid: Mapping[str, Any], fate: Fate) -> codec.Picture:
    """The pixels of an answer. CPU: 50 to 400 ms, run it in a thread.

    paid: what the call is known to have cost, for the error's data.
    Errors: ProviderError answer_unusable with the given fate; data.why names the codec's reason.
    """
    try:
        return codec.decode(data)
    except ListingdError as exc:
        raise unusable(provider, fate, exc.code, paid) from exc


def check_ratio(
    picture: codec.Picture,
    width_px: int,
    height_px: int,
    *,
    provider: str,
    paid: Mapping[str, Any],
    fate: Fate,
) -> None:
    """Refuses a picture that is not what was asked for: another shape, or under half its size.

    Errors: ProviderError answer_unusable, data.why = "wrong_size".
    """
    height, width = picture.shape[:2]
    bends = abs(width * height_px - height * width_px) > 0.03 * width * height_px
    if bends or width * 2 < width_px or height * 2 < height_px:
        size = {"width_px": width, "height_px": height, "asked_px": [width_px, height_px]}
        raise unusable(provider, fate, "wrong_size", {**paid, **size})


def read_cutout(
    answer: codec.Picture, photo: codec.Picture, *, provider: str, paid: Mapping[str, Any], fate: Fate
) -> tuple[codec.Picture, bool]:
    """(RGBA cut-out of the photo's full frame, whether it differs from the answer). CPU: 0.3 to 2 s.

    Haze and the product's shadow are taken off. An answer smaller than the photo (services end at 10 MP or
    less) lends only its alpha: the colours are the photo's own, at full sharpness.
    Errors: ProviderError answer_unusable (wrong_size); cutout_unreliable, permanent, for a mask that is
    certainly no product.
    """
    height, width = photo.shape[:2]
    same_ratio = abs(answer.shape[1] * height - answer.shape[0] * width) <= 0.02 * answer.shape[1] * height
    if not same_ratio or answer.shape[0] * 8 < height:
        size = {"width_px": answer.shape[1], "height_px": answer.shape[0], "asked_px": [width, height]}
        raise unusable(provider, fate, "wrong_size", {**paid, **size})
    verdict = cutout.judge_mask(answer)
    if not verdict.usable:
        measured = {"fill": round(verdict.fill, 4), "edge_contact": round(verdict.edge_contact, 4),
                    "parts": verdict.parts, "reasons": list(verdict.reasons)}  # fmt: skip
        raise problem(provider, Fate.PERMANENT, "cutout_unreliable", data={**measured, **paid})
    whole = answer
    if answer.shape[:2] != (height, width):
        alpha = codec.resize(np.repeat(answer[..., 3:], 3, axis=2), width, height)[..., 0]
        whole = np.dstack((photo[..., :3], alpha))
    cleaned = haze.take_off_haze(haze.take_off_shadow(whole, photo[..., :3]))
    return cleaned, cleaned is not answer


def unusable(provider: str, fate: Fate, why: str, paid: Mapping[str, Any]) -> ProviderError:
    """The error for an answer that came whole and is worth nothing; why: a code, for data.why."""
    return problem(provider, fate, "answer_unusable", data={"why": why, **paid})


def photo_rejected(provider: str, why: ListingdError) -> ProviderError:
    """The error for a picture of ours that cannot even be sent; why: the codec's error.

    Anything but a ProviderError would be booked as a call whose outcome, and so its cost, is unknown.
    """
    return problem(provider, Fate.PERMANENT, "photo_rejected", data={"why": why.code})
