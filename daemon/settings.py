"""Every setting of listingd, with its default and what it means: the words, no reading of them.

`load_settings` in daemon/settings_sources.py reads them from the environment (`LISTINGD_HTTP__PORT`), a
TOML file and systemd credentials. A new setting is a field here with a description;
docs/configuration.md is written from these descriptions (`make docs`) and a test compares the two.

    Units ride in the names: _s seconds, _bytes bytes, _usd US dollars, _days days.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    StringConstraints,
    model_validator,
)
from pydantic_settings import NoDecode

MIB = 1024 * 1024


def _split(value: Any) -> Any:
    """`a, b` becomes (a, b): a list in the environment needs no JSON."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _parse_map(value: Any) -> Any:
    """A map in the environment is a JSON object."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError as exc:
            raise ValueError("must be a JSON object") from exc
    return value


def _to_int(value: Any) -> Any:
    """A Literal of numbers takes no text, and the environment has nothing else."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _is_long_enough(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value()) < 32:
        raise ValueError("must have 32 characters or more")
    return value


def _fits_a_header(value: SecretStr) -> SecretStr:
    """Without the line's end that files of secrets have. What cannot be sent would fail each call after its intent."""
    key = value.get_secret_value().strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError("must be one line of ASCII characters")
    return SecretStr(key)


def _is_a_token(value: SecretStr) -> SecretStr:
    """Others could not be sent in a header, or would never be accepted."""
    text = value.get_secret_value()
    if not 32 <= len(text) <= 512 or not text.isascii() or not text.isprintable():
        raise ValueError("must have 32 to 512 printable characters of ASCII")
    return value


def _is_http_url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    return value.rstrip("/")


def _is_network(value: str) -> str:
    return str(ipaddress.ip_network(value, strict=False))


def _is_postgres_dsn(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().startswith(("postgres://", "postgresql://")):
        raise ValueError("must begin with postgresql://")
    return value


def default_state_dir() -> Path:
    """Where systemd says ($STATE_DIRECTORY), else the user's data directory.

    Source: systemd.exec(5) RuntimeDirectory= (several are colon-separated); XDG Base Directory 0.8.
    """
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    data_home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data_home).expanduser() / "listingd"


