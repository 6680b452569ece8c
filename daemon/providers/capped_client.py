"""The HTTP client under vendor SDKs (openai, google-genai): caps every answer, follows no redirect.

An SDK reads whole bodies into memory, so the cap sits below it, where the body still streams. Compressed
answers are refused unread: their true size is known only after unpacking.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, TypeVar

from daemon.errors import Fate, TooLarge
from daemon.providers.fates import NameFailures, problem

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10.0
MAX_ERROR_BYTES = 256 * 1024


def open_client(max_bytes: int, *, concurrency: int = 100) -> httpx2.AsyncClient:
    """A client whose answers end with TooLarge after `max_bytes`. The caller closes it.

    It has no read timeout: those never fire on a slow drip, each call has a total deadline instead.
    Proxies of the environment are honoured, as the base URL is the operator's own.
    """
    import httpx2

    class CappedStream(httpx2.AsyncByteStream):
        def __init__(self, stream: httpx2.AsyncByteStream, most: int) -> None:
            self._stream = stream
            self._most = most

        async def __aiter__(self) -> AsyncIterator[bytes]:
            size_bytes = 0
            async for chunk in self._stream:
                size_bytes += len(chunk)
                if size_bytes > self._most:
                    raise TooLarge("The answer is larger than we take.")
                yield chunk

        async def aclose(self) -> None:
            await self._stream.aclose()

    async def cap(response: httpx2.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise TooLarge("The answer is compressed although that was not asked for.")
        if isinstance(response.stream, httpx2.AsyncByteStream):
            refused = response.status_code >= 400  # the SDK reads these on the loop, whatever they hold
            response.stream = CappedStream(
                response.stream, min(max_bytes, MAX_ERROR_BYTES) if refused else max_bytes
            )

    timeout = httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S, pool=None)

    async def limit(request: httpx2.Request) -> None:
        # google-genai takes the client's own time-out away: a host that never answers would look like a lost answer.
        request.extensions["timeout"] = timeout.as_dict()

    return httpx2.AsyncClient(
        timeout=timeout,
        limits=httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
        headers={"Accept-Encoding": "identity"},
        event_hooks={"request": [limit], "response": [cap]},
        follow_redirects=False,
    )


async def open_sdk(provider: str, build: Callable[[], T]) -> T:
    """What `build` makes of a vendor's SDK, in a thread: that loads it, which takes more than a second.

    Errors: ProviderError; anything else would be booked as a call that was perhaps paid.
    """
    try:
        return await asyncio.to_thread(build)
    except RuntimeError as exc:
        raise problem(provider, Fate.RETRY, "no_thread") from exc
    except (ImportError, ValueError, OSError) as exc:  # a proxy of a kind that the client does not speak
        raise problem(provider, Fate.CONFIG, "provider_unopened") from exc


def classify_transport(exc: BaseException, names: NameFailures) -> tuple[Fate, str]:
    """(fate, our code) of a call that got no whole answer.

    Before the request was wholly sent nothing can have been billed: retry. After that nobody knows.
    """
    import httpx2

    chain = list(causes(exc))
    if any(isinstance(link, socket.gaierror) for link in chain):
        return names.count()
    unsent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError, httpx2.WriteError)
    if any(isinstance(link, unsent) for link in chain):
        return Fate.RETRY, "provider_unreachable"
    if any(isinstance(link, httpx2.TimeoutException | TimeoutError) for link in chain):
        return Fate.AMBIGUOUS, "provider_timed_out"
    return Fate.AMBIGUOUS, "provider_hung_up"


def causes(exc: BaseException) -> list[BaseException]:
    """The exception and what it was raised from, outermost first."""
    chain: list[BaseException] = []
    link: BaseException | None = exc
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain
