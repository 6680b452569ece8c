"""Uploads, assets, thumbnails, archives, projects."""

from __future__ import annotations

import asyncio
import io
import struct
import zipfile
import zlib
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import aiohttp
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image
from pydantic import SecretStr
from yarl import URL

from daemon.db import Database
from daemon.errors import Unavailable
from daemon.settings import Http, Settings
from daemon.settings import Storage as StorageSettings
from daemon.storage import open_storage
from tests.api.application import IMAGE_JOB, SERVICE_KEY, Api, picture, running_api

JPEG = {"Content-Type": "image/jpeg"}


async def test_upload_is_stored_under_what_it_is(api: Api) -> None:
    """A PNG named .jpg is a PNG."""
    data = picture(image_format="PNG")

    status, upload, _ = await api.call("POST", "/v1/uploads", data=io.BytesIO(data), headers=JPEG)

    assert 201 == status
    assert ("image/png", 60, 40, len(data)) == tuple(
        upload[k] for k in ("content_type", "width_px", "height_px", "bytes")
    )
    assert data == await api.deps.storage.get(upload["sha256"])


async def test_form_upload_takes_the_first_file(api: Api) -> None:
    form = aiohttp.FormData()
    form.add_field("note", "hello")
    form.add_field("photo", picture(), filename="../../etc/passwd", content_type="text/plain")

    status, upload, _ = await api.call("POST", "/v1/uploads", data=form)

    assert (201, "image/jpeg") == (status, upload["content_type"])


async def test_user_may_upload_only_for_themselves(api: Api) -> None:
    own, _, _ = await api.call("POST", "/v1/uploads", data=picture(), headers=JPEG, user="ann")
    foreign, problem, _ = await api.call(
        "POST", "/v1/uploads?user_id=bob", data=picture(), headers=JPEG, user="ann"
    )
    served, _, _ = await api.call("POST", "/v1/uploads?user_id=bob", data=picture(), headers=JPEG)

    assert (201, 422, "acts_for_itself", 201) == (own, foreign, problem["code"], served)


async def test_upload_with_a_key_is_made_once(api: Api) -> None:
    headers = JPEG | {"Idempotency-Key": "photo-1"}

    _, first, _ = await api.call("POST", "/v1/uploads", data=picture(), headers=headers)
    _, again, replay = await api.call("POST", "/v1/uploads", data=picture(), headers=headers)
    status, problem, _ = await api.call("POST", "/v1/uploads", data=picture(70), headers=headers)
    refused, _, _ = await api.call(
        "POST", "/v1/uploads", data=picture(), headers=JPEG | {"Idempotency-Key": "a b"}
    )

    assert first == again
    assert "true" == replay.headers["Idempotency-Replayed"]
    assert (422, "idempotency_key_reused", 422) == (status, problem["code"], refused)


