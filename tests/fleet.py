"""Real processes for the tests of faults and for bench/faults.py: Postgres servers and daemons that may be killed,
stopped and started again, and a TCP proxy that can swallow what passes.

Everything started here dies with the process that started it (Linux), however that ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg

from daemon.embedded import PostgresServer
from daemon.migrate import migrate
from tests.nursery import Child, Nursery, die_with_parent

KEY = "fleet-" + "k" * 32
HEADERS = {"Authorization": f"Bearer {KEY}"}


def find_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


NURSERY = Nursery()


class Server:
    """A Postgres of one's own on a TCP port, with real commits. All methods block."""

    def __init__(self, directory: Path, **options: str) -> None:
        self.directory = directory
        self.port = find_port()
        self._package = PostgresServer(directory / "pg", version=18, options={"fsync": "off"})
        # The machine does not lose power here: what the kernel has is kept. Commits are real.
        self._options = {
            "fsync": "off", "full_page_writes": "off", "max_connections": "200", "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "", "port": str(self.port), "wal_keep_size": "64MB", **options,
        }  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def create(self) -> Server:
        """Make its data directory."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._package._open_the_way()
        self._package._init()
        return self

    def copy(self, primary: Server) -> Server:
        """Make its data directory as a streaming standby of a running server."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._package._open_the_way()
        if os.geteuid() == 0:
            owner = primary._package.data_dir.stat()
            os.chown(self.directory, owner.st_uid, owner.st_gid)
        self._tool("pg_basebackup", "-D", str(self._package.data_dir), "-d", primary.dsn, "-R", "-c", "fast")
        return self

    def start(self) -> Server:
        """Start it and wait until it takes connections."""
        data = self._package.data_dir
        with suppress(FileNotFoundError):  # left by a kill; another process may have the number by now
            (data / "postmaster.pid").unlink()
        flags = [part for name, value in self._options.items() for part in ("-c", f"{name}={value}")]
        with (self.directory / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._package.bin_dir / "postgres"), "-D", str(data), *flags],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **self._identity(),
                preexec_fn=die_with_parent(signal.SIGQUIT),  # noqa: PLW1509 -- prctl takes no locks
            )  # fmt: skip
        until = time.monotonic() + 30
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((self.directory / "postgres.log").read_text()[-2000:])
            time.sleep(0.02)
        return self

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: fast shutdown; SIGQUIT: immediate, as after a crash."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(timeout=30)

    def promote(self) -> None:
        self._tool("pg_ctl", "promote", "-D", str(self._package.data_dir))

    def create_database(self, name: str, migrated: bool = True) -> str:
        """A new database; its DSN."""
        dsn = self.dsn.removesuffix("postgres") + name
        asyncio.run(_create_database(self.dsn, name, dsn if migrated else None))
        return dsn

    def _answers(self) -> bool:
        return 0 == subprocess.run(
            [str(self._package.bin_dir / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False
        ).returncode  # fmt: skip

    def _tool(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._package.bin_dir / program), *arguments], check=True, cwd="/",
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **self._identity(),
        )  # fmt: skip

    def _identity(self) -> dict[str, Any]:
        """Postgres does not run as root."""
        if os.geteuid() != 0:
            return {}
        at = self._package.data_dir if self._package.data_dir.exists() else self.directory
        return {"user": at.stat().st_uid, "group": at.stat().st_gid, "extra_groups": []}


async def _create_database(server: str, name: str, migrate_at: str | None) -> None:
    connection = await asyncpg.connect(server)
    try:
        await connection.execute(f"create database {name}")
    finally:
        await connection.close()
    if migrate_at is not None:
        await migrate(migrate_at)


