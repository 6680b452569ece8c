"""Bodies, queries and answers of the API as pydantic models: they validate, and make the OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    RootModel,
    StringConstraints,
    TypeAdapter,
    ValidationInfo,
)

from daemon.payloads import AplusInput, ImageInput, PackInput, PingInput

MAX_BATCH = 1000
MAX_METADATA_BYTES = 16_384

StateName = Literal["pending", "processing", "waiting", "completed", "failed", "cancelled"]
Kind = Literal["image", "pack", "aplus", "ping"]
UserId = Annotated[
    str, StringConstraints(min_length=1, max_length=255), AfterValidator(lambda v: _printable(v))
]
Tag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:/=@+-]{1,64}$")]


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be printable")
    return value


def _storable_time(value: datetime) -> datetime:
    """Postgres and Python agree on these years; nothing is planned outside them."""
    if not 2000 <= value.year <= 2200:
        raise ValueError("must lie between the years 2000 and 2200")
    return value


def _after_run_at(value: datetime, info: ValidationInfo) -> datetime:
    run_at = info.data.get("run_at")
    if run_at is not None and value <= run_at:
        raise ValueError("must be later than run_at, else the job can never run")
    return value


_METADATA: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])  # 0.2 ms to build


def _small(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if len(_METADATA.dump_json(value)) > MAX_METADATA_BYTES:
        raise ValueError(f"must be at most {MAX_METADATA_BYTES} bytes as JSON")
    return value


Time = Annotated[AwareDatetime, AfterValidator(_storable_time)]
Metadata = Annotated[dict[str, JsonValue], AfterValidator(_small)]


class Body(BaseModel):
    """A request body: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Webhook(Body):
    """Where to tell of this job alone."""

    url: Annotated[
        str, StringConstraints(max_length=2000, pattern=r"^https?://[^\s]+$"), AfterValidator(_printable)
    ]
    events: tuple[
        Literal["job.completed", "job.failed", "job.cancelled", "job.started", "job.item_completed"], ...
    ] = Field(default=(), max_length=5)


class _Create(Body):
    project_id: UUID | None = None
    user_id: UserId | None = Field(None, description="For whom; only a service key may say.")
    priority: int = Field(0, ge=-100, le=100, description="Higher goes first among one user's jobs.")
    run_at: Time | None = Field(None, description="Not before this time.")
    expires_at: Annotated[Time, AfterValidator(_after_run_at)] | None = Field(
        None, description="Fails when it has not begun by then; later than `run_at`."
    )
    max_attempts: int | None = Field(None, ge=1, le=10)
    metadata: Metadata = Field(
        default_factory=dict, description="Yours; at most 16 KiB. Comes back with the job."
    )
    tags: tuple[Tag, ...] = Field((), max_length=20)
    webhook: Webhook | None = None


class CreateImage(_Create):
    """One listing image."""

    kind: Literal["image"]
    input: ImageInput


class CreatePack(_Create):
    """The complete pack."""

    kind: Literal["pack"]
    input: PackInput


class CreateAplus(_Create):
    """An A+ document with its images."""

    kind: Literal["aplus"]
    input: AplusInput


class CreatePing(_Create):
    """The self-test; needs the scope `admin`."""

    kind: Literal["ping"]
    input: PingInput


CreateJob = Annotated[CreateImage | CreatePack | CreateAplus | CreatePing, Field(discriminator="kind")]
CREATE: TypeAdapter[CreateImage | CreatePack | CreateAplus | CreatePing] = TypeAdapter(CreateJob)


class CreateBatch(Body):
    """Up to 1000 jobs in one transaction: all are created, or none."""

    jobs: tuple[CreateJob, ...] = Field(min_length=1, max_length=MAX_BATCH)


CREATE_BATCH: TypeAdapter[CreateBatch] = TypeAdapter(CreateBatch)


# -- queries ---------------------------------------------------------------------------------------


def _split(value: Any) -> Any:
    return tuple(value.split(",")) if isinstance(value, str) else value


def _spaces_are_plus(value: Any) -> Any:
    """`+01:00` written bare in a query string arrives as ` 01:00`."""
    return value.replace(" ", "+") if isinstance(value, str) and value[-6:-5] == " " else value


FieldName = Literal[
    "id", "kind", "state", "user_id", "project_id", "parent_id", "slot", "priority", "attempt", "max_attempts",
    "created_at", "run_at", "started_at", "finished_at", "expires_at", "cancel_requested", "progress",
    "queue_position", "input", "result", "error", "cost", "items", "assets", "metadata", "tags", "version",
    "links",
]  # fmt: skip
QueryTime = Annotated[Time, BeforeValidator(_spaces_are_plus)]