def _bomb() -> bytes:
    """A PNG of 13 300 x 13 300 pixels in 21 KB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes((13_300 // 8 + 2) * 13_300), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 13_300, 13_300, 1, 0, 0, 0, 0)) + chunk(
        b"IDAT", rows
    ) + chunk(b"IEND", b"")  # fmt: skip


async def test_unusable_photos_are_refused_with_what_to_do(api: Api) -> None:
    frames = io.BytesIO()
    stills = [Image.new("RGB", (20, 20), (n, n, n)) for n in (0, 90, 200)]
    stills[0].save(frames, "WEBP", save_all=True, append_images=stills[1:])
    cases = [
        (b"", 422, "image_empty"),
        (b"hello, I am a text", 415, "image_unrecognised"),
        (b"GIF89a" + b"\0" * 100, 415, "image_format"),
        (_bomb(), 413, "image_pixels"),
        (frames.getvalue(), 415, "image_animated"),
        (picture()[:120], 422, "image_truncated"),
    ]

    for data, expected, code in cases:
        status, problem, _ = await api.call("POST", "/v1/uploads", data=data, headers=JPEG)
        assert (expected, code) == (status, problem["code"]), problem


async def test_upload_over_the_limit_is_cut_while_it_streams(api: Api) -> None:
    async def endless() -> object:
        for _ in range(40):
            yield bytes(1 << 20)

    status, problem, _ = await api.call("POST", "/v1/uploads", data=endless(), headers=JPEG)

    assert (413, "too_large") == (status, problem["code"])


async def test_broken_forms_are_refused(api: Api) -> None:
    cases = [
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=b", b"nothing of that kind", 400),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--b--\r\n',
            422,
        ),
        ("multipart/form-data; boundary=b", b"--b\r\n[no, header]: \r\n\r\nx\r\n--b--\r\n", 400),
        ("text/html", b"x", 415),
    ]

    for content_type, body, expected in cases:
        status, problem, _ = await api.call(
            "POST", "/v1/uploads", data=body, headers={"Content-Type": content_type}
        )
        assert expected == status, problem


async def test_asset_comes_whole_in_parts_and_not_again(api: Api) -> None:
    job, data = await api.create(), picture()
    asset = await api.add_asset(UUID(job["id"]), data)
    path = f"/v1/assets/{asset}"

    status, body, response = await api.call("GET", path)
    tag = response.headers["ETag"]
    part, some, partial = await api.call("GET", path, headers={"Range": "bytes=2-5"})
    tail, last, _ = await api.call("GET", path, headers={"Range": "bytes=-3"})
    beyond, problem, short = await api.call("GET", path, headers={"Range": "bytes=999999-"})
    same, _, _ = await api.call("GET", path, headers={"If-None-Match": tag})
    head, nothing, sized = await api.call("HEAD", path)

    assert (200, data, "image/jpeg") == (status, body, response.content_type)
    assert 'inline; filename="product.MAIN.jpg"' == response.headers["Content-Disposition"]
    assert "nosniff" == response.headers["X-Content-Type-Options"]
    assert (206, data[2:6], f"bytes 2-5/{len(data)}") == (part, some, partial.headers["Content-Range"])
    assert (206, data[-3:], 416, 304) == (tail, last, beyond, same)
    assert ("range_unsatisfiable", f"bytes */{len(data)}") == (
        problem["code"],
        short.headers["Content-Range"],
    )
    assert (200, b"", str(len(data))) == (head, nothing, sized.headers["Content-Length"])


async def test_a_store_that_fails_in_the_middle_of_a_file_cuts_it_and_writes_nothing_into_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A problem document there would be read as the rest of the picture."""
    job = await api.create()
    asset = await api.add_asset(UUID(job["id"]), picture())
    first = b"the first bytes"

    async def fail_in_the_middle(*_: object) -> AsyncIterator[bytes]:
        yield first
        raise Unavailable("The disk is gone.")

    monkeypatch.setattr(api.deps.storage, "stream", fail_in_the_middle)
    url = URL(api.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        f"GET /v1/assets/{asset} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SERVICE_KEY}\r\n\r\n".encode()
    )

    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n" + first)


async def test_odd_ranges_get_everything(api: Api) -> None:
    job, data = await api.create(), picture()
    asset = await api.add_asset(UUID(job["id"]), data)

    for given in ("bytes=5-2", "bytes=0-1,3-4", "lines=1-2", "bytes=-", "bytes=" + "9" * 30 + "-"):
        status, body, _ = await api.call("GET", f"/v1/assets/{asset}", headers={"Range": given})
        assert (200, data) == (status, body), given


