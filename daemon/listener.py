"""The LISTEN connection: hints that something is ready, or is to be cancelled. Hints only; polling is the truth.

A registration can be lost while the socket stays up, so the listener proves itself by a round trip through
the server every few seconds, reconnects with jitter, and after each reconnect calls every hint once: what was
notified in between is found by looking.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Mapping

import asyncpg

from daemon import db as database
from daemon import logs
from daemon.errors import Unavailable, first_cause

PROBE_EVERY_S = 10.0
PROBE_WITHIN_S = 5.0
RECONNECT_CAP_S = 5.0

log = logs.get_logger()


class Listener:
    """Calls a hint for each notification on its channel, and all of them after each (re)connect.

    hints: channel -> callback, called on the event loop, must not block.
    """

    def __init__(self, db: database.Database, hints: Mapping[str, Callable[[], None]]) -> None:
        self._db = db
        self._hints = dict(hints)
        self._probe_channel = f"listingd_probe_{os.getpid()}_{os.urandom(4).hex()}"
        self._answered = asyncio.Event()
        self.connected = False
        self._failures = 0  # since it was connected
        self._told = ""  # why it is not connected, told once

    async def run(self) -> None:
        """Listen for ever. Returns only when LISTEN cannot deliver here (a transaction pooler)."""
        if not self._db.can_listen:
            log.warning(
                "database.pooled",
                listen="no: jobs start by polling until LISTINGD_LISTEN_DATABASE_URL is a direct DSN",
            )
            return
        while True:
            try:
                await self._listen_until_lost()
            except (Unavailable, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as exc:
                self._failures += 1
                why = first_cause(exc)
                if why != self._told:
                    log.warning("listener.lost", error=why)
                    self._told = why
            longest_s = min(RECONNECT_CAP_S, 0.1 * 2.0 ** min(self._failures, 10))
            await asyncio.sleep(random.uniform(0.05, longest_s))

    async def _listen_until_lost(self) -> None:
        connection = await self._db.dedicated_connection("listener", direct=True)
        try:
            with database.translate_errors():
                lost = asyncio.Event()
                connection.add_termination_listener(lambda _: lost.set())
                async with asyncio.timeout(PROBE_WITHIN_S):
                    for channel in (*self._hints, self._probe_channel):
                        await connection.add_listener(channel, self._heard)
                await self._prove(connection)
                self.connected = True
                self._failures = 0
                self._told = ""
                log.info("listener.connected")
                for hint in self._hints.values():
                    hint()
                while True:
                    try:
                        async with asyncio.timeout(PROBE_EVERY_S):
                            await lost.wait()
                    except TimeoutError:
                        await self._prove(connection)
                    else:
                        raise Unavailable("The listening connection was closed.")
        finally:
            self.connected = False
            connection.terminate()  # close() hangs on a half-open connection

    async def _prove(self, connection: asyncpg.Connection) -> None:
        """A round trip through the server on this session. Errors: TimeoutError."""
        self._answered.clear()
        async with asyncio.timeout(PROBE_WITHIN_S):
            await connection.fetch(self._db.sql["notify_probe"], self._probe_channel)
            await self._answered.wait()

    def _heard(self, _connection: object, _pid: int, channel: str, _payload: object) -> None:
        if channel == self._probe_channel:
            self._answered.set()
        else:
            self._hints[channel]()
