"""What all protocol servers share: the journal of calls, scripted faults, start and stop."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from types import TracebackType
from typing import Any, Literal, Self

from aiohttp import web

_PIECE = bytes(64 * 1024)


@dataclass(frozen=True, slots=True)
class Fault:
    """How one call is to go wrong.

    status: other than 200, the call is refused and nothing is billed; body: instead of the server's own
    (None: its own error shape, or with 200 its own answer); delay_s: before the answer's first byte;
    drip_s: seconds between single bytes; huge_bytes: so many are generated while sending, under the
    status huge_status;
    drop: the connection ends `before_read` (the request is not taken), `before_answer` (work done and
    billed, answer lost) or `mid_body`; keep: the share of the body sent before `mid_body`;
    code, type, details: for the error shape.
    """

    status: int = 200
    code: str | None = None
    type: str | None = None
    details: Any = None
    body: bytes | None = None
    content_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0
    drip_s: float = 0
    huge_bytes: int = 0
    huge_status: int = 200
    drop: Literal["", "before_read", "before_answer", "mid_body"] = ""
    keep: float = 0.5


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    field: str
    file_name: str
    content_type: str
    size_bytes: int
    sha256: str
    head: bytes

    @classmethod
    def read(cls, name: str, file_name: str, content_type: str, data: bytes) -> ReceivedFile:
        return cls(name, file_name, content_type, len(data), hashlib.sha256(data).hexdigest(), data[:64])


@dataclass(slots=True)
class Call:
    """One request as the server saw it. cost_usd: what it billed; ended_s: the answer was made, or sent where it is
    sent piece by piece; answered: the last byte was sent.
    """

    number: int
    method: str
    path: str
    headers: Mapping[str, str]
    fields: dict[str, Any] = field(default_factory=dict)
    files: list[ReceivedFile] = field(default_factory=list)
    status: int = 0
    cost_usd: Decimal = Decimal(0)
    usage: dict[str, Any] = field(default_factory=dict)
    request_id: str = ""
    started_s: float = 0
    ended_s: float = 0
    sent_bytes: int = 0
    answered: bool = False


class Journal:
    """Every call in the order of arrival."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._moved = asyncio.Event()

    def add(self, call: Call) -> None:
        self.calls.append(call)
        self._moved.set()

    def end(self, call: Call) -> None:
        call.ended_s = asyncio.get_running_loop().time()
        self._moved.set()

    async def until(self, count: int) -> None:
        """Waits until so many calls have arrived."""
        while len(self.calls) < count:
            self._moved.clear()
            await self._moved.wait()

    async def until_ended(self, count: int) -> None:
        """Waits until so many calls have ended, well or not."""
        while sum(call.ended_s > 0 for call in self.calls) < count:
            self._moved.clear()
            await self._moved.wait()

    @property
    def billed(self) -> list[Call]:
        return [call for call in self.calls if call.cost_usd]

    @property
    def billed_usd(self) -> Decimal:
        return sum((call.cost_usd for call in self.calls), Decimal(0))

    @property
    def most_at_once(self) -> int:
        """The largest number of calls that made something in the server at one moment; questions do not count."""
        made = [call for call in self.calls if call.method == "POST"]
        edges = sorted([(c.started_s, 1) for c in made] + [(c.ended_s or float("inf"), -1) for c in made])
        most = now = 0
        for _, step in edges:
            now += step
            most = max(most, now)
        return most


@dataclass(slots=True)
class Answer:
    """What the server would say if nothing went wrong."""

    body: bytes
    content_type: str
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    cost_usd: Decimal = Decimal(0)
    usage: dict[str, Any] = field(default_factory=dict)
    pieces: list[tuple[float, bytes]] | None = None  # (seconds to wait before, bytes): a streamed body


class Refusal(Exception):
    """The request breaks the protocol: answered as the provider would."""

    def __init__(self, status: int, code: str | None, message: str = "", *, kind: str | None = None) -> None:
        super().__init__(message)
        self.fault = Fault(status=status, code=code, type=kind)
        self.message = message


