"""`listingd demo`: one photo in, a listing out, through the same doors a customer uses.

    photo ──upload──▶ run_service ◀──events── bars          all in this process, on a free port,
    facts ──pack, aplus──▶  │  ──assets──▶ folder             with a Postgres and a state dir of its own

Nothing of an installed service is touched: provider keys and limits come from the settings, the database,
the storage and the address do not. A result is written only when every job has completed; what an earlier
demo left in the folder is removed first.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
import signal
import time
import zipfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import ValidationError
from rich.console import Console

from daemon import logs
from daemon.client import Client, Target, open_client
from daemon.demo_folder import DemoFolder, open_folder
from daemon.demo_page import Aplus, Listing, Picture, Timing, render_page
from daemon.demo_report import print_failures, print_table
from daemon.errors import InvalidInput, ListingdError, Misconfigured, TooLarge
from daemon.imaging import codec
from daemon.payloads import PACK_SLOTS, Product
from daemon.progress import JobBars
from daemon.service import run_service
from daemon.settings import Auth, Http, Settings, Storage

SAMPLE = ("sample_photo.jpg", "sample_photo_angle.jpg", "sample_product.json")
LOG_NAME = "demo.log"
_OTHER_RELEASE = frozenset({"schema_changed", "schema_newer"})
_SHOWN_PX = 1000  # width of the pictures inside the page; the files beside it are whole
_EXAMPLE_BULLETS = (
    "Benefit (example): what it does for the buyer",
    "Material (example): what it is made of",
    "Use (example): where and when it is used",
    "Care (example): how it is kept in good condition",
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Subject:
    """What the demo is about. product: input field of the jobs; made_up: the facts are ours, not a seller's."""

    name: str
    photo: bytes
    info: codec.PictureInfo
    views: tuple[bytes, ...]
    product: Mapping[str, Any]
    made_up: bool


def examples_dir() -> Path:
    """The directory `examples`: inside the package in a wheel, beside it in a checkout."""
    packaged = Path(__file__).parent / "_examples"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "examples"


def read_subject(photo: Path | None, facts: Path | None, *, max_bytes: int) -> Subject:
    """The photo and its facts, both proven usable before anything is started.

    Without a photo the sample with its second view; without facts neutral ones that say they are examples.
    Errors: Misconfigured (missing files, wrong facts); InvalidInput, UnsupportedMedia, TooLarge (photo).
    """
    sample, angle, sample_facts = (examples_dir() / name for name in SAMPLE)
    path = photo or sample
    data = _read_file(path, "photo", max_bytes)
    info = codec.inspect(data)
    views = () if photo else (_read_file(angle, "photo", max_bytes),)
    if facts is None and photo is None:
        facts = sample_facts
    product = _make_up_facts(path) if facts is None else _read_facts(facts)
    return Subject(path.name, data, info, views, product, made_up=facts is None)


def plan_settings(settings: Settings) -> Settings:
    """The demo's own database, storage and address under STATE_DIR/demo; the rest as configured."""
    http = settings.http
    own_http = Http(port=0, max_body_bytes=http.max_body_bytes, max_upload_bytes=http.max_upload_bytes)
    return settings.model_copy(
        update={
            "state_dir": settings.state_dir / "demo",
            "instance": "demo",
            "database_url": None,
            "listen_database_url": None,
            "service_key": None,
            "storage_url": None,
            "storage": Storage(),
            "auth": Auth(),
            "http": own_http,
            # Nothing of worth is running when the demo is stopped by hand.
            "workers": settings.workers.model_copy(update={"soft_stop_s": 0.5, "hard_stop_s": 3.0}),
        }
    )


