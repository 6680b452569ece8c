"""Fetching from addresses that strangers choose: photo URLs, URLs in provider answers, webhooks.

    url --resolve--> addresses --AddressGuard (in the connector)--> socket --capped stream--> bytes

The guard sits where a socket is made, because only there every address passes: literal ones, those of
redirects, and those of a name that answers differently the second time. No proxy of the environment is
used (it would resolve names on its own), no cookie is kept, nothing is decompressed (a few kilobytes of
gzip unpack to gigabytes). Outward fetching never goes through anything else.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Any

import aiohttp

from daemon.errors import Fate, ProviderError, TooLarge

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_REDIRECTS = 3
CONNECT_TIMEOUT_S = 10.0
_CHUNK_BYTES = 64 * 1024
_NAME = "url"  # what errors name as the provider
_WEB_URL = re.compile(r"https?://[^\s/?#]+(?:[/?#]\S*)?\Z", re.IGNORECASE)  # aiohttp asserts a host later
_TOO_LARGE = "The answer is larger than we take."

# Own lists, since `ipaddress.is_global` differs between patch releases of Python and calls NAT64, multicast,
# fec0::/10 and Azure's host address public. Source: IANA special-purpose registries, read 2026-11-23.
_CLOSED_V4 = tuple(
    ipaddress.IPv4Network(net)
    for net in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24",
        "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32",  # Azure's host, metadata and health service behind a public number
    )
)  # fmt: skip
_OPEN_V6 = ipaddress.IPv6Network("2000::/3")  # the only range in use for hosts of the public Internet
_CLOSED_V6 = tuple(
    ipaddress.IPv6Network(net)
    for net in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
)  # Teredo and 6to4 (2001::/32, 2002::/16) wrap any IPv4 address; they are retired, so no host is lost
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an address (text of IPv4 or IPv6, a zone allowed) belongs to the public Internet.

    An IPv4 address inside an IPv6 one (mapped, NAT64) is judged by itself: on IPv6-only hosts all of the
    old Internet is reached through NAT64.
    """
    try:
        return _is_public(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return False


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in net for net in _CLOSED_V4)
    if address.ipv4_mapped is not None:
        return _is_public(address.ipv4_mapped)
    if address in _NAT64:
        return _is_public(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return address in _OPEN_V6 and not any(address in net for net in _CLOSED_V6)


class AddressGuard:
    """Makes sockets to public addresses only, and to `allowed` networks. `refused` holds the others."""

    def __init__(self, allowed: Sequence[Network] = ()) -> None:
        self._allowed = tuple(allowed)
        self.refused: list[str] = []

    def permits(self, address: str) -> bool:
        if is_public(address):
            return True
        try:
            parsed: Address = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        return any(parsed in net for net in self._allowed)

    def make_socket(self, addr_info: tuple[Any, ...]) -> socket.socket:
        """A socket for aiohttp's connector. Errors: OSError EACCES for an address that is not permitted."""
        family, kind, proto, _, sockaddr = addr_info
        if not self.permits(str(sockaddr[0])):
            self.refused.append(str(sockaddr[0]))
            raise OSError(errno.EACCES, "address is not public")
        return socket.socket(family=family, type=kind, proto=proto)


def open_session(guard: AddressGuard, **kw: Any) -> aiohttp.ClientSession:
    """A client session whose every connection passes the guard; the caller closes it.

    kw: further arguments of aiohttp.ClientSession (timeout, headers).
    """
    connector = aiohttp.TCPConnector(socket_factory=guard.make_socket, use_dns_cache=False)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        **kw,
    )


async def fetch_bytes(
    url: str,
    *,
    max_bytes: int,
    deadline_s: float,
    allowed: Sequence[Network] = (),
) -> bytes:
    """The body behind an http(s) URL, of at most `max_bytes`, within `deadline_s` seconds in all.

    Errors: ProviderError with provider "url". Permanent: url_forbidden (an address that is not public),
    url_too_large, url_refused (status 4xx), url_malformed. Retry: url_timed_out, url_unreachable,
    url_failed (408, 425, 429, 5xx).
    """
    if not _WEB_URL.match(url):
        raise _malformed()
    guard = AddressGuard(allowed)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
    try:
        async with (
            asyncio.timeout(deadline_s),
            open_session(guard, timeout=timeout, headers={"Accept-Encoding": "identity"}) as session,
            # aiohttp refuses when the count is reached, so "at most three" is four here.
            session.get(url, max_redirects=MAX_REDIRECTS + 1) as response,
        ):
            _check_status(response.status)
            return await read_capped(response, max_bytes)
    except TimeoutError as exc:
        raise _problem("url_timed_out", Fate.RETRY, "The URL took too long to answer.") from exc
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, aiohttp.TooManyRedirects, ValueError) as exc:
        raise _malformed() from exc
    except TooLarge as exc:
        raise _problem(
            "url_too_large", Fate.PERMANENT, f"The file behind the URL is larger than {max_bytes} bytes."
        ) from exc
    except (aiohttp.ClientError, OSError) as exc:
        if guard.refused:
            raise _problem(
                "url_forbidden", Fate.PERMANENT, "The URL leads to an address that is not public.",
                "Upload the file instead, or let the operator allow its network.",
            ) from exc  # fmt: skip
        raise _problem("url_unreachable", Fate.RETRY, "The URL could not be reached.") from exc


async def read_capped(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The body, read piece by piece. Errors: TooLarge as soon as it is known, by header or count."""
    if (response.content_length or 0) > max_bytes:
        raise TooLarge(_TOO_LARGE)
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        body += chunk
        if len(body) > max_bytes:
            raise TooLarge(_TOO_LARGE)
    return bytes(body)


def _check_status(status: int) -> None:
    if status in (408, 425, 429) or status >= 500:
        raise _problem("url_failed", Fate.RETRY, f"The URL answered with status {status}.", status=status)
    if status != 200:
        message = f"The URL answered with status {status}."
        raise _problem("url_refused", Fate.PERMANENT, message, status=status)


def _malformed() -> ProviderError:
    hint = f"Use an http or https URL with at most {MAX_REDIRECTS} redirects."
    return _problem("url_malformed", Fate.PERMANENT, "The URL cannot be followed.", hint)


def _problem(code: str, fate: Fate, message: str, hint: str = "", status: int | None = None) -> ProviderError:
    return ProviderError(message, provider=_NAME, fate=fate, code=code, hint=hint, status=status)
