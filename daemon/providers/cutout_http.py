"""Cut-outs by a service: the remove.bg protocol at any base URL, a rembg server, a withoutBG container.

    removebg    POST {base}/removebg              X-Api-Key, multipart image_file -> PNG or ZIP
    rembg       POST {base}/api/remove            multipart file                  -> PNG
    withoutbg   POST {base}/v1/remove-background  the photo as body               -> PNG

One request per call, on a connection of its own: a kept one that the server has just closed looks like an
answer lost, and that would cost a paid retry. The base URL is the operator's, so no guard stands before it.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import aiohttp

from daemon.errors import Fate, ListingdError, TooLarge
from daemon.later import later
from daemon.providers import fates
from daemon.providers.answers import photo_rejected, read_cutout, read_picture, unusable
from daemon.providers.guard import CONNECT_TIMEOUT_S, read_capped
from daemon.providers.protocols import CutoutAnswer, Usage
from daemon.providers.rates import read_rate
from daemon.shield import finish

if TYPE_CHECKING:
    import numpy as np

    from daemon.imaging import codec
else:
    np, codec = later("numpy"), later("daemon.imaging.codec")

Protocol = Literal["removebg", "rembg", "withoutbg"]

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_PHOTO_BYTES = 22_000_000  # remove.bg's limit
PNG_PIXELS = 10_000_000  # above it remove.bg answers smaller PNGs, but whole ZIPs
_PATHS: Mapping[Protocol, str] = {
    "removebg": "/removebg",
    "rembg": "/api/remove",
    "withoutbg": "/v1/remove-background",
}
_PNG_MAGIC = b"\x89PNG"
_ZIP_MAGIC = b"PK\x03\x04"
_EXIF_MARKS = (b"Exif\x00\x00", b"eXIf", b"EXIF")
_PICTURE_TYPES = ("image/", "application/zip", "application/octet-stream")


@dataclass(frozen=True, slots=True)
class _Photo:
    """What is sent, and the pixels it stands for."""

    data: bytes
    info: codec.PictureInfo
    pixels: codec.Picture


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpCutout:
    """A CutoutProvider. price_usd_per_credit counts for removebg only; the others are one's own machines."""

    def __init__(
        self,
        *,
        protocol: Protocol,
        base_url: str,
        api_key: str = "",
        price_usd_per_credit: Decimal = Decimal(0),
        timeout_s: float = 60.0,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self._protocol: Protocol = protocol
        path = _PATHS[protocol]
        base = base_url.rstrip("/")
        self._url = base if base.endswith(path) else base + path  # services state their URL either way
        self._api_key = api_key
        self._price_usd = price_usd_per_credit if protocol == "removebg" else Decimal(0)
        self._timeout_s = timeout_s
        self._max_answer_bytes = max_answer_bytes
        self._names = fates.NameFailures()
        self._session: aiohttp.ClientSession | None = None

    @property
    def name(self) -> str:
        return self._protocol

    @property
    def fingerprint(self) -> str:
        return f"{self._protocol}/1:{urlsplit(self._url).hostname}"

    def estimate_usd(self, width_px: int, height_px: int) -> Decimal:
        """USD of one photo: a credit, whatever its size."""
        return self._price_usd

    def rate_cost(self, width_px: int, height_px: int) -> float:
        """remove.bg counts megapixels, rounded up; the others count calls."""
        return float(math.ceil(width_px * height_px / 1e6)) if self._protocol == "removebg" else 1.0

    async def cut_out(self, photo: bytes, *, timeout_s: float) -> CutoutAnswer:
        """The product of one photo, in the photo's full frame.

        Errors: ProviderError, its data carrying cost_usd where the call is known to be billed; permanent
        photo_rejected, data.why the codec's code, when `photo` itself is no picture: nothing was sent then.
        """
        try:
            sent = await asyncio.to_thread(_prepare, photo)
        except ListingdError as exc:
            raise photo_rejected(self.name, exc) from exc
        try:
            async with asyncio.timeout(min(timeout_s, self._timeout_s)):
                reply = await self._post(sent)
        except TimeoutError as exc:
            raise fates.problem(self.name, self._lost, "provider_timed_out") from exc
        self._names.clear()
        self._check(reply)
        usage = self._price(reply)
        # Paid for: it may take its time, and a cancel waits for it.
        png = await finish(asyncio.to_thread(self._read, reply, sent.pixels, usage))
        return CutoutAnswer(
            png=png,
            usage=usage,
            model=self._protocol,
            request_id=reply.headers.get("x-request-id"),
            rate=read_rate(reply.headers),
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def _lost(self) -> Fate:
        """What an answer that got lost means: where nothing is paid, just another try."""
        return Fate.AMBIGUOUS if self._price_usd else Fate.RETRY

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=True,
                headers={"Accept-Encoding": "identity"},
            )
        return self._session

    async def _post(self, photo: _Photo) -> _Reply:
        body, headers = self._request(photo)
        try:
            async with self._open().post(
                self._url, data=body, headers=headers, allow_redirects=False
            ) as response:
                answer = await read_capped(response, self._max_answer_bytes)
                return _Reply(response.status, response.headers, answer)
        except TooLarge as exc:
            raise fates.problem(self.name, self._lost, "answer_too_large") from exc
        except aiohttp.ClientConnectorDNSError as exc:
            raise fates.problem(self.name, *self._names.count()) from exc
        except (
            aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError, aiohttp.ConnectionTimeoutError
        ) as exc:  # fmt: skip
            raise fates.problem(self.name, Fate.RETRY, "provider_unreachable") from exc
        except aiohttp.InvalidURL as exc:
            raise fates.problem(self.name, Fate.CONFIG, "provider_model_unknown") from exc
        except (aiohttp.ClientError, ConnectionError) as exc:
            raise fates.problem(self.name, self._lost, "provider_hung_up") from exc

    def _request(self, photo: _Photo) -> tuple[Any, dict[str, str]]:
        name = f"photo.{photo.info.format.lower()}"
        if self._protocol == "withoutbg":
            return photo.data, {"Content-Type": photo.info.content_type}
        form = aiohttp.FormData()
        field = "image_file" if self._protocol == "removebg" else "file"
        form.add_field(field, photo.data, filename=name, content_type=photo.info.content_type)
        if self._protocol == "rembg":
            return form, {}
        wants_zip = photo.info.width_px * photo.info.height_px > PNG_PIXELS
        # Without size=auto the answer is a quarter-megapixel preview.
        for key, value in (("size", "auto"), ("type", "product"), ("format", "zip" if wants_zip else "png")):
            form.add_field(key, value)
        return form, {"X-Api-Key": self._api_key}

    def _check(self, reply: _Reply) -> None:
        """Errors: ProviderError for every answer that is not a picture, also errors sent with status 200."""
        content_type = reply.headers.get("content-type", "image/png")
        if reply.status == 200 and content_type.startswith(_PICTURE_TYPES):
            return
        status, code = _read_error(reply)
        if status == 200:
            raise fates.problem(self.name, Fate.RETRY, "answer_unreadable", status=200, headers=reply.headers)
        fate, ours = fates.classify(fates.REMOVEBG, fates.Fault(status, code=code))
        raise fates.problem(
            self.name, fate, ours,
            status=status, headers=reply.headers, request_id=reply.headers.get("x-request-id"),
            data={"provider_code": code[:100]},
        )  # fmt: skip

    def _price(self, reply: _Reply) -> Usage:
        if self._protocol != "removebg":
            return Usage()
        charged, units = Decimal(1), {"credits": "1", "priced_by": "estimate"}
        try:
            stated = Decimal(reply.headers["x-credits-charged"])
            if stated.is_finite() and 0 <= stated <= 1000:
                charged, units = stated, {"credits": str(stated)}
        except (KeyError, InvalidOperation):
            pass  # compatible services may not say: then it is one credit
        return Usage(charged * self._price_usd, units)

    def _read(self, reply: _Reply, photo: codec.Picture, usage: Usage) -> bytes:
        paid = {"cost_usd": str(usage.cost_usd), "usage": dict(usage.units)} if self._price_usd else {}
        body = reply.body
        if body.startswith(_ZIP_MAGIC):
            answer = self._read_zip(body, paid)
        else:
            answer = read_picture(body, provider=self.name, paid=paid, fate=self._lost)
        cutout, differs = read_cutout(answer, photo, provider=self.name, paid=paid, fate=self._lost)
        return body if body.startswith(_PNG_MAGIC) and not differs else codec.encode_png(cutout)

    def _read_zip(self, body: bytes, paid: Mapping[str, Any]) -> codec.Picture:
        """RGBA from color.jpg and alpha.png."""
        try:
            with zipfile.ZipFile(io.BytesIO(body)) as archive:
                layers = [self._read_member(archive, name) for name in ("color.jpg", "alpha.png")]
        except (zipfile.BadZipFile, KeyError, EOFError, zlib.error, OSError, RuntimeError, ValueError) as exc:
            raise unusable(self.name, self._lost, "bad_zip", paid) from exc
        colour, alpha = (
            read_picture(layer, provider=self.name, paid=paid, fate=self._lost) for layer in layers
        )
        if colour.shape[:2] != alpha.shape[:2]:
            raise unusable(self.name, self._lost, "wrong_size", paid)
        return np.dstack((colour[..., :3], alpha[..., 0]))

    def _read_member(self, archive: zipfile.ZipFile, name: str) -> bytes:
        """One file of the ZIP, never more than an answer may hold: its header may lie. Errors: ValueError."""
        with archive.open(name) as member:
            data = member.read(self._max_answer_bytes + 1)
        if len(data) > self._max_answer_bytes:
            raise ValueError("unpacks to more than we take")
        return data


def _prepare(photo: bytes) -> _Photo:
    """The photo as it may leave the house: upright, without EXIF (place, serial numbers), not too large.

    Errors: the codec's.
    """
    info = codec.inspect(photo)
    pixels = codec.decode(photo)
    if len(photo) > MAX_PHOTO_BYTES or any(mark in photo for mark in _EXIF_MARKS):
        photo = codec.encode_jpeg(pixels, quality=95, max_bytes=MAX_PHOTO_BYTES)
        info = codec.inspect(photo)
    return _Photo(photo, info, pixels)


def _read_error(reply: _Reply) -> tuple[int, str]:
    """(status, code) of an answer that is no picture.

    Some services send errors with status 200 and the true one in errors[0].extensions (Leonardo).
    """
    try:
        errors = json.loads(reply.body[:65536])["errors"]
        first = errors[0]
        code = first.get("code")
        extensions = first.get("extensions", {})
        stated = extensions.get("statusCode", extensions.get("code"))
        status = int(stated) if reply.status == 200 and stated is not None else reply.status
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return reply.status, ""
    return status, code if isinstance(code, str) else ""
