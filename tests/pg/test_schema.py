"""sql/schema.sql is what the migrations make."""

from __future__ import annotations

import asyncpg

from daemon.db import sql_dir
from tests.pg.schema_snapshot import describe


async def test_the_snapshot_is_the_migrated_schema(database: str) -> None:
    """`make schema` writes it anew; a reviewer sees what a migration changes."""
    connection = await asyncpg.connect(database)
    try:
        made = await describe(connection)
    finally:
        await connection.close()

    assert (sql_dir() / "schema.sql").read_text(encoding="utf-8") == made, "run `make schema`"