class Daemon:
    """`listingd serve` as a process, which may be started again and again under the same name.

    settings: as in the environment without the prefix (lease_s=3, workers__concurrency=4).
    kinds: a module that registers handlers of further kinds; journal: host:port of what they call.
    """

    def __init__(
        self,
        directory: Path,
        dsn: str,
        *,
        name: str = "one",
        kinds: str | None = None,
        journal: str = "",
        **settings: object,
    ) -> None:
        self.directory = directory
        self.name = name
        self._kinds = kinds
        directory.mkdir(parents=True, exist_ok=True)
        settings = {
            "database_url": dsn, "state_dir": directory / "state", "instance": name, "service_key": KEY,
            "http__port": 0, "log__format": "json", "lease_s": 3, "heartbeat_s": 0.5, "poll_s": 1,
        } | settings  # fmt: skip
        self.env = os.environ | {"FAULTS_JOURNAL": journal}
        self.env |= {f"LISTINGD_{key.upper()}": str(value) for key, value in settings.items()}
        self._log = directory / "log"
        self._log.touch()
        self._offset = 0
        self.process: Child | None = None

    async def start(self, within_s: float = 90) -> Daemon:
        """Start it and wait until it says that it is ready."""
        self.launch()
        await self.wait_for("service.ready", within_s)
        return self

    def launch(self) -> None:
        """Start it without waiting."""
        self._offset = self._log.stat().st_size
        self.process = NURSERY.spawn(env=self.env, cwd=self.directory, log=self._log, kinds=self._kinds)

    @property
    def pid(self) -> int:
        """Of the latest run."""
        assert self.process is not None
        assert self.process.pid is not None
        return self.process.pid

    @property
    def url(self) -> str:
        """Of the latest run."""
        return next(str(line["url"]) for line in self.read_log() if line.get("event") == "service.ready")

    def read_log(self, *, whole: bool = False) -> Iterator[dict[str, Any]]:
        """The lines of the latest run, or of all; what is no JSON (a crash of the interpreter) as {"text"}."""
        with self._log.open("rb") as log:
            log.seek(0 if whole else self._offset)
            for line in log.read().splitlines():
                try:
                    yield json.loads(line)
                except ValueError:
                    yield {"text": line.decode(errors="replace")}

    def find(self, event: str, **keys: object) -> list[dict[str, Any]]:
        """The latest run's lines of one event with these values."""
        return [
            line
            for line in self.read_log()
            if line.get("event") == event and all(line.get(key) == value for key, value in keys.items())
        ]

    async def wait_for(self, event: str, within_s: float = 30, **keys: object) -> dict[str, Any]:
        """The first such line of the latest run. Errors: AssertionError with the log when it does not come."""
        until = time.monotonic() + within_s
        while not (found := self.find(event, **keys)):
            ended = self.process is None or self.process.poll() is not None
            if ended or time.monotonic() > until:
                if found := self.find(event, **keys):
                    break
                raise AssertionError(f"{self.name}: no {event} within {within_s} s\n{self.tail()}")
            await asyncio.sleep(0.02)
        return found[0]

    def tail(self) -> str:
        return "\n".join(json.dumps(line) for line in list(self.read_log())[-40:])

    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone. Nothing when it does not run."""
        if self.process is not None:
            self.process.kill()

    async def wait(self, within_s: float) -> int:
        """Its exit code."""
        assert self.process is not None
        until = time.monotonic() + within_s
        while (code := self.process.poll()) is None:
            if time.monotonic() > until:
                raise AssertionError(f"{self.name} still runs after {within_s} s\n{self.tail()}")
            await asyncio.sleep(0.02)
        return code


class Proxy:
    """A TCP proxy on a free port. Errors of its clients are nobody's concern.

    swallowing: bytes in both directions vanish while the connections stay up (a half-open connection);
    new connections are taken and get no answer either.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self.swallowing = False
        self._open: set[asyncio.StreamWriter] = set()
        self._half_open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def break_silently(self) -> None:
        """Nothing passes through today's connections any more, though they stay up; new ones work."""
        self._half_open |= self._open

    def cut(self) -> None:
        """Close every connection."""
        for writer in self._open:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled with the loop: the streams of Python 3.11 would call that an error of theirs.
        with suppress(OSError, asyncio.CancelledError):
            there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while data := await reader.read(65536):
                if not self.swallowing and writer not in self._half_open:
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        finally:
            self._open.discard(writer)
            self._half_open.discard(writer)
            writer.close()
