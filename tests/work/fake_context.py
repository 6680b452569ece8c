"""A JobContext in memory: real pixels, real providers, no database.

Steps keep their values by identity like the ledger does, across contexts that share a `World`; so a second
FakeContext with the same world is a second attempt of the same job.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any
from uuid import UUID

from daemon.errors import Reject
from daemon.handlers.context import Asset, Providers, StepValue
from daemon.jobs import ChildJob, new_id
from daemon.payloads import Payload, PhotoRef


@dataclass(slots=True)
class World:
    """What outlives an attempt. photos: ref as JSON -> bytes; calls: names of the steps that really ran;
    calls_and_pixels: the same with a "first" or "pixels" for each piece of work in a thread."""

    photos: dict[str, bytes] = field(default_factory=dict)
    steps: dict[tuple[str, ...], StepValue] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    calls_and_pixels: list[str] = field(default_factory=list)
    assets: list[Asset] = field(default_factory=list)
    files: dict[UUID, bytes] = field(default_factory=dict)
    checks: dict[UUID, list[Mapping[str, Any]]] = field(default_factory=dict)
    names: dict[UUID, str | None] = field(default_factory=dict)
    documents: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def add_photo(self, data: bytes) -> PhotoRef:
        """A reference under which `load_photo` finds these bytes."""
        ref = PhotoRef(upload_id=new_id())
        self.photos[ref.model_dump_json()] = data
        return ref

    def asset(self, role: str, slot: str | None = None) -> Asset:
        """The one asset of this role and slot."""
        (found,) = [asset for asset in self.assets if (asset.role, asset.slot) == (role, slot)]
        return found


@dataclass(slots=True)
class FakeContext:
    """One attempt. Every property of JobContext is a field."""

    input: Payload
    providers: Providers
    world: World = field(default_factory=World)
    kind: str = "image"
    user_id: str = "user-1"
    project_id: UUID | None = None
    parent_id: UUID | None = None
    attempt: int = 1
    children: Sequence[ChildJob] | None = None
    job_id: UUID = field(default_factory=new_id)
    reports: list[tuple[int, int, str, str]] = field(default_factory=list)

    def progress(self, done: int, total: int, stage: str, message: str = "") -> None:
        self.reports.append((done, total, stage, message))

    async def load_photo(self, ref: Any) -> bytes:
        try:
            return self.world.photos[ref.model_dump_json()]
        except KeyError:
            raise Reject("There is no such photo.", code="photo_missing") from None

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
        assert rate_cost >= 1
        assert estimate_usd >= 0
        assert all(isinstance(part, str) for part in identity)
        key = (provider, *identity)
        if key in self.world.steps:
            return replace(self.world.steps[key], reused=True)
        self.world.calls.append(name)
        self.world.calls_and_pixels.append(name)
        value = await call()
        self.world.steps[key] = value
        return value

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
        asset = Asset(
            id=new_id(),
            slot=slot,
            role=role,
            content_type=content_type,
            width_px=width_px,
            height_px=height_px,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            generated=generated,
            checks=tuple(checks),
            provider=provider,
            derived=derived,
        )
        self.world.assets.append(asset)
        self.world.files[asset.id] = data
        self.world.checks[asset.id] = list(checks)
        self.world.names[asset.id] = file_name
        return asset

    async def save_document(self, locale: str, document: Mapping[str, Any]) -> None:
        self.world.documents[locale] = document

    async def find_asset(self, role: str, slot: str | None) -> Asset | None:
        found = [asset for asset in self.world.assets if (asset.role, asset.slot) == (role, slot)]
        return found[-1] if found else None

    async def in_thread(self, work: Callable[..., Any], /, *args: Any, first: bool = False, **kw: Any) -> Any:
        self.world.calls_and_pixels.append("first" if first else "pixels")
        return await asyncio.to_thread(work, *args, **kw)

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(0)