Seconds = Annotated[float, Field(gt=0, le=86_400)]
PerMinute = Annotated[float, Field(ge=0.0001, le=1_000_000)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Days = Annotated[int, Field(ge=1, le=36_500)]
# A Decimal written back as JSON stays exact as text.
Usd = Annotated[Decimal, Field(ge=0, le=10_000_000), PlainSerializer(str, when_used="json")]
HttpUrl = Annotated[str, AfterValidator(_is_http_url)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Networks = Annotated[
    tuple[Annotated[str, AfterValidator(_is_network)], ...], NoDecode, BeforeValidator(_split)
]
Dsn = Annotated[SecretStr, AfterValidator(_is_postgres_dsn)]
ApiKey = Annotated[SecretStr, AfterValidator(_fits_a_header)]
LongSecret = Annotated[SecretStr, AfterValidator(_is_long_enough)]
Token = Annotated[SecretStr, AfterValidator(_is_a_token)]
Counts = Annotated[dict[str, Count], NoDecode, BeforeValidator(_parse_map)]
SecondsByKind = Annotated[dict[str, Seconds], NoDecode, BeforeValidator(_parse_map)]
StateDir = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


class Group(BaseModel):
    """A nested group: `LISTINGD_<GROUP>__<FIELD>`."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Http(Group):
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8787, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    max_body_bytes: int = Field(1 * MIB, ge=1024, description="Largest JSON body.")
    max_upload_bytes: int = Field(25 * MIB, ge=1024, description="Largest uploaded photo.")
    max_connections: Count = Field(4096, description="Open connections; more are refused at once.")
    header_timeout_s: Seconds = Field(10, description="Time for a request's headers to arrive.")
    body_timeout_s: Seconds = Field(30, description="Time for a request's body to arrive.")
    keepalive_s: Seconds = Field(75, description="How long an idle connection is kept.")
    max_streams: Count = Field(
        3500, description="Open event streams in one process; a tenth of them for one user."
    )
    trusted_proxies: Networks = Field((), description="Networks whose X-Forwarded-For is believed.")
    cors_origins: Names = Field((), description="Origins of browser apps that may call the API.")
    allowed_hosts: Names = Field((), description="Host names the API answers to; empty allows all.")
    public_url: HttpUrl | None = Field(None, description="URL that clients see, for absolute links.")
    docs: bool = Field(True, description="Serve /docs and /openapi.json.")


class Database(Group):
    pool_size: Annotated[int, Field(ge=1, le=1000)] = Field(
        10, description="Connections in the pool; at most as many again read for users."
    )
    connect_timeout_s: Seconds = Field(5, description="Time to open a connection.")
    statement_timeout_s: Seconds = Field(15, description="Time after which Postgres ends a statement.")
    lock_timeout_s: Seconds = Field(3, description="Time a statement waits for a lock.")
    idle_in_transaction_timeout_s: Seconds = Field(
        10, description="Time after which Postgres frees the locks of a session that went silent."
    )
    vacuum_hold_s: Seconds = Field(
        600, description="Age of a snapshot at which the log names the session that holds back vacuum by it."
    )


class Embedded(Group):
    version: Annotated[Literal[16, 18], BeforeValidator(_to_int)] = Field(
        18, description="PostgreSQL version of a new embedded database; an existing one keeps its own."
    )


class Workers(Group):
    concurrency: Annotated[int, Field(ge=1, le=10_000)] = Field(64, description="Jobs run at once.")
    soft_stop_s: Seconds = Field(25, description="Time running jobs get to finish at a stop.")
    hard_stop_s: Seconds = Field(5, description="Time cancelled jobs get to clean up at a stop.")
    pixel_threads: Annotated[int, Field(ge=1, le=256)] = Field(
        default_factory=lambda: min(8, os.cpu_count() or 2), description="Threads for image work."
    )
    attempt_timeout_s: Seconds = Field(900, description="Longest run of one attempt.")
    attempt_timeouts_s: SecondsByKind = Field(
        default_factory=dict, description='The same for single kinds, as JSON: {"aplus": 600}.'
    )


class Queue(Group):
    max_rescues: Annotated[int, Field(ge=0, le=100)] = Field(
        1, description="Crashes of its worker that a job survives; one more fails it."
    )
    kind_limits: Counts = Field(
        default_factory=dict, description='Jobs of a kind run at once by a process: {"aplus": 8}.'
    )
    user_limit: Count | None = Field(None, description="Jobs of one user run at once by a process.")
    candidates: Count = Field(1000, description="Ready jobs the scheduler looks at in one read.")


class Retry(Group):
    max_attempts: Annotated[int, Field(ge=1, le=10)] = Field(4, description="Attempts of a job.")
    base_s: Seconds = Field(2, description="Ceiling of the first backoff; it doubles each time.")
    cap_s: Seconds = Field(600, description="Largest ceiling of a backoff.")


class Storage(Group):
    endpoint: HttpUrl | None = Field(None, description="S3-compatible endpoint; none is AWS.")
    region: str = Field("us-east-1", description="S3 region.")
    access_key: SecretStr | None = Field(None, description="S3 access key id.")
    secret_key: SecretStr | None = Field(None, description="S3 secret access key.")
    session_token: SecretStr | None = Field(None, description="S3 session token.")
    virtual_hosted: bool = Field(False, description="Put the bucket into the host name.")
    timeout_s: Seconds = Field(30, description="Total time of one storage request.")
    signed_url_s: Seconds = Field(900, description="How long a signed download link works.")


class OpenAI(Group):
    api_key: ApiKey | None = Field(None, description="Key; none leaves pictures to the offline painter.")
    base_url: HttpUrl = Field("https://api.openai.com/v1", description="OpenAI or a compatible server.")
    model: str = Field("gpt-image-2.6-sunburst", description="Image model for edits.")
    quality: str = Field("high", description="Quality asked for: low, medium, high, xhigh, max.")
    images_per_minute: PerMinute = Field(5, description="Your account's limit.")
    requests_per_minute: PerMinute = Field(500, description="Your account's limit.")
    concurrency: Count = Field(8, description="Calls in flight, over all daemons.")
    timeout_s: Seconds = Field(240, description="Total time of a call at low or medium quality.")
    timeout_high_s: Seconds = Field(360, description="Total time of a call at high quality or above.")
    price_text_in_usd: Usd = Field(Decimal(5), description="USD per million text tokens in.")
    price_image_in_usd: Usd = Field(Decimal(8), description="USD per million image tokens in.")
    price_image_out_usd: Usd = Field(Decimal(30), description="USD per million image tokens out.")
    price_per_image_usd: Usd | None = Field(
        None, description="USD per picture, for servers whose answers state no usage."
    )


class Cutout(Group):
    protocol: Literal["removebg", "rembg", "withoutbg", "offline"] | None = Field(
        None, description="Wire protocol; unset: `removebg` when a key or URL is set, else `offline`."
    )
    api_key: ApiKey | None = Field(None, description="Key of the background-removal service.")
    base_url: HttpUrl | None = Field(None, description="Its URL; unset: remove.bg's own.")
    timeout_s: Seconds = Field(60, description="Total time of a call.")
    concurrency: Count = Field(4, description="Calls in flight, over all daemons.")
    requests_per_minute: PerMinute = Field(
        500, description="Your account's limit, in megapixels per minute for remove.bg."
    )
    price_usd_per_credit: Usd = Field(Decimal("0.20"), description="USD per credit charged.")

    @property
    def effective_protocol(self) -> Literal["removebg", "rembg", "withoutbg", "offline"]:
        if self.protocol is not None:
            return self.protocol
        return "removebg" if self.api_key or self.base_url else "offline"


class Gemini(Group):
    api_key: ApiKey | None = Field(None, description="Key; none leaves A+ texts to the rules.")
    base_url: HttpUrl = Field(
        "https://generativelanguage.googleapis.com", description="Gemini API or a compatible server."
    )
    model: str = Field("gemini-3.8-flash", description="Text model.")
    sdk: Literal["generativeai", "genai"] = Field(
        "generativeai", description="Google SDK; `genai` needs the extra listingd[genai]."
    )
    timeout_s: Seconds = Field(60, description="Total time of a call.")
    concurrency: Count = Field(8, description="Calls in flight, over all daemons.")
    requests_per_minute: PerMinute = Field(60, description="Your account's limit.")
    price_in_usd: Usd = Field(Decimal("0.75"), description="USD per million tokens in.")
    price_out_usd: Usd = Field(Decimal("3.75"), description="USD per million tokens out.")


class Fetch(Group):
    timeout_s: Seconds = Field(30, description="Total time to fetch a photo.url.")
    allowed_private_networks: Networks = Field(
        (), description="Private networks that photo URLs and webhooks may reach; none by default."
    )


class Webhooks(Group):
    timeout_s: Seconds = Field(15, description="Total time of one delivery.")
    concurrency: Count = Field(16, description="Deliveries at once by a process.")


class Auth(Group):
    jwt_issuer: str | None = Field(None, description="`iss` that users' JWTs must carry.")
    jwks_url: HttpUrl | None = Field(None, description="Where the issuer's public keys are.")
    audience: str | None = Field(None, description="`aud` that users' JWTs must carry.")
    jwt_secret: LongSecret | None = Field(
        None, description="Shared secret for HS256 JWTs (Supabase's legacy secret)."
    )
    max_token_lifetime_s: Annotated[float, Field(gt=0)] = Field(
        86_400, description="Longest lifetime (exp minus iat) of a JWT that is accepted."
    )
    allow_supabase_service_role: bool = Field(
        False, description="Accept Supabase's service_role JWT as a service key, during migration."
    )


class Limits(Group):
    requests_per_minute: Count = Field(6000, description="Requests of one principal.")
    failed_logins_per_minute: Count = Field(30, description="Refused credentials from one address.")
    open_jobs_per_user: Count = Field(100_000, description="Unfinished jobs one user may have.")


class Budgets(Group):
    total_usd_per_day: Usd | None = Field(None, description="Spend of everybody in a UTC day.")
    total_usd_per_month: Usd | None = Field(None, description="Spend of everybody in a UTC month.")
    user_usd_per_day: Usd | None = Field(None, description="Spend of each user in a UTC day.")
    user_usd_per_month: Usd | None = Field(None, description="Spend of each user in a UTC month.")
    project_usd_per_day: Usd | None = Field(None, description="Spend of each project in a UTC day.")
    project_usd_per_month: Usd | None = Field(None, description="Spend of each project in a UTC month.")


class Retention(Group):
    completed_days: Days = Field(90, description="Age at which completed jobs are removed.")
    failed_days: Days = Field(180, description="Age at which failed and cancelled jobs are removed.")
    events_days: Days = Field(7, description="Age at which events of finished jobs are removed.")
    assets_days: Days | None = Field(None, description="Age at which files are removed; unset: with the job.")
    uploads_days: Days = Field(7, description="Age at which unused uploads are removed.")
    interval_s: Seconds = Field(60, description="Pause between two rounds of housekeeping.")
    batch_size: Count = Field(1000, description="Rows removed by one statement.")


class Log(Group):
    format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto`: readable on a terminal, else JSON lines."
    )
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level shown.")


class Settings(Group):
    """All settings of one process, immutable. Constructing it reads nothing: see `load_settings`."""

    database_url: Dsn | None = Field(
        None, description="PostgreSQL DSN, several hosts allowed; unset: embedded Postgres in the state dir."
    )
    listen_database_url: Dsn | None = Field(
        None, description="Direct DSN for LISTEN when the first one goes through a transaction pooler."
    )
    state_dir: StateDir = Field(
        default_factory=default_state_dir,
        description="Local assets, embedded Postgres, generated key.",
    )
    instance: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = Field(
        default_factory=lambda: socket.gethostname()[:64],
        description="Name of this daemon; one name runs once.",
    )
    service_key: Token | None = Field(
        None,
        description="First service key, 32 to 512 characters of ASCII; generated when bound to loopback.",
    )
    lease_s: Annotated[float, Field(ge=1, le=3600)] = Field(
        20, description="How long a silent process keeps its jobs."
    )
    heartbeat_s: Annotated[float, Field(ge=0.1, le=900)] = Field(
        5, description="How often a process confirms its lease; a quarter of it is good."
    )
    poll_s: Seconds = Field(5, description="How often the queue is looked at without a notification.")
    priority_step_s: Annotated[float, Field(ge=0, le=86_400)] = Field(
        6, description="Head start that one point of priority gives, so that waiting jobs age past it."
    )
    storage_url: str | None = Field(
        None, description="`s3://bucket/prefix` or `file:///path`; unset: `assets` in the state dir."
    )

    http: Http = Field(default_factory=Http, description="The HTTP server.")
    database: Database = Field(default_factory=Database, description="Connections to Postgres.")
    embedded: Embedded = Field(default_factory=Embedded, description="Embedded Postgres.")
    workers: Workers = Field(default_factory=Workers, description="The pool that runs jobs.")
    queue: Queue = Field(default_factory=Queue, description="Who runs next.")
    retry: Retry = Field(default_factory=Retry, description="Attempts and backoff.")
    storage: Storage = Field(default_factory=Storage, description="The object store.")
    openai: OpenAI = Field(default_factory=OpenAI, description="OpenAI Images.")
    cutout: Cutout = Field(default_factory=Cutout, description="Background removal.")
    gemini: Gemini = Field(default_factory=Gemini, description="Gemini.")
    fetch: Fetch = Field(default_factory=Fetch, description="Fetching photos by URL.")
    webhooks: Webhooks = Field(default_factory=Webhooks, description="Webhook deliveries.")
    auth: Auth = Field(default_factory=Auth, description="Users' JWTs.")
    limits: Limits = Field(default_factory=Limits, description="Limits per principal.")
    budgets: Budgets = Field(default_factory=Budgets, description="Default budgets; none by default.")
    retention: Retention = Field(default_factory=Retention, description="How long things are kept.")
    log: Log = Field(default_factory=Log, description="Logs.")

    @model_validator(mode="after")
    def _heartbeat_fits_lease(self) -> Settings:
        if self.heartbeat_s * 2 > self.lease_s:
            raise ValueError("LISTINGD_HEARTBEAT_S must be at most half of LISTINGD_LEASE_S")
        return self

    @model_validator(mode="after")
    def _storage_url_is_known(self) -> Settings:
        if self.storage_url and not self.storage_url.startswith(("file://", "s3://", "memory://")):
            raise ValueError("LISTINGD_STORAGE_URL must begin with file://, s3:// or memory://")
        # With two slashes the first part of the path would be taken for a host.
        if self.storage_url and re.match("file://(?!/)", self.storage_url):
            raise ValueError("LISTINGD_STORAGE_URL must have three slashes before a directory: file:///path")
        if (
            self.storage_url and "@" in urlsplit(self.storage_url).netloc
        ):  # other daemons and the log see the URL
            raise ValueError(
                "LISTINGD_STORAGE_URL must hold no credentials: set LISTINGD_STORAGE__ACCESS_KEY and __SECRET_KEY"
            )
        return self

    @property
    def effective_storage_url(self) -> str:
        return self.storage_url or (self.state_dir / "assets").as_uri()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the HTTP server."""
        if self.http.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.http.host).is_loopback
        except ValueError:
            return False
