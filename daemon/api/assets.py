"""GET /v1/assets/{id}: a file, its parts, its thumbnail; GET /v1/jobs/{id}/archive: all files of a job."""

from __future__ import annotations

import asyncio
import io
import re
import zipfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping
from email.utils import format_datetime
from typing import TYPE_CHECKING
from urllib.parse import quote
from uuid import UUID

from aiohttp import web

from daemon.amazon import rules
from daemon.api import models
from daemon.api.access import covers, no_such, path_id
from daemon.api.answers import matches
from daemon.api.bodies import read_query
from daemon.api.deps import ApiDeps
from daemon.api.principal import PRINCIPAL, Principal
from daemon.api.problems import NoSuchPart
from daemon.api.routing import Answer, Route
from daemon.errors import NotFound
from daemon.later import later
from daemon.views import File

if TYPE_CHECKING:
    from daemon.imaging import codec
else:
    codec = later("daemon.imaging.codec")

THUMBNAIL_WIDTHS = (160, 320, 640, 1000, 2000)
"""Widths that are really made, px: the next larger one answers, so that a stranger cannot ask for a thousand."""
CACHED_BYTES = 32 * 1024 * 1024
MAX_ARCHIVE_BYTES = 400 * 1024 * 1024
_SAFE = frozenset({"image/jpeg", "image/png", "image/webp"})
_NAME = re.compile(r"[^A-Za-z0-9._ -]+")
# A stored file never changes under its id; only its owner may keep it.
_KEEP = "private, max-age=86400, immutable"
_SANDBOX = "default-src 'none'; style-src 'unsafe-inline'; img-src data: 'self'; sandbox"


