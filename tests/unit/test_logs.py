"""The log: secrets, drops, levels, and the register of events."""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from daemon import logs
from daemon.log_events import CONTEXT_KEYS, EVENTS
from daemon.settings import Auth, Log, Settings
from tests.support import eventually

REPOSITORY = Path(__file__).parents[2]
LEVELS = {"debug", "info", "warning", "error", "exception"}


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@contextmanager
def _written(settings: Settings) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Configured logging into a pipe; the function closes the log and gives the parsed lines."""
    reading, writing = os.pipe()
    writer = logs.configure(settings, descriptor=writing)

    def read() -> list[dict[str, Any]]:
        writer.close()
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    yield read


def _logger() -> Any:
    return structlog.get_logger()  # not cached by an earlier test


def test_a_line_is_json_with_time_level_event_and_context() -> None:
    with _written(Settings()) as read:
        with logs.bind(job_id="j1", kind="pack"):
            _logger().info("job.completed", duration_s=1.5)
        (line,) = read()

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert {
        "level": "info",
        "event": "job.completed",
        "job_id": "j1",
        "kind": "pack",
        "duration_s": 1.5,
    } == line


def test_lines_below_the_level_are_not_written() -> None:
    with _written(Settings(log=Log(level="warning"))) as read:
        _logger().info("job.completed")
        _logger().warning("job.failed")
        events = [line["event"] for line in read()]

    assert ["job.failed"] == events


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abc.def-123",
        "key ld_live_01JABCDEF_s3cr3tpart",
        "postgresql://listingd:hunter2-secret@db.example/listingd",
        "postgresql://listingd:p@ss&hunter2@db.example/listingd",
        "https://storage.example/x.jpg?X-Goog-Signature=abcdef1234",
        "sk-proj-abcdefghijklmnop",
        "https://x.example/events?access_token=abcdef1234&x=1",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
        "cut in its middle: eyJhbGciOiJIUzI1NiJ9",
        "whsec_c2VjcmV0c2VjcmV0",
        "AIzaSyA-abcdefghijklmnopqrstuvw",
    ],
)
def test_what_looks_like_a_secret_is_cut_out(text: str) -> None:
    cleaned = logs.make_redactor()(json.dumps({"error": text}))

    for secret in ("abc.def", "s3cr3tpart", "hunter2", "abcdefghijklm", "abcdef1234", "eyJ", "c2Vjcm"):
        assert secret not in cleaned
    assert "[redacted]" in cleaned
    json.loads(cleaned)


def test_a_line_full_of_what_begins_like_a_token_is_read_once() -> None:
    """An 8 KB path of it took 50 ms, and four times as long a line twenty times as much."""
    cleaned = logs.make_redactor()("/-eyJaaaaaaaa" * 50_000)

    assert "eyJ" not in cleaned


def test_configured_secrets_are_cut_out_wherever_they_appear() -> None:
    secret = 'ödd"secret\\with-quotes-and-32-characters'
    settings = Settings(auth=Auth(jwt_secret=SecretStr(secret)))

    with _written(settings) as read:
        _logger().info("provider.refused", code=f"rejected {secret} today", nested={"deep": [secret]})
        (line,) = read()

    assert "rejected [redacted] today" == line["code"]
    assert {"deep": ["[redacted]"]} == line["nested"]


def test_keys_that_name_a_secret_lose_their_value_and_token_counts_stay() -> None:
    with _written(Settings()) as read:
        _logger().info("x.y", password="p", headers={"Authorization": "q"}, api_key="r", input_tokens=12)
        (line,) = read()

    assert "[redacted]" == line["password"] == line["api_key"] == line["headers"]["Authorization"]
    assert 12 == line["input_tokens"]


def test_a_traceback_shows_no_local_variables() -> None:
    def fail(prompt: str) -> None:
        raise ValueError("broken")

    with _written(Settings()) as read:
        try:
            fail("a user's private words")
        except ValueError:
            _logger().exception("job.crashed")
        (line,) = read()

    assert "error" == line["level"]
    assert "ValueError" == line["exception"][0]["exc_type"]
    assert "private words" not in json.dumps(line)


def test_a_reader_that_stops_costs_lines_and_never_waits() -> None:
    """A full pipe stopped the event loop before logging had a thread of its own."""
    reading, writing = os.pipe()
    writer = logs.LogWriter(lambda event: str(event["event"]), descriptor=writing, max_waiting=10)
    writer.start()
    line = {"event": "x" * 8192, "level": "info"}

    for _ in range(1000):
        writer.put(line)

    # A pipe holds 64 KiB, a batch waits in the thread, ten in the queue.
    dropped = writer.dropped
    os.close(reading)  # ends the write that waits
    writer.close()
    os.close(writing)
    assert dropped >= 400


def test_dropped_lines_are_reported_when_writing_works_again() -> None:
    reading, writing = os.pipe()
    writer = logs.LogWriter(logs._render_json, descriptor=writing, max_waiting=2)
    for number in range(5):  # not started: nobody takes them
        writer.put({"event": f"n{number}", "level": "info"})

    writer.start()
    writer.close()
    os.close(writing)

    with os.fdopen(reading) as lines:
        written = [json.loads(line) for line in lines]
    assert ["n0", "n1", "log.dropped"] == [line["event"] for line in written]
    assert 3 == written[-1]["lines"]


async def test_lines_that_a_full_disk_took_are_all_reported_when_there_is_room(tmp_path: Path) -> None:
    full, log = os.open("/dev/full", os.O_WRONLY), tmp_path / "log"
    writer = logs.LogWriter(logs._render_json, descriptor=full)
    writer.start()
    for number in range(3):
        writer.put({"event": f"n{number}", "level": "info"})
        await eventually(lambda: writer.dropped == number + 1)  # noqa: B023 -- asked at once

    writer._descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    writer.put({"event": "last", "level": "info"})
    writer.close()

    os.close(full)
    os.close(writer._descriptor)
    written = [json.loads(line) for line in log.read_text().splitlines()]
    assert [("last", None), ("log.dropped", 3)] == [(line["event"], line.get("lines")) for line in written]


def test_a_reader_that_went_away_is_survived() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = logs.LogWriter(logs._render_json, descriptor=writing)
    writer.start()

    writer.put({"event": "a", "level": "info"})
    writer.close()

    assert 1 == writer.dropped
    os.close(writing)


def test_journal_lines_carry_their_priority(tmp_path: Path) -> None:
    """So that `journalctl -p err` finds errors."""
    reading, writing = os.pipe()
    writer = logs.LogWriter(logs._render_json, descriptor=writing, journal=True)
    writer.start()

    writer.put({"event": "a", "level": "error"})
    writer.put({"event": "b", "level": "info"})
    writer.close()
    os.close(writing)

    with os.fdopen(reading) as lines:
        assert ["<3>", "<6>"] == [line[:3] for line in lines]


def test_the_journal_is_recognised_by_device_and_inode() -> None:
    reading, writing = os.pipe()
    status = os.fstat(writing)

    assert logs.is_journal(writing, f"{status.st_dev}:{status.st_ino}")
    assert not logs.is_journal(writing, "")
    assert not logs.is_journal(writing, "1:1")
    os.close(reading)
    os.close(writing)


def test_lines_of_libraries_are_forwarded_once_a_second_from_each_place() -> None:
    with _written(Settings()) as read:
        for number in range(100):
            logging.getLogger("asyncio").warning("socket.accept() out of resource %s", number)
        logging.getLogger("aiohttp").info("not shown")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old thing", DeprecationWarning, stacklevel=1)
        lines = read()

    assert ["log.forwarded", "log.forwarded"] == [line["event"] for line in lines]
    assert "asyncio" == lines[0]["logger"]
    assert "old thing" in lines[1]["message"]


def test_a_value_that_cannot_be_written_costs_its_line_alone() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with _written(Settings()) as read:
        _logger().info("a.b", odd={("tuple", "key"): 1})
        _logger().info("c.d", odd=object(), text="lone \ud800 surrogate")
        lines = read()

    assert ["log.unwritable", "c.d"] == [line["event"] for line in lines]


def test_every_event_used_in_the_code_is_registered_with_its_level_and_keys() -> None:
    """Event names are fixed for ever: dashboards and alerts are built on them."""
    mistakes = []
    for path in sorted((REPOSITORY / "daemon").rglob("*.py")):
        for where, level, event, keys in _events_used(path):
            known = EVENTS.get(event)
            if known is None:
                mistakes.append(f"{where}: {event} is not in EVENTS")
                continue
            if level not in {known.level, "log"}:
                mistakes.append(f"{where}: {event} is logged as {level}, registered as {known.level}")
            for key in keys - known.keys - CONTEXT_KEYS - {"exc_info"}:
                mistakes.append(f"{where}: {event} has an unregistered key {key}")

    assert [] == mistakes


def test_every_registered_event_is_told_by_the_code() -> None:
    """An alert on an event that never comes is silence taken for health."""
    files = [path for path in (REPOSITORY / "daemon").rglob("*.py") if path.name != "log_events.py"]
    code = "".join(path.read_text(encoding="utf-8") for path in files)

    assert [] == [name for name in EVENTS if f'"{name}"' not in code]


def test_event_names_are_a_noun_and_a_verb_in_lower_case() -> None:
    assert [] == [name for name in EVENTS if not re.fullmatch(r"[a-z]+\.[a-z_]+", name)]
    assert {"debug", "info", "warning", "error"} >= {event.level for event in EVENTS.values()}


def _events_used(path: Path) -> Iterator[tuple[str, str, str, set[str]]]:
    """(place, level, event, keys) of each logging call: `anything.info("noun.verb", key=…)`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        first = node.args[0]
        if (
            node.func.attr not in LEVELS
            or not isinstance(first, ast.Constant)
            or not isinstance(first.value, str)
        ):
            continue
        if not re.fullmatch(r"[a-z]+\.[a-z_]+", first.value):
            continue
        level = "error" if node.func.attr == "exception" else node.func.attr
        keys = {keyword.arg for keyword in node.keywords if keyword.arg}
        yield f"{path.relative_to(REPOSITORY)}:{node.lineno}", level, first.value, keys
