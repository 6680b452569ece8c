"""Logs: one line per finished thing, rendered and written off the event loop.

    logger.info("job.completed", …) --level filter--> queue (bounded) --thread--> redact, render, write

The caller pays for the level filter, a dict and a queue put. A reader that stops reading fills the queue,
never the loop: lines beyond it are dropped, counted and reported by `log.dropped` when writing works again.
Secrets are cut out last, from the finished line, so that no key, nesting or traceback hides one.

Event names are fixed for ever: log_events.EVENTS lists each with its level and keys, and a test holds daemon/ to it.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, SecretStr

from daemon.later import without
from daemon.settings import Settings

with without("rich"):  # structlog would draw local variables with it, which we never show: 60 ms of imports
    import structlog

EventDict = MutableMapping[str, Any]

INFO = logging.INFO
"""For `log.is_enabled_for(logs.INFO)`, where even building the keys costs too much."""

MAX_WAITING_LINES = 20_000
_BATCH = 500
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_JOURNAL = {"debug": "<7>", "info": "<6>", "warning": "<4>", "error": "<3>", "critical": "<2>"}
_REDACTED = "[redacted]"

_SECRET_KEY = re.compile(
    r"(api_?key|service_?key|access_?key|secret|password|passwd|authorization|cookie|credential|dsn"
    r"|database_?url|signature|(^|_)token)$",
    re.IGNORECASE,
)
_SECRET_TEXT = re.compile(
    r"""(?xi)
    (?P<user> ://[^\s/:@"']*: )  [^\s/"']+ (?=@)                       # password of a URL, to its last @
    | (?P<name> \bbearer\s++
      | [?&](?:token|access_token|api_key|key|sig|signature|password|x-(?:amz|goog)-[a-z-]+)= )  [^\s"'\\&@]+
    | \bld_[a-z]+_[A-Za-z0-9_-]+                                       # ours: service keys, read tokens
    | \bwhsec_[A-Za-z0-9+/=]+
    | \bsk-[A-Za-z0-9_-]{12,}
    | \bAIza[A-Za-z0-9_-]{20,}
    | \bAQ\.[A-Za-z0-9_-]{20,}
    | \beyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)*                     # JWT, cut ones too: no look ahead for a dot
    """
)

# What _SECRET_TEXT can begin with, in lower case: the expression takes 50 µs a line, these tests 1 µs.
_SECRET_HINTS = (
    "bearer", "://", "token=", "key=", "sig=", "signature=", "password=", "x-amz-", "x-goog-",
    "ld_", "whsec_", "sk-", "aiza", "aq.", "eyj",
)  # fmt: skip

get_logger = structlog.get_logger
bind = structlog.contextvars.bound_contextvars
"""`with bind(job_id=…, kind=…):` puts keys on every line of the block (and of the tasks it starts)."""


@dataclass(frozen=True, slots=True)
class _Stop:
    done: threading.Event


class LogWriter:
    """The thread that renders and writes. `close()` writes what is waiting, within a bound."""

    def __init__(
        self,
        render: Callable[[EventDict], str],
        *,
        descriptor: int,
        max_waiting: int = MAX_WAITING_LINES,
        journal: bool = False,
    ) -> None:
        self.dropped = 0
        self._render = render
        self._descriptor = descriptor
        self._max_waiting = max_waiting
        self._journal = journal
        self._reported = 0
        self._queue: queue.SimpleQueue[EventDict | _Stop] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, event_dict: EventDict) -> None:
        """Hand over one line; never waits."""
        if self._queue.qsize() >= self._max_waiting:
            self.dropped += 1  # a lost race between threads miscounts by one: good enough
            return
        self._queue.put(event_dict)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is waiting. A reader that has stopped costs `timeout_s` seconds, no more."""
        done = threading.Event()
        self._queue.put(_Stop(done))
        done.wait(timeout_s)

    def _run(self) -> None:
        while True:
            batch = [self._queue.get()]
            while len(batch) < _BATCH and not self._queue.empty():
                batch.append(self._queue.get())
            events = [item for item in batch if not isinstance(item, _Stop)]
            dropped = self.dropped
            try:
                self._write("".join(self._line(event) for event in events) + self._report(dropped))
                self._reported = dropped
            except OSError:
                self.dropped += len(events)  # the reader is gone; there is nowhere to say so
            for item in batch:
                if isinstance(item, _Stop):
                    item.done.set()
                    return

    def _line(self, event_dict: EventDict) -> str:
        prefix = _JOURNAL.get(event_dict.get("level", "info"), "<6>") if self._journal else ""
        try:
            return f"{prefix}{self._render(event_dict)}\n"
        except (TypeError, ValueError, RecursionError) as exc:  # a value that cannot be written
            event = {"event": "log.unwritable", "name": str(event_dict.get("event")), "why": str(exc)}
            return f"{prefix}{json.dumps(event)}\n"

    def _report(self, dropped: int) -> str:
        missed = dropped - self._reported
        if not missed:
            return ""
        return self._line({"event": "log.dropped", "level": "warning", "time": time.time(), "lines": missed})

    def _write(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", errors="backslashreplace"))
        while data:
            data = data[os.write(self._descriptor, data) :]


class _QueueLogger:
    """What structlog calls at the end of its processors: every level is the same put."""

    def __init__(self, writer: LogWriter) -> None:
        self._put = writer.put

    def msg(self, event_dict: EventDict) -> None:
        self._put(event_dict)

    debug = info = warning = error = critical = exception = log = msg


def configure(settings: Settings, *, descriptor: int = 2) -> LogWriter:
    """Set up logging for this process and start its writer; the caller closes it at the end.

    Lines go to `descriptor` (stderr): coloured text on a terminal, else JSON; prefixed with syslog levels
    when it is the journal.
    """
    console = settings.log.format == "console" or (settings.log.format == "auto" and os.isatty(descriptor))
    clean = make_redactor(list_secrets(settings))
    render = _console_renderer(os.isatty(descriptor)) if console else _render_json
    writer = LogWriter(
        lambda event_dict: clean(render(_prepare(event_dict))),
        descriptor=descriptor,
        journal=is_journal(descriptor, os.environ.get("JOURNAL_STREAM", "")),
    )
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _stamp],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.log.level]),
        logger_factory=lambda *_: _QueueLogger(writer),
        cache_logger_on_first_use=True,
    )
    _route_standard_logging(writer)
    writer.start()
    return writer


def make_redactor(secrets: Iterable[str] = ()) -> Callable[[str], str]:
    """A function that cuts secrets out of a rendered line: the given ones and all that look like one."""
    forms = {
        form
        for secret in secrets
        for form in (secret, json.dumps(secret, ensure_ascii=False)[1:-1])
        if len(secret) >= 6
    }
    longest_first = sorted(forms, key=len, reverse=True)

    def clean(line: str) -> str:
        for form in longest_first:
            if form in line:
                line = line.replace(form, _REDACTED)
        lowered = line.lower()
        if any(hint in lowered for hint in _SECRET_HINTS):
            line = _SECRET_TEXT.sub(lambda match: (match["user"] or match["name"] or "") + _REDACTED, line)
        return line

    return clean


def list_secrets(settings: BaseModel) -> list[str]:
    """The value of every SecretStr in the settings."""
    found = []
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            found.append(value.get_secret_value())
        elif isinstance(value, BaseModel):
            found += list_secrets(value)
    return found


def is_journal(descriptor: int, journal_stream: str) -> bool:
    """Whether the journal reads `descriptor`. Source: systemd.exec(5), $JOURNAL_STREAM."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return journal_stream == f"{status.st_dev}:{status.st_ino}"


def _stamp(_: Any, level: str, event_dict: EventDict) -> tuple[tuple[EventDict], dict[str, Any]]:
    """All that must happen in the caller's thread: the time, and the exception being handled."""
    event_dict["level"] = "error" if level == "exception" else level
    event_dict["time"] = time.time()
    exc_info = event_dict.get("exc_info")
    if exc_info is True:
        event_dict["exc_info"] = sys.exc_info()
    elif isinstance(exc_info, BaseException):
        event_dict["exc_info"] = (type(exc_info), exc_info, exc_info.__traceback__)
    return (event_dict,), {}


def _prepare(event_dict: EventDict) -> dict[str, Any]:
    """Time first, then level and event, then the rest; keys that name secrets lose their values."""
    seconds, fraction = divmod(event_dict["time"], 1)
    head = {
        "time": f"{_second(int(seconds))}.{int(fraction * 1000):03d}Z",
        "level": event_dict["level"],
        "event": event_dict["event"],
    }
    rest: dict[str, Any] = _blank_secrets({k: v for k, v in event_dict.items() if k not in head})
    return head | rest


@functools.lru_cache(maxsize=4)
def _second(timestamp: int) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@functools.lru_cache(maxsize=4096)
def _names_secret(key: str) -> bool:
    return _SECRET_KEY.search(key) is not None


def _blank_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _REDACTED
            if isinstance(item, (str, bytes)) and item and _names_secret(str(key))
            else _blank_secrets(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_blank_secrets(item) for item in value]
    return value


# Local variables would print keys and prompts (structlog shows them by default).
_tracebacks = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=30)
)


def _render_json(event_dict: EventDict) -> str:
    if "exc_info" in event_dict:
        event_dict = _tracebacks(None, "", event_dict)
    return _encode(event_dict)


_encode = json.JSONEncoder(default=str, ensure_ascii=False, separators=(",", ":")).encode


def _console_renderer(colours: bool) -> Callable[[EventDict], str]:
    renderer = structlog.dev.ConsoleRenderer(
        colors=colours,
        timestamp_key="time",
        pad_event_to=22,
        exception_formatter=structlog.dev.plain_traceback,
    )
    return lambda event_dict: str(renderer(None, "", event_dict))


class _Forwarder(logging.Handler):
    """Lines of asyncpg, aiohttp, the SDKs and `warnings`, as `log.forwarded`.

    One message a second from each place: aiohttp without file descriptors wrote 35 000 lines in 20 s.
    """

    def __init__(self, writer: LogWriter) -> None:
        super().__init__(logging.WARNING)
        self._writer = writer
        self._last: dict[tuple[str, str], tuple[float, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        place = (record.name, str(record.msg)[:200])
        then, repeated = self._last.get(place, (0.0, 0))
        if record.created - then < 1.0:
            self._last[place] = (then, repeated + 1)
            return
        if len(self._last) > 1000:
            self._last.clear()
        self._last[place] = (record.created, 0)
        event_dict: EventDict = {
            "event": "log.forwarded",
            "level": record.levelname.lower(),
            "time": record.created,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if repeated:
            event_dict["repeated"] = repeated
        if record.exc_info and record.exc_info[0] is not None:
            event_dict["exc_info"] = record.exc_info
        self._writer.put(event_dict)


def _route_standard_logging(writer: LogWriter) -> None:
    root = logging.getLogger()
    root.handlers[:] = [_Forwarder(writer)]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    # Without a database it says so every few seconds, with a trace; `database.lost` says it once.
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)
