"""What a handler may do: the JobContext. Handlers know no HTTP, no SQL and no vendor SDK.

A handler is `async def handle(ctx) -> result | FannedOut` and ends in one of four ways: it returns a
JSON-able result (or FannedOut, to be run again when its children have ended), raises Retry, raises
Reject, or is cancelled. ProviderError may pass through it untouched: the worker reads its fate.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol
from uuid import UUID

from daemon.jobs import ChildJob, FannedOut, Took
from daemon.payloads import Payload
from daemon.providers.protocols import Providers, RateHint, Usage


@dataclass(frozen=True, slots=True)
class StepValue:
    """What a step leaves behind: bytes (kept in storage by their hash), a JSON document, or both."""

    usage: Usage = field(default_factory=Usage)
    data: bytes | None = None
    content_type: str = "application/octet-stream"
    document: Mapping[str, Any] | None = None
    model: str = ""
    request_id: str | None = None
    reused: bool = False  # an earlier call's stored result: nothing was called or paid now
    rate: RateHint | None = None  # what the answer said about the provider's rate, for its lane


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of a job, as saved.

    role: "image" (a listing image), "aplus_image", "preview" (HTML or a draft), "partial";
    checks: the marketplace checks as JSON objects {rule, outcome, measured, limit, detail};
    generated: True when a model invented pixels; provider: who made it; derived: how, in words.
    """

    id: UUID
    slot: str | None
    role: str
    content_type: str
    width_px: int | None
    height_px: int | None
    size_bytes: int
    sha256: str
    generated: bool
    checks: tuple[Mapping[str, Any], ...] = ()
    provider: str = ""
    derived: str = ""


class JobContext(Protocol):
    """One attempt of one job, with what it may touch."""

    @property
    def job_id(self) -> UUID: ...

    @property
    def kind(self) -> str: ...

    @property
    def user_id(self) -> str: ...

    @property
    def project_id(self) -> UUID | None: ...

    @property
    def parent_id(self) -> UUID | None: ...

    @property
    def took(self) -> Took | None:
        """What its calls took and its files weigh, for the log; None without any."""
        ...

    @property
    def attempt(self) -> int:
        """From 1."""
        ...

    @property
    def input(self) -> Payload:
        """The validated input: ImageInput for kind `image`, and so on."""
        ...

    @property
    def children(self) -> Sequence[ChildJob] | None:
        """None on the first run; the ended children on the run after FannedOut."""
        ...

    @property
    def providers(self) -> Providers: ...

    def progress(self, done: int, total: int, stage: str, message: str = "") -> None:
        """Report where the work stands. Cheap, never waits; reports of one moment are merged."""
        ...

    async def load_photo(self, ref: Any) -> bytes:
        """The bytes behind a payloads.PhotoRef, already checked as a safe picture.

        Errors: Reject (code photo_missing, photo_unusable), Retry when a URL answers with a passing error.
        """
        ...

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
        """Run a costly call once. The ledger's whole protocol is behind this: reserve, intent, call,
        store, settle.

        name: short, for progress and logs ("cutout", "paint:lifestyle"); identity: every string that
        decides the answer (hashes of the inputs, provider fingerprint, prompt version). The same identity
        of the same user gives the stored result without calling; a second one in flight waits for the first.
        rate_cost: how many of the provider's calls a minute this one takes.
        Errors: ProviderError as the call raised it; Retry when the budget is spent or the lane is closed.
        """
        ...

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
        """Store a finished file and attach it to the job, fenced. Errors: Lost."""
        ...

    async def save_document(self, locale: str, document: Mapping[str, Any]) -> None:
        """Keep the job's A+ document for its project, fenced. Errors: Lost."""
        ...

    async def find_asset(self, role: str, slot: str | None) -> Asset | None:
        """The asset an earlier attempt already saved for this role and slot, or None."""
        ...

    async def in_thread(self, work: Callable[..., Any], /, *args: Any, first: bool = False, **kw: Any) -> Any:
        """Run CPU work (over 5 ms) in the bounded pixel pool.

        first: a paid call waits for it, so it goes before the drawing of all jobs.
        """
        ...

    async def sleep(self, delay_s: float) -> None:
        """A stop-aware wait."""
        ...


Handler = Callable[[JobContext], Awaitable[Any | FannedOut]]
