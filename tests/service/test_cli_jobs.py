"""The commands that steer jobs and queues of a running service."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import aiohttp
from running import Command, environment, finish, listingd, service, start

from daemon.client import Target, open_client
from daemon.service import Service

__all__ = ["listingd", "service"]

UNKNOWN = "00000000-0000-7000-8000-000000000000"


async def test_enqueue_prints_the_id_alone_and_watch_follows_it_to_the_end(listingd: Command):
    made = await listingd("enqueue", "ping", "--input", '{"echo": "hello"}', "--tag", "t1")
    job_id = made.out.strip()

    watched = await listingd("jobs", "watch", job_id)
    shown = await listingd("jobs", "show", job_id, "--json")
    listed = await listingd("jobs", "list", "--tag", "t1", "--json")

    assert (0, 0) == (made.code, watched.code)
    assert "hello" == json.loads(shown.out)["result"]["echo"]
    assert [job_id] == [job["id"] for job in json.loads(listed.out)["data"]]


async def test_a_job_that_fails_ends_watch_with_1_and_its_reason(listingd: Command):
    ended = await listingd(
        "enqueue", "ping", "--input", '{"fail_times": 1}', "--max-attempts", "1", "--watch"
    )

    assert 1 == ended.code
    assert "(ping_failed)" in ended.err
    assert "attempt 1: ping_failed" in ended.err


async def test_cancelled_and_retried(listingd: Command):
    job_id = (await listingd("enqueue", "ping", "--run-at", "2100-01-01T00:00:00Z")).out.strip()

    cancelled = await listingd("jobs", "cancel", job_id)
    retried = await listingd("jobs", "retry", job_id)
    again = await listingd("jobs", "retry", job_id)

    assert f"{job_id} is cancelled." == cancelled.out.strip()
    assert 0 == retried.code
    assert 1 == again.code
    assert "only failed and cancelled jobs can be retried" in again.err


async def test_an_input_comes_from_a_file_and_a_photo_is_uploaded(listingd: Command, tmp_path: Path):
    (tmp_path / "input.json").write_text('{"slot": "main", "product": {"title": "Bottle"}}')
    photo = Path(__file__).parent.parent.parent / "examples" / "sample_photo.jpg"

    made = await listingd(
        "enqueue", "image", "--input", "@input.json", "--photo", str(photo), "--run-at", "2100-01-01T00:00:00Z",
        "--json",
    )  # fmt: skip

    assert 0 == made.code, made.err
    assert "upload_id" in json.loads(made.out)["input"]["photo"]


async def test_the_same_idempotency_key_makes_one_job(listingd: Command):
    first, second = [await listingd("enqueue", "ping", "--idempotency-key", "k1") for _ in range(2)]

    assert first.out == second.out


async def test_wrong_words_are_refused_in_plain_lines(listingd: Command):
    refused = {
        ("enqueue", "ping", "--input", "{"): 2,
        ("enqueue", "ping", "--input", "[]"): 2,
        ("enqueue", "ping", "--input", "@missing.json"): 2,
        ("enqueue", "pack", "--input", "{}"): 1,
        ("jobs", "show", "not-an-id"): 2,
        ("jobs", "show", UNKNOWN): 1,
        ("jobs", "watch", UNKNOWN): 1,
        ("queues", "pause", "unknown"): 2,
    }

    for arguments, code in refused.items():
        ended = await listingd(*arguments)
        assert code == ended.code, (arguments, ended)
        assert "rror: " in ended.err
        assert "Traceback" not in ended.err


async def test_a_wrong_key_says_where_the_right_one_is(listingd: Command):
    ended = await listingd("jobs", "list", LISTINGD_KEY="wrong" * 8)

    assert 2 == ended.code
    assert "refused the key" in ended.err
    assert "LISTINGD_KEY" in ended.err


async def test_a_key_that_no_header_can_carry_is_told_in_two_lines(tmp_path: Path):
    """Two lines of a file, say; aiohttp's own error came with its trace."""
    env = environment(LISTINGD_URL="http://127.0.0.1:1", LISTINGD_KEY="one\ntwo")

    ended = await finish(await start("jobs", "list", env=env, cwd=tmp_path))

    assert 2 == ended.code
    assert ["error: LISTINGD_KEY", "hint: "] == [
        ended.err.splitlines()[0][:19],
        ended.err.splitlines()[1][:6],
    ]


