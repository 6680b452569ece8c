"""One attempt of one job: the JobContext that handlers get.

    handler ──▶ Attempt ──▶ steps (ledger, lanes)   what costs money
                       ├──▶ storage, assets         what is kept
                       ├──▶ pixel threads           what costs time
                       └──▶ progress                what is seen

An Attempt is made for every claimed job, the no-op ones too, so it only stores and does the rest when asked.
Every write names the attempt's fence: when it matches no row, Lost is raised and the handler must end.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import ValidationError

from daemon.db import Database
from daemon.errors import (
    FieldError,
    InvalidInput,
    ListingdError,
    Lost,
    NotFound,
    ProviderError,
    Reject,
    TooLarge,
    Unavailable,
    UnsupportedMedia,
)
from daemon.handlers.context import Asset, Handler, JobContext, StepValue
from daemon.jobs import ChildJob, ClaimedJob, Took, new_id
from daemon.later import later
from daemon.ledger import encode_json
from daemon.payloads import INNER_INPUTS, INPUTS, Payload, PhotoRef
from daemon.pixels import PixelPool
from daemon.providers.guard import fetch_bytes
from daemon.providers.protocols import Providers
from daemon.queue import Queue
from daemon.settings import Settings
from daemon.steps import Steps
from daemon.storage import Storage

if TYPE_CHECKING:
    from daemon.imaging import codec
else:
    codec = later("daemon.imaging.codec")


@dataclass(frozen=True, slots=True)
class Services:
    """What every attempt of this process shares.

    pixels: the bounded threads for image work; worker_id: the row of listingd.workers that claims are on;
    report_progress: keeps the latest report of a fence and writes them in batches.
    """

    db: Database
    queue: Queue
    storage: Storage
    steps: Steps
    providers: Providers
    settings: Settings
    pixels: PixelPool
    worker_id: Callable[[], int | None]
    report_progress: Callable[[int, Mapping[str, Any]], None]


class Attempt:
    """Implements handlers.context.JobContext for one claimed job."""

    __slots__ = ("_children", "_input", "_job", "_services", "took")

    def __init__(self, job: ClaimedJob, services: Services) -> None:
        self._job = job
        self.took: Took | None = None
        self._services = services
        self._input: Payload | None = None
        self._children: Sequence[ChildJob] | None = None

    @property
    def job_id(self) -> UUID:
        return self._job.id

    @property
    def kind(self) -> str:
        return self._job.kind

    @property
    def user_id(self) -> str:
        return self._job.user_id

    @property
    def project_id(self) -> UUID | None:
        return self._job.project_id

    @property
    def parent_id(self) -> UUID | None:
        return self._job.parent_id

    @property
    def attempt(self) -> int:
        return self._job.attempt

    @property
    def input(self) -> Payload:
        """The validated input. Errors: InvalidInput (a job enqueued by SQL was never looked at before)."""
        if self._input is None:
            self._input = read_input(self._job.kind, self._job.input_text)
        return self._input

    @property
    def children(self) -> Sequence[ChildJob] | None:
        return self._children

    @property
    def providers(self) -> Providers:
        return self._services.providers

    async def load_children(self) -> None:
        """Read what earlier runs spawned; see `with_children`."""
        self._children = await self._services.queue.read_children(self._job.id) or None

    def progress(self, done: int, total: int, stage: str, message: str = "") -> None:
        report = {"done": done, "total": total, "stage": stage, "message": message}
        self._services.report_progress(self._job.fence, report)

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)

    async def in_thread(self, work: Callable[..., Any], /, *args: Any, first: bool = False, **kw: Any) -> Any:
        return await self._services.pixels.run(work, *args, first=first, **kw)

    async def step(
        self,
        name: str,
        *,
        provider: str,
        identity: Sequence[str],
        estimate_usd: Decimal,
        call: Callable[[], Awaitable[StepValue]],
        rate_cost: float = 1.0,
    ) -> StepValue:
        return await self._services.steps.run(
            self._job, name, provider=provider, identity=identity, estimate_usd=estimate_usd, call=call,
            rate_cost=rate_cost, took=self._account(),
        )  # fmt: skip

    async def load_photo(self, ref: PhotoRef) -> bytes:
        data = await (self._fetch_photo(ref.url) if ref.url is not None else self._read_photo(ref))
        try:
            # Headers alone: not a matter of the pixel threads.
            await asyncio.to_thread(lambda: codec.inspect(data))
        except (InvalidInput, TooLarge, UnsupportedMedia) as exc:
            raise Reject(exc.message, code="photo_unusable", hint=exc.hint, data=exc.data) from exc
        return data

    async def _read_photo(self, ref: PhotoRef) -> bytes:
        sha256 = await self._services.db.fetchval(
            "find_photo", self._job.user_id, ref.upload_id, ref.asset_id
        )
        if sha256 is not None:
            try:
                return await self._services.storage.get(sha256)
            except NotFound as exc:
                raise _photo_missing() from exc
        raise _photo_missing()

    async def _fetch_photo(self, url: str) -> bytes:
        """Errors: Reject for what stays wrong; ProviderError, which the worker retries, for what may pass."""
        settings = self._services.settings
        try:
            return await fetch_bytes(
                url,
                max_bytes=settings.http.max_upload_bytes,
                deadline_s=settings.fetch.timeout_s,
                allowed=[ip_network(network) for network in settings.fetch.allowed_private_networks],
            )
        except ProviderError as exc:
            if exc.fate == "permanent":
                raise Reject(
                    exc.message, code="photo_unusable", hint=exc.hint, data={"reason": exc.code}
                ) from exc
            raise

    async def save_asset(
        self,
        data: bytes,
        *,
        role: str,
        content_type: str,
        slot: str | None = None,
        width_px: int | None = None,
        height_px: int | None = None,
        checks: Sequence[Mapping[str, Any]] = (),
        generated: bool = False,
        provider: str = "",
        derived: str = "",
        file_name: str | None = None,
    ) -> Asset:
        sha256 = await self._services.storage.put(data, content_type)
        told = encode_json(list(checks))
        asset = Asset(
            new_id(), slot, role, content_type, width_px, height_px, len(data), sha256, generated,
            tuple(json.loads(told)), provider, derived,
        )  # fmt: skip
        version = await self._services.db.fetchval(
            "save_asset", self._job.fence, self._find_worker(), asset.id, slot, role, content_type, len(data),
            width_px, height_px, sha256, file_name, told, generated, provider, derived,
        )  # fmt: skip
        if version is None:
            raise Lost("The attempt was no longer ours when a file was to be attached.")
        self._account().bytes += len(data)
        return asset

    async def save_document(self, locale: str, document: Mapping[str, Any]) -> None:
        saved = await self._services.db.fetchval(
            "save_aplus_content",
            self._job.fence,
            self._find_worker(),
            new_id(),
            locale,
            encode_json(document),
        )
        if saved is None:
            raise Lost("The attempt was no longer ours when its document was to be kept.")

    async def find_asset(self, role: str, slot: str | None) -> Asset | None:
        row = await self._services.db.fetchrow("find_asset", self._job.id, role, slot)
        return None if row is None else Asset(**{**row, "checks": tuple(json.loads(row["checks"]))})

    def _account(self) -> Took:
        if self.took is None:
            self.took = Took()
        return self.took

    def _find_worker(self) -> int:
        worker = self._services.worker_id()
        if worker is None:
            raise Unavailable("This process has no lease.", data={"retry_after_s": 1})
        return worker


def with_children(handler: Handler) -> Handler:
    """A handler that finds what it spawned before in `ctx.children`: for the kinds that fan out."""

    async def handle(ctx: JobContext) -> Any:
        if isinstance(ctx, Attempt):
            await ctx.load_children()
        return await handler(ctx)

    return handle


def read_input(kind: str, text: str) -> Payload:
    """The input of a job of this kind. Errors: InvalidInput, which names each wrong field."""
    model = INPUTS.get(kind) or INNER_INPUTS.get(kind)
    if model is None:
        raise InvalidInput(f"A job of kind {kind} has no input to read.", code="kind_unknown")
    try:
        return model.model_validate_json(text)
    except ValidationError as exc:
        if exc.errors(include_input=False)[0]["type"] == "json_invalid":  # numbers or nesting without end
            raise InvalidInput("The job's input cannot be read.", code="input_unreadable") from None
        errors = [
            FieldError("/" + "/".join(str(part) for part in e["loc"]), e["type"], e["msg"])
            for e in exc.errors(include_input=False, include_url=False)
        ]
        raise InvalidInput(
            "The job's input does not fit its kind.", errors=errors
        ) from None  # no input in logs


def _photo_missing() -> ListingdError:
    return Reject("The photo is not there.", code="photo_missing", hint="Upload it again.")