async def test_asset_in_an_object_store_is_a_redirect_to_a_signed_url(
    settings: Settings, db: Database
) -> None:
    """The bytes go from the store to the client; the thumbnail is made here."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    await asyncio.to_thread(server.start)
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    own = settings.model_copy(
        update={
            "http": Http(port=0), "storage_url": "s3://pictures/some/prefix",
            "storage": StorageSettings(endpoint=endpoint, access_key=SecretStr("key"), secret_key=SecretStr("secret")),
        }
    )  # fmt: skip
    try:
        async with aiohttp.ClientSession() as client:
            (await client.put(f"{endpoint}/pictures")).raise_for_status()
            async with running_api(own, db, await open_storage(own)) as api:
                job = await api.create()
                data = picture(400, 300)
                path = f"/v1/assets/{await api.add_asset(UUID(job['id']), data)}"
                status, _, response = await api.call("GET", path)
                small, thumbnail, _ = await api.call("GET", f"{path}?w=64")
            async with client.get(response.headers["Location"]) as signed:
                fetched = await signed.read()
    finally:
        await asyncio.to_thread(server.stop)

    assert (302, 200) == (status, small)
    assert "X-Amz-Signature=" in response.headers["Location"]
    assert "no-store" == response.headers["Cache-Control"]
    assert data == fetched
    assert len(thumbnail) < len(data)


async def test_thumbnail_is_small_and_steps_bound_the_variants(api: Api) -> None:
    job = await api.create()
    asset = await api.add_asset(UUID(job["id"]), picture(1200, 800))
    await api.execute("update listingd.assets set width_px = 1200")

    _, body, response = await api.call("GET", f"/v1/assets/{asset}?w=200")
    wrong, _, _ = await api.call("GET", f"/v1/assets/{asset}?w=99999")

    assert 422 == wrong
    assert (320, 213) == Image.open(io.BytesIO(body)).size
    assert response.headers["ETag"].endswith('-320"')


async def test_html_is_never_shown_inside_our_origin(api: Api) -> None:
    job = await api.create()
    asset = await api.add_asset(UUID(job["id"]), b"<script>alert(1)</script>")
    await api.execute(
        "update listingd.assets set content_type = 'text/html', role = 'preview', file_name = 'é\"x.html'"
    )

    _, _, response = await api.call("GET", f"/v1/assets/{asset}")

    assert response.headers["Content-Disposition"].startswith(
        'attachment; filename="_x.html"; filename*=UTF-8'
    )
    assert "sandbox" in response.headers["Content-Security-Policy"]


async def test_archive_names_files_as_amazon_wants(api: Api) -> None:
    body = IMAGE_JOB | {"input": IMAGE_JOB["input"] | {"product": {"title": "Chair", "sku": "OAK-7"}}}
    _, job, _ = await api.call("POST", "/v1/jobs", json=body)
    for slot in ("main", "lifestyle"):
        await api.add_asset(UUID(job["id"]), picture(60 if slot == "main" else 70), slot=slot)

    status, data, response = await api.call("GET", f"/v1/jobs/{job['id']}/archive")

    assert (200, "application/zip") == (status, response.content_type)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert ["OAK-7.MAIN.jpg", "OAK-7.PT02.jpg"] == sorted(archive.namelist())
        assert archive.testzip() is None


async def test_an_archive_is_sent_while_it_is_made(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whole in memory it stayed there, twice, until the slowest reader had it."""
    body = IMAGE_JOB | {"input": IMAGE_JOB["input"] | {"product": {"title": "Chair", "sku": "OAK-7"}}}
    _, job, _ = await api.call("POST", "/v1/jobs", json=body)
    pictures = [picture(60), picture(70), picture(80)]
    for slot, data in zip(("main", "lifestyle", "detail"), pictures, strict=True):
        await api.add_asset(UUID(job["id"]), data, slot=slot)
    get, first_seen, asked = api.deps.storage.get, asyncio.Event(), 0

    async def wait_after_the_first(sha256: str) -> bytes:
        nonlocal asked
        asked += 1
        if asked > 1:
            await first_seen.wait()
        return await get(sha256)

    monkeypatch.setattr(api.deps.storage, "get", wait_after_the_first)

    async with asyncio.timeout(10), api.client.get(f"{api.url}/v1/jobs/{job['id']}/archive") as response:
        begun = b""
        while not any(data in begun for data in pictures):
            begun += await response.content.readany()
        first_seen.set()
        whole = begun + await response.read()

    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        assert archive.testzip() is None
        assert sorted(pictures) == sorted(archive.read(name) for name in archive.namelist())
        assert not any(member.flag_bits for member in archive.infolist())


async def test_project_shows_its_pictures_and_counts(api: Api) -> None:
    project = str(uuid4())
    job = await api.create(user="ann", project_id=project)
    asset = await api.add_asset(UUID(job["id"]), picture(), user_id="ann")
    await api.execute("update listingd.assets set project_id = $1", UUID(project))

    status, shown, _ = await api.call("GET", f"/v1/projects/{project}", user="ann")

    assert (200, "working", 1) == (status, shown["status"], shown["jobs"]["pending"])
    assert [(str(asset), f"/v1/assets/{asset}")] == [(i["id"], i["url"]) for i in shown["images"]]