class Assets:
    """The handlers of one application."""

    def __init__(self, deps: ApiDeps) -> None:
        self._views = deps.views
        self._storage = deps.storage
        self._thumbnails = _Thumbnails(CACHED_BYTES)
        self._pixel_work = asyncio.Semaphore(2)

    async def read(self, request: web.Request) -> web.StreamResponse:
        query = read_query(request, models.AssetQuery)
        file = await self._find(request[PRINCIPAL], path_id(request, "asset"))
        width_px = None if query.w is None else _step(query.w, file.width_px)
        tag = f'"{file.sha256}"' if width_px is None else f'"{file.sha256}-{width_px}"'
        headers = {
            "ETag": tag,
            "Cache-Control": _KEEP,
            "Content-Disposition": _disposition(
                file, attach=query.download or file.content_type not in _SAFE
            ),
            "Last-Modified": format_datetime(file.created_at, usegmt=True),
            "Content-Security-Policy": _SANDBOX,
        }
        if matches(request, tag):
            return web.Response(status=304, headers=headers)
        if width_px is not None and file.content_type in _SAFE:
            data, content_type = await self._thumbnail(file.sha256, width_px)
            return web.Response(body=data, content_type=content_type, headers=headers)
        signed = await self._storage.sign_url(file.sha256)
        if signed is not None:
            return web.Response(
                status=302, headers={"Location": signed, "Cache-Control": "no-store", "ETag": tag}
            )
        return await self._send(request, file, headers)

    async def archive(self, request: web.Request) -> web.StreamResponse:
        principal = request[PRINCIPAL]
        job_id = path_id(request, "job")
        owner = await self._views.find_owner(job_id, principal.user_id)
        if owner is None or not covers(principal, job_id=job_id, parent_id=owner[2], project_id=owner[1]):
            raise no_such("job")
        files = await self._views.list_files(job_id, principal.user_id)
        document = await self._views.read_document(job_id, principal.user_id)
        if not files and document is None:
            raise NotFound("The job has no files yet.")
        members = dict(zip(_names(files), files, strict=True))
        if sum(file.size_bytes for file in files) > MAX_ARCHIVE_BYTES:
            raise NotFound("The files are too many for one archive.", hint="Fetch them one by one.")
        for file in files:  # what is missing is told before the answer begins
            await self._storage.stat(file.sha256)
        headers = {
            "Content-Disposition": f'attachment; filename="listing-{job_id}.zip"',
            "Cache-Control": "no-store",
        }
        response = web.StreamResponse(headers=headers)
        response.content_type = "application/zip"
        await response.prepare(request)
        if request.method != "HEAD":
            async for part in self._zip(members, document):
                await response.write(part)
        await response.write_eof()
        return response

    async def _find(self, principal: Principal, file_id: UUID) -> File:
        file = await self._views.read_file(file_id, principal.user_id)
        if file is None or not covers(
            principal, job_id=file.job_id, parent_id=file.parent_id, project_id=file.project_id
        ):
            raise no_such("asset")
        return file

    async def _send(self, request: web.Request, file: File, headers: dict[str, str]) -> web.StreamResponse:
        """The bytes, or the one range that was asked for (RFC 9110 section 14)."""
        size_bytes = (await self._storage.stat(file.sha256)).size_bytes
        found = _range(request, size_bytes, headers["ETag"])
        if found == "unsatisfiable":
            raise NoSuchPart(f"The file has {size_bytes} bytes.", data={"size_bytes": size_bytes})
        start, end = found if isinstance(found, tuple) else (0, size_bytes)
        response = web.StreamResponse(status=206 if isinstance(found, tuple) else 200, headers=headers)
        response.content_type = file.content_type
        response.content_length = end - start
        response.headers["Accept-Ranges"] = "bytes"
        if isinstance(found, tuple):
            response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size_bytes}"
        await response.prepare(request)
        if request.method != "HEAD":
            async for chunk in self._storage.stream(file.sha256, start, end):
                await response.write(chunk)
        await response.write_eof()
        return response

    async def _thumbnail(self, sha256: str, width_px: int) -> tuple[bytes, str]:
        known = self._thumbnails.get(sha256, width_px)
        if known is not None:
            return known
        async with self._pixel_work:
            data = await self._storage.get(sha256)
            made = await asyncio.to_thread(lambda: codec.thumbnail(data, width_px))
        self._thumbnails.put(sha256, width_px, made)
        return made

    async def _zip(self, members: Mapping[str, File], document: str | None) -> AsyncIterator[bytes]:
        """A zip of the files, stored as they are: pictures do not shrink further. One file at a time in memory."""
        outbox = _Outbox()
        # Closed at its end alone: when the reader goes away a thread may be writing, and closing would fail.
        archive = zipfile.ZipFile(outbox, "w", zipfile.ZIP_STORED)
        for name, file in members.items():
            data = await self._storage.get(file.sha256)
            await asyncio.to_thread(
                archive.writestr, zipfile.ZipInfo(name, file.created_at.timetuple()[:6]), data
            )
            yield outbox.take()
        if document is not None:
            archive.writestr("aplus-content.json", document)
        archive.close()
        yield outbox.take()


class _Outbox(io.BytesIO):
    """The part of a zip that is not sent yet. It is taken between two members: the head of one is written again
    when its checksum is known. An archive without going back would need a flag that not every unzip takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sent_bytes = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return super().seek(offset - self._sent_bytes, whence) + self._sent_bytes

    def tell(self) -> int:
        return super().tell() + self._sent_bytes

    def take(self) -> bytes:
        data = self.getvalue()
        self._sent_bytes += len(data)
        super().seek(0)
        self.truncate()
        return data


class _Thumbnails:
    """The thumbnails that were last asked for, at most so many bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._kept: OrderedDict[tuple[str, int], tuple[bytes, str]] = OrderedDict()

    def get(self, sha256: str, width_px: int) -> tuple[bytes, str] | None:
        found = self._kept.get((sha256, width_px))
        if found is not None:
            self._kept.move_to_end((sha256, width_px))
        return found

    def put(self, sha256: str, width_px: int, made: tuple[bytes, str]) -> None:
        if (sha256, width_px) in self._kept:
            return
        self._kept[sha256, width_px] = made
        self._size_bytes += len(made[0])
        while self._size_bytes > self._max_bytes:
            _, (data, _) = self._kept.popitem(last=False)
            self._size_bytes -= len(data)


