"""Gemini through google-generativeai, the SDK that the owner fixed.

    generate_json --> thread (bounded, may be left behind) --> SDK --> REST --> capped adapter --> wire

Its async door speaks gRPC and ignores the endpoint, so the blocking one runs in threads. Below the SDK an
adapter of our own for `requests` caps and times whole answers and raises refusals as they are: the SDK
would send a 401 three times, and hide a 402. The SDK is past its support; genai.py serves the same protocol.
New Google projects store requests by default, and this SDK cannot opt out.
"""

from __future__ import annotations

import asyncio
import importlib
import socket
import time
import traceback
import warnings
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from daemon.errors import Fate, ProviderError, TooLarge, Unavailable
from daemon.later import later
from daemon.providers import fates, gemini_wire
from daemon.providers.capped_client import CONNECT_TIMEOUT_S, causes, open_sdk
from daemon.providers.gemini_wire import NAME, OnLateUsage, Reading, TokenPrices
from daemon.providers.protocols import JsonAnswer, JsonRequest
from daemon.providers.threads import AbandonableThreads

if TYPE_CHECKING:
    import requests

    from daemon.imaging import codec
else:
    codec = later("daemon.imaging.codec")

# How long a thread goes on after its caller's deadline: an answer that is only late still tells its price.
LATE_S = 30.0
_CHUNK_BYTES = 64 * 1024

# The SDK's enum is of 2024: reasons it does not know come as bare integers, so names are looked up here.
_FINISHES = {
    0: "FINISH_REASON_UNSPECIFIED", 1: "STOP", 2: "MAX_TOKENS", 3: "SAFETY", 4: "RECITATION", 5: "OTHER",
    6: "LANGUAGE", 7: "BLOCKLIST", 8: "PROHIBITED_CONTENT", 9: "SPII", 10: "MALFORMED_FUNCTION_CALL",
    11: "IMAGE_SAFETY",
}  # fmt: skip


