"""The PostgreSQL that is measured: the embedded one with default durability, in a directory of its own."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from bench import processes
from daemon.embedded import PostgresServer

TOLD_SETTINGS = (
    "fsync", "synchronous_commit", "full_page_writes", "wal_sync_method", "shared_buffers", "max_wal_size",
    "checkpoint_timeout", "max_connections", "wal_compression", "autovacuum",
)  # fmt: skip
SEGMENTS = 6
"""One more than what min_wal_size keeps for later."""


class Server:
    """A running server; every statement takes a connection of its own."""

    def __init__(self, postgres: PostgresServer) -> None:
        self._postgres = postgres
        self.pid = int((postgres.data_dir / "postmaster.pid").read_text().splitlines()[0])

    def dsn(self, database: str) -> str:
        return self._postgres.dsn_of(database)

    async def execute(self, database: str, *statements: str) -> None:
        connection = await asyncpg.connect(self.dsn(database))
        try:
            for statement in statements:
                await connection.execute(statement, timeout=300)
        finally:
            await connection.close()

    async def fetch_value(self, database: str, query: str, *arguments: object) -> Any:
        connection = await asyncpg.connect(self.dsn(database))
        try:
            return await connection.fetchval(query, *arguments)
        finally:
            await connection.close()

    async def create(self, database: str, template: str | None = None) -> None:
        await self.drop(database)
        await self.execute("postgres", f"create database {database} template {template or 'template1'}")

    async def drop(self, database: str) -> None:
        await self.execute("postgres", f"drop database if exists {database} with (force)")

    async def settle(self, database: str) -> None:
        """Statistics and visibility as after a while; the next checkpoint far away."""
        await self.execute(database, "vacuum analyze", "checkpoint")

    def cpu_s(self) -> float:
        """CPU spent by the server so far, seconds: the postmaster, its children and those that ended."""
        return processes.cpu_s(self.pid, ended_children=True)

    async def make_segments(self) -> None:
        """WAL segments to be used again, as after a while: a new one is filled with zeros while every commit waits."""
        switch = "select pg_logical_emit_message(false, 'bench', ''); select pg_switch_wal()"
        await self.execute("postgres", *[switch] * SEGMENTS, "checkpoint", "checkpoint")

    async def describe(self) -> str:
        """Version and settings, as the server shows them."""
        version = await self.fetch_value("postgres", "show server_version")
        settings = await self.fetch_value(
            "postgres",
            "select string_agg(n || ' ' || current_setting(n), ', ' order by i) from unnest($1::text[]) with ordinality as u (n, i)",
            TOLD_SETTINGS,
        )
        return f"{version}, {settings}"


@asynccontextmanager
async def temporary_server(directory: Path | None) -> AsyncIterator[Server]:
    """A new server below directory (default: the system's temporary one), gone at the end."""
    home = Path(tempfile.mkdtemp(prefix="listingd-bench-", dir=directory))
    postgres = PostgresServer(home / "postgres")
    try:
        await asyncio.to_thread(postgres.start)
        server = Server(postgres)
        await server.make_segments()
        yield server
    finally:
        await asyncio.to_thread(postgres.stop)
        shutil.rmtree(home, ignore_errors=True)