class ProtocolServer:
    """One provider on 127.0.0.1 at a free port: `url`, `journal`, `faults`, `always`, `latency_s`."""

    name = "provider"
    api_key = "test-key-of-no-worth"

    def __init__(self) -> None:
        self.journal = Journal()
        self.faults: deque[Fault] = deque()
        self.always: Fault | None = None
        self.latency_s = 0.0
        self.url = ""
        self._stopped = asyncio.Event()
        self._runner: web.AppRunner | None = None

    def routes(self) -> list[web.RouteDef]:
        raise NotImplementedError

    def error_body(self, fault: Fault, message: str) -> Any:
        """The provider's error shape, as a JSON value."""
        raise NotImplementedError

    def rate_headers(self) -> dict[str, str]:
        return {}

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=256 * 1024 * 1024)
        app.add_routes(self.routes())
        # Without a cap on the header wait a hung client would hold the stop up.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._runner is not None:
            await self._runner.cleanup()

    def open_call(self, request: web.Request) -> Call:
        number = len(self.journal.calls) + 1
        call = Call(
            number=number,
            method=request.method,
            path=request.path,
            headers={k.lower(): v for k, v in request.headers.items()},
            request_id=f"req_{self.name}_{number}",
            started_s=asyncio.get_running_loop().time(),
        )
        self.journal.add(call)
        return call

    @asynccontextmanager
    async def _timed(self, call: Call) -> AsyncIterator[None]:
        try:
            yield
        finally:
            if not call.ended_s:
                self.journal.end(call)

    async def serve(self, request: web.Request, *, work: Any) -> web.StreamResponse:
        """One call: journal it, read it by `work(request, call)`, send its answer or the scripted fault."""
        call = self.open_call(request)
        fault = self.faults.popleft() if self.faults else self.always
        async with self._timed(call):
            if fault is not None and fault.drop == "before_read":
                return self._hang_up(request)
            try:
                answer = await work(request, call)
            except Refusal as refusal:
                return await self._refuse(request, call, refusal.fault, refusal.message)
            except ConnectionError:  # the client died while it was sending
                return self._hang_up(request)
            wait_s = fault.delay_s if fault is not None and fault.delay_s else self.latency_s
            await self._wait(wait_s)
            if fault is not None and fault.status != 200:
                return await self._refuse(request, call, fault, "scripted fault")
            call.cost_usd, call.usage, call.status = answer.cost_usd, answer.usage, answer.status
            if fault is not None and fault.drop == "before_answer":
                return self._hang_up(request)
            return await self._send(request, call, answer, fault or Fault())

    async def _wait(self, delay_s: float) -> None:
        """A delay that ends when the server stops, so that no test waits for a hung call."""
        if delay_s <= 0:
            return
        try:
            async with asyncio.timeout(delay_s):
                await self._stopped.wait()
        except TimeoutError:
            return

    def _hang_up(self, request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)

    async def _refuse(
        self, request: web.Request, call: Call, fault: Fault, message: str
    ) -> web.StreamResponse:
        body, content_type = fault.body, fault.content_type or "application/json"
        if body is None:
            body = json.dumps(self.error_body(fault, message)).encode()
        answer = Answer(body, content_type, status=fault.status)
        return await self._send(request, call, answer, Fault(headers=fault.headers))

    async def _send(
        self, request: web.Request, call: Call, answer: Answer, fault: Fault
    ) -> web.StreamResponse:
        body = answer.body if fault.body is None else fault.body
        call.status = fault.huge_status if fault.huge_bytes else answer.status
        response = web.StreamResponse(status=call.status)
        response.headers.update(
            {"x-request-id": call.request_id, **self.rate_headers(), **answer.headers, **fault.headers}
        )
        response.content_type = fault.content_type or answer.content_type
        pieces = answer.pieces if fault.body is None else None
        if not (pieces or fault.huge_bytes):
            response.content_length = len(body)
            # Now: a client that has read the answer may call again before we come back.
            self.journal.end(call)
        try:
            await response.prepare(request)
            await self._write(response, call, body, pieces, fault)
            if fault.drop == "mid_body":
                return self._hang_up(request)
            await response.write_eof()
            call.answered = True
        except (ConnectionResetError, ConnectionError):
            pass  # the client cut us off: sent_bytes says after how much
        return response

    async def _write(
        self,
        response: web.StreamResponse,
        call: Call,
        body: bytes,
        pieces: list[tuple[float, bytes]] | None,
        fault: Fault,
    ) -> None:
        async def put(data: bytes) -> None:
            await response.write(data)
            call.sent_bytes += len(data)

        if fault.huge_bytes:
            while call.sent_bytes < fault.huge_bytes:
                await put(_PIECE)
        elif fault.drip_s:
            for at in range(len(body)):
                await put(body[at : at + 1])
                await self._wait(fault.drip_s)
                if self._stopped.is_set():
                    return
        elif fault.drop == "mid_body":
            await put(body[: max(1, int(len(body) * fault.keep))])
            # The half shall reach the client before the connection ends, else it looks like no answer.
            await self._wait(0.05)
        elif pieces:
            for wait_s, piece in pieces:
                await self._wait(wait_s)
                await put(piece)
        else:
            await put(body)


def count_tokens(text: str) -> int:
    """As tokenizers do, about: four letters of English, one character of Chinese or Japanese."""
    return math.ceil(sum(0.25 if character.isascii() else 1 for character in text))


async def read_form(request: web.Request, call: Call) -> dict[str, list[bytes]]:
    """The multipart or urlencoded body: fields and files into the journal, bytes by field name returned."""
    received: dict[str, list[bytes]] = {}
    form = await request.post()
    for name, value in form.items():
        if isinstance(value, web.FileField):
            data = await asyncio.to_thread(value.file.read)
            await asyncio.to_thread(value.file.close)
            call.files.append(ReceivedFile.read(name, value.filename, value.content_type, data))
            received.setdefault(name, []).append(data)
        else:
            call.fields[name] = value if isinstance(value, str) else value.decode()
    return received