class Query(BaseModel):
    """A query string: unknown parameters are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class JobQuery(Query):
    fields: Annotated[tuple[FieldName, ...], BeforeValidator(_split), Field(min_length=1)] | None = Field(
        None, description="Only these fields of the job, comma-separated."
    )


class ListQuery(JobQuery):
    state: Annotated[tuple[StateName, ...], BeforeValidator(_split), Field(min_length=1)] | None = Field(
        None, description="One or several, comma-separated."
    )
    kind: Kind | None = None
    project_id: UUID | None = None
    parent_id: UUID | None = None
    tag: Tag | None = None
    user_id: UserId | None = Field(None, description="Only with a service key.")
    created_after: QueryTime | None = None
    created_before: QueryTime | None = None
    limit: int = Field(20, ge=1, le=100)
    cursor: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        None, description="`next_cursor` of the page before."
    )


class EventsQuery(Query):
    after: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,18}$")] | None = Field(
        None, description="Position to go on from; the header Last-Event-ID wins."
    )
    token: Annotated[str, StringConstraints(max_length=4096)] | None = Field(
        None, description="A read token."
    )


class StreamQuery(EventsQuery):
    project_id: UUID | None = None
    tag: Tag | None = None
    kind: Kind | None = None
    user_id: UserId | None = Field(None, description="Only with a service key.")


class AssetQuery(Query):
    w: int | None = Field(None, ge=16, le=2000, description="Width of a thumbnail, px.")
    download: bool = Field(False, description="Ask the browser to save the file.")


class UploadQuery(Query):
    user_id: UserId | None = Field(None, description="For whom; only a service key may say.")


class NoQuery(Query):
    """No parameters."""


# -- answers: what the views write, for the document and for tests ---------------------------------


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Progress(Answer):
    done: float
    total: float
    stage: str
    message: str = ""


class Check(BaseModel):
    """One marketplace check."""

    model_config = ConfigDict(extra="allow")
    rule: str
    outcome: str


class Asset(Answer):
    id: UUID
    job_id: UUID
    slot: str | None
    role: str
    content_type: str
    width_px: int | None
    height_px: int | None
    bytes: int
    sha256: str
    file_name: str | None
    checks: list[Check]
    generated: bool
    provider: str
    version: int
    url: str


class JobError(BaseModel):
    """A problem object with the attempts that did not complete."""

    model_config = ConfigDict(extra="allow")
    code: str
    message: str
    attempts: list[dict[str, Any]] = []


class ItemAsset(Answer):
    """The picture of an item; `assets` of the job has the rest."""

    id: UUID
    url: str


class Item(Answer):
    id: UUID
    slot: str | None
    state: StateName
    progress: dict[str, Any] | None
    error: dict[str, Any] | None
    asset: ItemAsset | None


class Cost(Answer):
    """US dollars. unknown_calls: paid calls whose outcome is not known."""

    estimated_usd: Decimal
    actual_usd: Decimal
    unknown_calls: int


class Links(Answer):
    self: str
    events: str
    cancel: str
    retry: str


class Job(Answer):
    """A job. With `fields` only those that were asked for are there."""

    id: UUID
    kind: str
    state: StateName
    user_id: str | None
    project_id: UUID | None
    parent_id: UUID | None
    slot: str | None
    priority: int
    attempt: int
    max_attempts: int
    created_at: datetime
    run_at: datetime | None
    started_at: datetime | None = Field(
        description="Of the latest attempt; of a pack: of its first item, since the latest retry."
    )
    finished_at: datetime | None
    expires_at: datetime | None
    cancel_requested: bool
    progress: dict[str, Any] | None
    queue_position: int | None
    input: Any
    result: Any
    error: JobError | None
    cost: Cost
    items: list[Item]
    assets: list[Asset]
    metadata: dict[str, Any]
    tags: list[str]
    version: int
    links: Links


class SomeOfJob(BaseModel):
    """The fields of a job that were asked for; all of them without `fields`."""

    model_config = ConfigDict(
        json_schema_extra=lambda schema: schema.update({"type": "object", "additionalProperties": True})
    )


class JobPage(Answer):
    data: list[SomeOfJob]
    next_cursor: str | None


class Batch(Answer):
    jobs: list[Job]


class Upload(Answer):
    upload_id: UUID
    sha256: str
    content_type: str
    bytes: int
    width_px: int
    height_px: int


class Project(Answer):
    id: UUID
    user_id: str | None
    name: str | None
    status: Literal["empty", "working", "ready", "failed"]
    created_at: datetime
    jobs: dict[str, int] = Field(description="Number of jobs by state.")
    images: list[dict[str, Any]]
    aplus_contents: list[dict[str, Any]]


class Version(Answer):
    version: str
    api: Literal["v1"]


class Liveness(Answer):
    status: Literal["ok"]


class Readiness(Answer):
    status: Literal["ready", "not_ready"]
    components: dict[str, Any]


class FieldProblem(Answer):
    pointer: str
    code: str
    detail: str


class Problem(Answer):
    """An error (RFC 9457); the page at `type` says what to do."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    instance: str
    request_id: str
    retryable: bool
    errors: list[FieldProblem]


# -- headers that calls read -----------------------------------------------------------------------

_Key = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[!-~]+$")]


# Prefer and If-None-Match have no pattern here: what is not understood is ignored (RFC 7240, RFC 9110).
class IdempotencyHeaders(BaseModel):
    idempotency_key: _Key | None = Field(
        None, alias="Idempotency-Key", description="Yours, new for each new request; kept 24 h."
    )


class CreateHeaders(IdempotencyHeaders):
    prefer: str | None = Field(
        None, alias="Prefer", description="`wait=N`: seconds to wait for the end, 1 to 60."
    )


class PollHeaders(BaseModel):
    if_none_match: str | None = Field(None, alias="If-None-Match", description="The ETag that you have.")
    prefer: str | None = Field(
        None, alias="Prefer", description="`wait=N`: seconds to wait for a change, 1 to 60."
    )


class FileHeaders(BaseModel):
    if_none_match: str | None = Field(None, alias="If-None-Match", description="The ETag that you have.")
    range: str | None = Field(None, alias="Range", description="One part: `bytes=0-499`.")
    if_range: str | None = Field(
        None, alias="If-Range", description="The part only of the file with this ETag, else all of it."
    )


class LastEventHeaders(BaseModel):
    last_event_id: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,18}$")] | None = Field(
        None, alias="Last-Event-ID", description="Position to go on from."
    )


class CreateOne(RootModel[CreateJob]):
    """One job to create."""
