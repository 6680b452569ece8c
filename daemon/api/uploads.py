"""POST /v1/uploads: a seller's photo, raw or as a form, checked by its bytes and kept under its hash."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import BodyPartReader, web
from aiohttp.http import HttpProcessingError

from daemon.api import models
from daemon.api.access import owner_of
from daemon.api.answers import json_answer
from daemon.api.bodies import read_bytes, read_query
from daemon.api.deps import ApiDeps
from daemon.api.idempotency import REPLAYED, Idempotency
from daemon.api.principal import PRINCIPAL
from daemon.api.problems import TimedOut
from daemon.api.routing import Answer, Route
from daemon.errors import InvalidInput, MalformedBody, TooLarge, UnsupportedMedia
from daemon.jobs import new_id
from daemon.later import later

if TYPE_CHECKING:
    from daemon.imaging import codec
else:
    codec = later("daemon.imaging.codec")

RAW_TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
_CHUNK_BYTES = 256 * 1024


class Uploads:
    """The handlers of one application."""

    def __init__(self, deps: ApiDeps) -> None:
        self._views = deps.views
        self._storage = deps.storage
        self._max_bytes = deps.settings.http.max_upload_bytes
        self._timeout_s = deps.settings.http.body_timeout_s
        self._idempotency = Idempotency(deps.db)
        self._in_flight = asyncio.Semaphore(8)  # 8 × 25 MiB in memory at most

    async def create(self, request: web.Request) -> web.StreamResponse:
        query = read_query(request, models.UploadQuery)
        user_id = owner_of(request[PRINCIPAL], query.user_id)
        content_type = request.content_type
        if content_type != "multipart/form-data" and content_type not in RAW_TYPES:
            raise UnsupportedMedia(
                f"An upload comes as {', '.join(RAW_TYPES)} or multipart/form-data.",
                hint="With curl: --data-binary @photo.jpg -H 'Content-Type: image/jpeg'.",
            )
        async with self._in_flight:
            data = await (
                self._read_form(request) if content_type == "multipart/form-data" else self._read_raw(request)
            )
            info = await asyncio.to_thread(lambda: codec.inspect(data))
            sha256 = await self._storage.put(data, info.content_type)
        return await self._idempotency.once(
            request, lambda _: self._note(user_id, sha256, len(data), info), content=sha256
        )

    async def _note(
        self, user_id: str, sha256: str, size_bytes: int, info: codec.PictureInfo
    ) -> web.Response:
        upload_id = new_id()
        await self._views.create_upload(
            upload_id, user_id, sha256=sha256, content_type=info.content_type, size_bytes=size_bytes,
            width_px=info.width_px, height_px=info.height_px,
        )  # fmt: skip
        return json_answer(
            {
                "upload_id": str(upload_id), "sha256": sha256, "content_type": info.content_type,
                "bytes": size_bytes, "width_px": info.width_px, "height_px": info.height_px,
            },
            201,
        )  # fmt: skip

    async def _read_raw(self, request: web.Request) -> bytes:
        return await read_bytes(request, max_bytes=self._max_bytes, timeout_s=self._timeout_s)

    async def _read_form(self, request: web.Request) -> bytes:
        """The bytes of the form's first file. Errors: MalformedBody, TooLarge, TimedOut, InvalidInput."""
        if request.content_length is not None and request.content_length > self._max_bytes + 64 * 1024:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._timeout_s):
                reader = await request.multipart()
                for _ in range(20):
                    part = await reader.next()
                    if part is None:
                        break
                    if isinstance(part, BodyPartReader) and part.filename is not None:
                        return await self._read_part(part)
        except TimeoutError as exc:
            raise TimedOut(f"The upload did not arrive within {self._timeout_s:g} s.") from exc
        # aiohttp's multipart reader ends in any of these on broken input.
        except (HttpProcessingError, ValueError, AssertionError, RuntimeError, LookupError,
                web.RequestPayloadError) as exc:  # fmt: skip
            raise MalformedBody("The form cannot be read.") from exc
        raise InvalidInput(
            "The form holds no file.", code="upload_missing", hint="With curl: -F file=@photo.jpg."
        )

    async def _read_part(self, part: BodyPartReader) -> bytes:
        data = bytearray()
        while chunk := await part.read_chunk(_CHUNK_BYTES):
            data += chunk
            if len(data) > self._max_bytes:
                raise self._too_large()
        return bytes(data)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"A photo may have {self._max_bytes >> 20} MiB.", data={"max_bytes": self._max_bytes})


def routes(deps: ApiDeps) -> list[Route]:
    """The routes of this topic."""
    uploads = Uploads(deps)
    return [
        Route(
            "POST", "/v1/uploads", uploads.create, "Upload a photo", "uploads", "enqueue",
            description="JPEG, PNG or WEBP of up to 25 MiB, 40 megapixels and 12,000 px a side, as the body or as "
            "one file of a form. Judged by its bytes; its name plays no part.",
            query=models.UploadQuery, headers=models.IdempotencyHeaders,
            uploads=("image/jpeg", "image/png", "image/webp", "application/octet-stream", "multipart/form-data"),
            answers={201: Answer("Stored.", models.Upload, headers=REPLAYED)},
            problems=(408, 409, 413, 415, 422), keyed="by_itself",
        )
    ]  # fmt: skip