async def run_demo(settings: Settings, subject: Subject, out: Path, console: Console) -> bool:
    """Run it all; whether everything completed. settings: as `plan_settings` gives them.

    Errors: Misconfigured, Unavailable; asyncio.CancelledError after SIGTERM. Everything is stopped then.
    """
    began = time.monotonic()

    async def make(client: Client) -> bool:
        return await _make(client, subject, folder, console, began)

    with _stop_on_signals(), open_folder(out) as folder, _log_into(settings, folder):
        try:
            try:
                return await _with_service(settings, make, console)
            except Misconfigured as exc:
                if exc.code not in _OTHER_RELEASE:
                    raise
                # What another release of the demo left is worth nothing, and it would be in the way for ever.
                await asyncio.to_thread(shutil.rmtree, settings.state_dir)
                return await _with_service(settings, make, console)
        except BaseException:
            folder.clear(keep=(LOG_NAME,))
            raise


async def _with_service(
    settings: Settings, act: Callable[[Client], Awaitable[bool]], console: Console
) -> bool:
    """Run `act(client)` against a daemon of our own; an error in it stops the daemon in good order first."""
    began = time.monotonic()
    console.print("[dim]Starting PostgreSQL and the daemon …[/]")
    failure: ListingdError | None = None
    made = False
    async with run_service(settings) as service:
        console.print(f"[green]✓[/] listingd is up at {service.url} after {time.monotonic() - began:.1f} s\n")
        # Errors are carried out by hand: the task group of the service would wrap them.
        try:
            async with open_client(Target(service.url, service.service_key)) as client:
                made = await act(client)
        except ListingdError as exc:
            failure = exc
    if failure is not None:
        raise failure
    return made


async def _make(client: Client, subject: Subject, folder: DemoFolder, console: Console, began: float) -> bool:
    """Upload, enqueue, watch, fetch, write."""
    await _cancel_leftovers(client)
    photo, *views = [{"upload_id": await client.upload(data)} for data in (subject.photo, *subject.views)]
    asked = {"photo": photo, "photos": views, "product": subject.product}
    created = {kind: await client.create_job(kind, asked) for kind in ("pack", "aplus")}
    with JobBars(console) as bars:

        async def follow(kind: str, label: str) -> dict[str, Any]:
            job: dict[str, Any] = {}
            async for job in client.watch_job(created[kind]["id"]):
                bars.show(job, label)
            return job

        pack, aplus = await _all(follow("pack", "pack"), follow("aplus", "A+ content"))
    if not all(job["state"] == "completed" for job in (pack, aplus)):
        print_failures(console, (pack, aplus))
        return False
    listing = await _fetch(client, subject, pack, aplus, began)
    files = await _write(client, folder, listing)
    print_table(console, listing, folder.path, files, time.monotonic() - began)
    return not listing.has_failed_checks


async def _cancel_leftovers(client: Client) -> None:
    """End what a demo that was killed has left in the queue: it would run beside this one."""
    page = await client.call("GET", "/v1/jobs", query={"state": "pending,processing,waiting", "limit": "100"})
    for job in page["data"]:
        if job["parent_id"] is None:
            await client.call("POST", f"/v1/jobs/{job['id']}/cancel")


async def _fetch(
    client: Client, subject: Subject, pack: Mapping[str, Any], aplus: Mapping[str, Any], began: float
) -> Listing:
    """Everything that is shown, from the API."""
    order = {slot: place for place, slot in enumerate(PACK_SLOTS)}
    items = await _all(*(client.read_job(item["id"]) for item in pack["items"]))
    pictures = []
    for item in sorted(items, key=lambda item: order.get(item["slot"], len(order))):
        (asset,) = [asset for asset in item["assets"] if asset["role"] == "image"]
        data, shown = await _all(
            client.download(asset["url"]), client.download(f"{asset['url']}?w={_SHOWN_PX}")
        )
        pictures.append(Picture(asset, item["result"], data, shown, Timing.of(asset["slot"], item)))
    preview = await client.download(f"/v1/assets/{aplus['result']['preview_asset_id']}")
    images = [asset for asset in aplus["assets"] if asset["role"] == "aplus_image"]
    datas = await _all(*(client.download(asset["url"]) for asset in images))
    shown, _ = await asyncio.to_thread(codec.thumbnail, subject.photo, _SHOWN_PX)
    return Listing(
        photo_name=subject.name,
        photo_size=(subject.info.width_px, subject.info.height_px),
        photo=shown,
        views=len(subject.views),
        product=subject.product,
        made_up=subject.made_up,
        pictures=tuple(pictures),
        aplus=Aplus(
            document=aplus["result"]["document"],
            raw_checks=tuple(aplus["result"]["checks"]),
            provider=aplus["result"]["provider"],
            files=tuple((_base_name(a["file_name"]), d) for a, d in zip(images, datas, strict=True)),
            preview=preview,
            timing=Timing.of("aplus", aplus),
        ),
        pack_timing=Timing.of("pack", pack),
        total_s=time.monotonic() - began,
    )


async def _write(client: Client, folder: DemoFolder, listing: Listing) -> int:
    """Write the folder; the number of files in the zip."""
    document = json.dumps(listing.aplus.document, ensure_ascii=False, indent=2).encode()
    files = {picture.file_name: picture.data for picture in listing.pictures}
    files |= {f"aplus/{name}": data for name, data in listing.aplus.files}
    files |= {"aplus/document.json": document + b"\n", "aplus/preview.html": listing.aplus.preview}
    for name, data in files.items():
        folder.write(name, data)
    folder.write("listing.zip", await asyncio.to_thread(_zip, files))
    folder.write("index.html", await asyncio.to_thread(render_page, listing))
    return len(files)


def _zip(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, time.localtime()[:6]), data)
    return buffer.getvalue()


async def _all(*asked: Awaitable[T]) -> list[T]:
    """The results of all; the first error ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_await(one), name="demo") for one in asked]
    except BaseExceptionGroup as exc:
        raise exc.exceptions[0] from None
    return [task.result() for task in tasks]


async def _await(asked: Awaitable[T]) -> T:
    return await asked


@contextmanager
def _stop_on_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal cancel this task, as Ctrl-C does: the daemon and Postgres are stopped."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    signals = (signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


@contextmanager
def _log_into(settings: Settings, folder: DemoFolder) -> Iterator[None]:
    """Log lines go to a file in the folder: on the terminal they would garble the bars."""
    with folder.write(LOG_NAME, b"").open("ab") as file:
        writer = logs.configure(settings, descriptor=file.fileno())
        try:
            yield
        finally:
            writer.close()


def _read_file(path: Path, what: str, max_bytes: int) -> bytes:
    try:
        if path.stat().st_size > max_bytes:
            raise TooLarge(f"{path} is too large: a {what} may have {max_bytes >> 20} MiB.")
        return path.read_bytes()
    except OSError as exc:
        raise Misconfigured(
            f"The {what} {path} cannot be read: {exc.strerror}.", hint="Check the path."
        ) from exc


def _read_facts(path: Path) -> Mapping[str, Any]:
    """Errors: Misconfigured, InvalidInput."""
    text = _read_file(path, "facts file", 1 << 20)
    try:
        product = Product.model_validate_json(text)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InvalidInput(
            f"The facts in {path} are not valid: {where}: {first['msg']}.",
            hint="A JSON object with title, brand, bullets, category, dimensions, in_the_box, sku; "
            f"like {examples_dir() / SAMPLE[2]}.",
        ) from None
    return product.model_dump(mode="json", exclude_none=True)


def _make_up_facts(photo: Path) -> Mapping[str, Any]:
    """Facts that claim nothing: the file's name as title, examples that say so, no measures."""
    words = re.findall(r"[A-Za-z0-9]+", photo.stem) or ["product"]
    title = " ".join(words)[:60]
    return {
        "title": f"{title[:1].upper()}{title[1:]} (example title)",
        "brand": "Example brand",
        "sku": "-".join(words).upper()[:40],
        "bullets": list(_EXAMPLE_BULLETS),
        "in_the_box": ["The product (example)", "A second part (example)"],
    }


def _base_name(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name