async def test_no_service_and_no_key_each_say_what_to_do(tmp_path: Path):
    there = environment(LISTINGD_URL="http://127.0.0.1:1", LISTINGD_KEY="k" * 32)
    keyless = environment(LISTINGD_STATE_DIR=str(tmp_path / "none"))

    nobody = await finish(await start("jobs", "list", env=there, cwd=tmp_path))
    no_key = await finish(await start("jobs", "list", env=keyless, cwd=tmp_path))

    assert (1, 2) == (nobody.code, no_key.code)
    assert "listingd serve" in nobody.err
    assert "LISTINGD_STATE_DIR" in no_key.err


async def test_a_second_server_on_the_port_is_told_in_two_lines(
    service: Service, database: str, tmp_path: Path
):
    port = service.url.rpartition(":")[2]
    env = environment(
        LISTINGD_STATE_DIR=str(tmp_path / "other"), LISTINGD_DATABASE_URL=database, LISTINGD_INSTANCE="b"
    )

    ended = await finish(await start("serve", "--port", port, env=env, cwd=tmp_path))

    told = [line for line in ended.err.splitlines() if not line.startswith("{")]
    assert 2 == ended.code
    assert ["error", "hint"] == [line.partition(":")[0] for line in told]


async def test_queues_are_paused_limited_and_resumed(listingd: Command):
    paused = await listingd("queues", "pause", "image", "--why", "new model")
    limited = await listingd("queues", "limit", "aplus", "3")
    listed = await listingd("queues", "list")
    resumed = await listingd("queues", "resume", "image")

    assert (0, 0, 0) == (paused.code, limited.code, resumed.code), paused.err
    assert "paused (new model)" in listed.out
    assert "at most 3 at once" in limited.out
    assert "image is open" in resumed.out


async def test_schedules_are_set_listed_and_removed(listingd: Command):
    made = await listingd("schedules", "set", "nightly", "0 3 * * *", "ping", "--time-zone", "Europe/Berlin")
    listed = await listingd("schedules", "list")
    wrong = await listingd("schedules", "set", "nightly", "0 3 * *", "ping")
    removed = await listingd("schedules", "remove", "nightly")

    assert (0, 0, 0) == (made.code, listed.code, removed.code), made.err
    assert 3 == made.out.count("T03:00:00+0")
    assert "Europe/Berlin" in listed.out
    assert "five fields" in wrong.err
    assert wrong.code != 0


async def test_top_prints_once_where_there_is_no_terminal(listingd: Command, service: Service):
    ended = await listingd("top")

    assert 0 == ended.code, ended.err
    assert service.settings.instance in ended.out
    assert "webhook" in ended.out


async def test_a_job_for_another_day_says_the_day(listingd: Command):
    await listingd("enqueue", "ping", "--run-at", "2199-01-31T03:00:00Z")

    listed = await listingd("jobs", "list")

    assert "pending, runs on 2199-01-31 at 03:00:00 UTC" in listed.out


async def test_a_waiting_job_is_explained(listingd: Command):
    job_id = (await listingd("enqueue", "ping", "--run-at", "2100-01-01T00:00:00Z")).out.strip()

    ended = await listingd("jobs", "explain", job_id)

    assert 0 == ended.code, ended.err
    assert "not_due" in ended.out


async def test_the_printed_document_is_the_one_that_is_served(listingd: Command, service: Service):
    printed = json.loads((await listingd("openapi")).out)

    async with aiohttp.ClientSession() as session, session.get(f"{service.url}/openapi.json") as response:
        served = await response.json()
    assert served == printed


async def test_a_stream_that_is_cut_goes_on_where_it_was(service: Service):
    """A proxy that closes connections must not lose the end of a job."""
    host, _, port = service.url.removeprefix("http://").partition(":")
    async with Proxy(host, int(port)) as proxy, open_client(Target(proxy.url, service.service_key)) as client:
        job = await client.create_job("ping", {"echo": 1, "sleep_s": 0.5})
        watch = client.watch_job(job["id"])
        first = await anext(watch)
        proxy.cut()
        rest = [seen async for seen in watch]

    assert 1 == proxy.cuts
    assert "processing" == first["state"]
    assert "completed" == rest[-1]["state"]


class Proxy:
    """Passes bytes on, until it is told to close what is open."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._open: set[asyncio.StreamWriter] = set()
        self.cuts = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._close_all()

    def cut(self) -> None:
        self.cuts += 1
        self._close_all()

    def _close_all(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        self._open |= {writer, far_writer}
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