class GeminiText:
    """A TextProvider. The SDK (1.7 s, 72 MB) loads at the first call, in a thread.

    on_late_usage: told what an answer cost whose caller had gone.
    """

    def __init__(
        self,
        *,
        api_key: str,
        base_url: str,
        model: str,
        prices: TokenPrices,
        concurrency: int = 8,
        timeout_s: float = 60.0,
        on_late_usage: OnLateUsage | None = None,
        max_answer_bytes: int = gemini_wire.MAX_ANSWER_BYTES,
    ) -> None:
        self._api_key = api_key
        self._base_url = base_url.rstrip("/")
        self._model = model
        self._prices = prices
        self._on_late_usage = on_late_usage
        self._timeout_s = timeout_s
        self._max_answer_bytes = max_answer_bytes
        self._threads = AbandonableThreads(concurrency, name="gemini")
        self._names = fates.NameFailures()
        self._opening = asyncio.Lock()
        self._client: Any = None

    @property
    def name(self) -> str:
        return NAME

    @property
    def fingerprint(self) -> str:
        return f"gemini/1:{urlsplit(self._base_url).hostname}:{self._model}"

    def estimate_usd(self, request: JsonRequest) -> Decimal:
        return gemini_wire.estimate_usd(request, self._prices)

    async def generate_json(self, request: JsonRequest, *, timeout_s: float) -> JsonAnswer:
        """One document. finish "MAX_TOKENS": cut short; ask again with a larger max_output_tokens.

        Errors: ProviderError, its data carrying cost_usd where the call is known to be billed.
        """
        model = request.model or self._model
        timeout_s = min(timeout_s, self._timeout_s)
        await self._open()
        sent = False

        def call() -> Reading:
            nonlocal sent
            sent = True
            return self._call(request, model, timeout_s + LATE_S)

        try:
            async with asyncio.timeout(timeout_s):
                reading = await self._threads.run(call, on_late=lambda late: self._tell(late, model))
        except TimeoutError as exc:
            fate = Fate.AMBIGUOUS if sent else Fate.RETRY
            raise fates.problem(NAME, fate, "provider_timed_out") from exc
        except Unavailable as exc:
            raise fates.problem(NAME, Fate.RETRY, "no_thread") from exc
        self._names.clear()
        return gemini_wire.conclude(reading, self._prices, model)

    async def close(self) -> None:
        """Idle connections end; threads left behind end by themselves, or with the process."""
        if self._client is not None:
            await asyncio.to_thread(self._client.transport.close)

    def _tell(self, reading: Reading, model: str) -> None:
        if self._on_late_usage is not None:
            self._on_late_usage(gemini_wire.price(reading, self._prices), model)

    async def _open(self) -> None:
        async with self._opening:
            if self._client is None:
                self._client = await open_sdk(NAME, self._build)

    def _build(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the SDK announces its own end at import
            genai = _sdk()
            clients = importlib.import_module("google.generativeai.client")
        genai.configure(
            api_key=self._api_key, transport="rest", client_options={"api_endpoint": self._base_url}
        )
        client = clients.get_default_generative_client()
        # `configure` is global to the process; from here on this client is our own.
        adapter = _capped_adapter(self._max_answer_bytes)
        for scheme in ("https://", "http://"):
            client.transport._session.mount(scheme, adapter)  # noqa: SLF001 -- the SDK offers no other way
        return client

    def _call(self, request: JsonRequest, model: str, timeout_s: float) -> Reading:
        """Runs in a thread. Errors: ProviderError."""
        import requests
        import urllib3

        auth = importlib.import_module("google.auth.exceptions")
        json_format = importlib.import_module("google.protobuf.json_format")
        generative = _sdk().GenerativeModel(model)
        generative._client = self._client  # noqa: SLF001 -- else it takes the process's default client
        pictures = [{"mime_type": codec.inspect(i).content_type, "data": i} for i in request.images]
        try:
            response = generative.generate_content(
                [request.prompt, *pictures],
                generation_config={
                    "response_mime_type": "application/json",
                    "response_schema": gemini_wire.reduce_schema(request.schema),
                    "max_output_tokens": request.max_output_tokens,
                },
                # Without these the SDK repeats a 503 seven times in eight seconds.
                request_options={"timeout": timeout_s, "retry": None},
            )
        except _Refused as exc:
            raise gemini_wire.refusal(exc.status, exc.body, exc.headers) from exc
        except TooLarge as exc:
            raise fates.problem(NAME, Fate.AMBIGUOUS, "answer_too_large") from exc
        except (json_format.ParseError, RecursionError) as exc:
            raise fates.problem(NAME, Fate.RETRY, "answer_unreadable", status=200) from exc
        except auth.GoogleAuthError as exc:
            raise fates.problem(NAME, Fate.CONFIG, "provider_key_refused") from exc
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            raise self._translate(exc) from exc
        return _read(response)

    def _translate(self, exc: Exception) -> ProviderError:
        import requests
        import urllib3

        if any(isinstance(link, socket.gaierror) for link in causes(exc)):
            return fates.problem(NAME, *self._names.count())
        # Of the proxy: our own URL was read at the start.
        if isinstance(exc, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
            return fates.problem(NAME, Fate.CONFIG, "provider_unopened")
        if not _was_sent(exc):
            return fates.problem(NAME, Fate.RETRY, "provider_unreachable")
        if isinstance(exc, requests.ReadTimeout | urllib3.exceptions.ReadTimeoutError):
            return fates.problem(NAME, Fate.AMBIGUOUS, "provider_timed_out")
        return fates.problem(NAME, Fate.AMBIGUOUS, "provider_hung_up")


def _was_sent(exc: Exception) -> bool:
    """Whether the provider may have got the request, and so bills it. A kept connection that the server has just
    closed looks like an answer that was lost; it counts as sent.
    """
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, ProxyError

    chain = causes(exc)
    if any(isinstance(link, NewConnectionError | ConnectTimeoutError | ProxyError) for link in chain):
        return False
    # What breaks a handshake (a reset, no TLS, silence) has the same types as what breaks an answer.
    frames = (frame for link in chain for frame, _ in traceback.walk_tb(link.__traceback__))
    return all(frame.f_code.co_name != "do_handshake" for frame in frames)


def _sdk() -> Any:
    return importlib.import_module("google.generativeai")


class _Refused(Exception):
    """A status other than 200, with the body the provider sent."""

    def __init__(self, status: int, body: bytes, headers: Any) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.body = body
        self.headers = headers


def _capped_adapter(max_bytes: int) -> Any:
    """An adapter for requests.Session: whole answers within the time and size given, refusals raised."""
    from requests.adapters import HTTPAdapter
    from requests.exceptions import ReadTimeout

    class CappedAdapter(HTTPAdapter):
        def send(
            self,
            request: requests.PreparedRequest,
            stream: bool = False,
            timeout: Any = None,
            verify: bool | str = True,
            cert: Any = None,
            proxies: Any = None,
        ) -> requests.Response:
            ends_s = time.monotonic() + float(timeout)
            request.headers["Accept-Encoding"] = "identity"
            response = super().send(
                request, stream=True, timeout=(CONNECT_TIMEOUT_S, timeout), verify=verify, cert=cert,
                proxies=proxies,
            )  # fmt: skip
            try:
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise TooLarge("The answer is compressed although that was not asked for.")
                body = bytearray()
                # read1 returns what is there: a plain read would wait for a full chunk of a slow drip.
                while chunk := response.raw.read1(_CHUNK_BYTES):
                    body += chunk
                    if len(body) > max_bytes:
                        raise TooLarge("The answer is larger than we take.")
                    if time.monotonic() > ends_s:
                        raise ReadTimeout("the answer drips")
            except BaseException:
                response.close()
                raise
            if response.status_code != 200:
                raise _Refused(response.status_code, bytes(body), response.headers)
            response._content = bytes(body)  # noqa: SLF001 -- what requests itself sets when it has read
            response._content_consumed = True  # type: ignore[attr-defined]  # noqa: SLF001
            response.raw.release_conn()
            return response

    return CappedAdapter()


def _read(response: Any) -> Reading:
    """The SDK's answer in neutral words; `.text` is not touched, it raises on blocked answers."""
    usage = response.usage_metadata
    finish, text = "", ""
    if response.candidates:
        first = response.candidates[0]
        number = _raw(first).finish_reason
        finish = _FINISHES.get(number, f"UNKNOWN_{number}")
        text = "".join(part.text for part in first.content.parts)
    blocked = _raw(response.prompt_feedback).block_reason
    reason = f"BLOCK_REASON_{blocked}" if blocked else ""
    return Reading(text, finish, reason, usage.prompt_token_count, usage.total_token_count)


def _raw(message: Any) -> Any:
    """The plain protobuf: the wrapper warns about every enum value that is newer than itself."""
    return type(message).pb(message)