def _step(width_px: int, of_file_px: int | None) -> int:
    """The width that is made for the width asked for: the next step, never more than the file has."""
    step = next(step for step in THUMBNAIL_WIDTHS if step >= width_px)
    return min(step, of_file_px or step)


def _range(request: web.Request, size_bytes: int, tag: str) -> tuple[int, int] | str | None:
    """(start, end) of one satisfiable range, None to send everything, or "unsatisfiable".

    Several ranges, other units and a stale If-Range get everything, as RFC 9110 allows.
    """
    given = request.headers.get("Range")
    if given is None or request.headers.get("If-Range", tag) != tag:
        return None
    match = re.fullmatch(r"bytes=(\d{0,15})-(\d{0,15})", given.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        start, end = max(0, size_bytes - int(last)), size_bytes
        return (start, end) if int(last) else "unsatisfiable"
    start = int(first)
    end = min(int(last) + 1, size_bytes) if last else size_bytes
    if last and int(last) < start:
        return None
    return (start, end) if start < size_bytes else "unsatisfiable"


def _disposition(file: File, *, attach: bool) -> str:
    name = _file_name(file)
    plain = _NAME.sub("_", name) or "file"
    kind = "attachment" if attach else "inline"
    extended = f"; filename*=UTF-8''{quote(name, safe='')}" if plain != name else ""
    return f'{kind}; filename="{plain}"{extended}'


def _file_name(file: File) -> str:
    """The name it was saved under, else one as Amazon wants it for a listing image."""
    if file.file_name:
        return file.file_name.replace("\\", "/").rsplit("/", 1)[-1][:150]
    extension = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "text/html": "html"}.get(
        file.content_type, "bin"
    )
    if file.role == "image" and file.slot and extension in ("jpg", "png"):
        image_format = "JPEG" if extension == "jpg" else "PNG"
        return rules.file_name(file.sku or "product", rules.code_of(file.slot), image_format)
    return f"{_NAME.sub('_', file.slot or file.role)}.{extension}"


def _names(files: Iterable[File]) -> list[str]:
    """A name for each file, none twice and none outside the folder it is unpacked into."""
    names: list[str] = []
    for file in files:
        name = _NAME.sub("_", _file_name(file)).lstrip(".") or "file"
        stem, dot, extension = name.rpartition(".")
        count = 2
        while name.lower() in {known.lower() for known in names}:
            name = f"{stem or extension}-{count}{dot}{extension if stem else ''}"
            count += 1
        names.append(name)
    return names


def routes(deps: ApiDeps) -> list[Route]:
    """The routes of this topic."""
    assets = Assets(deps)
    picture = {"type": "string", "format": "binary"}
    return [
        Route(
            "GET", "/v1/assets/{id}", assets.read, "Fetch a file", "assets", query=models.AssetQuery,
            description="The bytes, with `ETag` and `Range`; `?w=` gives a thumbnail of at least that width. With S3 "
            "storage the answer is a redirect to a signed URL.",
            headers=models.FileHeaders,
            answers={
                200: Answer("The file.", picture, content_type="*/*", headers={"ETag": "Its SHA-256."}),
                206: Answer("A part of it.", picture, content_type="*/*", headers={"Content-Range": "Which."}),
                302: Answer("It is at the `Location`.", headers={"Location": "A signed URL."}),
                304: Answer("Not changed."),
            },
            problems=(404, 416, 422),
        ),
        Route(
            "GET", "/v1/jobs/{id}/archive", assets.archive, "Fetch all files of a job as a zip", "assets",
            description="Listing images are named as Amazon wants them: SKU.MAIN.jpg, SKU.PT01.jpg …",
            answers={200: Answer("A zip.", picture, content_type="application/zip")},
            problems=(404,),
        ),
    ]  # fmt: skip
