"""The guard in the connector: which addresses are reached, and how much is read from them."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from daemon.errors import Fate, ProviderError
from daemon.providers.guard import AddressGuard, fetch_bytes, is_public, open_session

FIRST_HOP = ipaddress.ip_network("127.0.0.2/32")
LOOPBACK = ipaddress.ip_network("127.0.0.0/8")


@dataclass
class Canary:
    """Listens on both loopbacks at one port; `touched` counts connections, which must stay 0."""

    port: int = 0
    touched: int = 0
    servers: list[asyncio.Server] = field(default_factory=list)

    async def start(self) -> None:
        def touch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.touched += 1
            writer.close()

        first = await asyncio.start_server(touch, "127.0.0.1", 0)
        self.port = first.sockets[0].getsockname()[1]
        self.servers = [first]
        if socket.has_ipv6:
            with contextlib.suppress(OSError):  # a machine without IPv6 has nothing to reach there
                self.servers.append(await asyncio.start_server(touch, "::1", self.port))


@pytest.fixture
async def canary() -> AsyncIterator[Canary]:
    listening = Canary()
    await listening.start()
    yield listening
    for server in listening.servers:
        server.close()
        await server.wait_closed()


@dataclass
class FirstHop:
    """A server at 127.0.0.2, which tests allow; `answer` makes its answers."""

    url: str = ""
    answer: Any = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        response: web.StreamResponse = await self.answer(request)
        return response


@pytest.fixture
async def first_hop() -> AsyncIterator[FirstHop]:
    hop = FirstHop()
    app = web.Application()
    app.router.add_get("/{path:.*}", hop.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.2", 0).start()
    hop.url = f"http://127.0.0.2:{runner.addresses[0][1]}"
    yield hop
    await runner.cleanup()


PRIVATE_HOSTS = [
    "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127。0。0。1",
    "①②⑦.⓪.⓪.①", "localhost", "localhost.", "LOCALHOST", "0.0.0.0", "0", "[::1]", "[::]",
    "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[0:0:0:0:0:0:0:1]",
    "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]", "user:pass@127.0.0.1",
]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE_HOSTS)
async def test_private_host_is_never_connected_to(canary: Canary, host: str) -> None:
    with pytest.raises(ProviderError) as caught:
        await fetch_bytes(f"http://{host}:{canary.port}/", max_bytes=1000, deadline_s=5)

    assert 0 == canary.touched
    # Forms that this system's resolver does not understand are unreachable rather than forbidden.
    assert caught.value.code in ("url_forbidden", "url_malformed", "url_unreachable")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0x7f000001", "[::ffff:127.0.0.1]"])
async def test_redirect_into_the_private_network_is_not_followed(
    canary: Canary, first_hop: FirstHop, host: str
) -> None:
    target = f"http://{host}:{canary.port}/"
    first_hop.answer = lambda _: _redirect(target)

    with pytest.raises(ProviderError):
        await fetch_bytes(first_hop.url, max_bytes=1000, deadline_s=5, allowed=[FIRST_HOP])

    assert 0 == canary.touched


class Rebinding(aiohttp.abc.AbstractResolver):
    """Answers with an allowed address the first time, with loopback ever after."""

    def __init__(self) -> None:
        self.asked = 0

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[aiohttp.abc.ResolveResult]:
        self.asked += 1
        address = "127.0.0.2" if self.asked == 1 else "127.0.0.1"
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": socket.AF_INET,
                "proto": 6,
                "flags": 0,
            }
        ]

    async def close(self) -> None:
        pass


async def test_name_that_changes_its_address_meets_the_guard_again(
    canary: Canary, first_hop: FirstHop
) -> None:
    """DNS rebinding: the check is made on the address that is dialled, not on one resolved before."""
    first_hop.answer = lambda _: _redirect(f"http://rebinds.test:{canary.port}/")
    guard = AddressGuard([FIRST_HOP])
    session = open_session(guard)
    session.connector._resolver = Rebinding()  # type: ignore[union-attr]
    port = first_hop.url.rsplit(":", 1)[1]

    with pytest.raises(aiohttp.ClientConnectorError):
        await session.get(f"http://rebinds.test:{port}/")

    assert ["127.0.0.1"] == guard.refused
    assert 0 == canary.touched
    await session.close()


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "127.0.0.1", "169.254.169.254",
        "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1",
        "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
        "0.0.0.0", "168.63.129.16",
        "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:10.0.0.1", "::ffff:168.63.129.16", "fe80::1",
        "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001::1", "2001:db8::1",
        "2002:7f00:1::", "2002:808:808::", "3fff::1", "5f00::1", "100::1", "64:ff9b::7f00:1",
        "64:ff9b::169.254.169.254", "64:ff9b:1::1", "not an address", "",
    ],
)  # fmt: skip
def test_address_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "172.15.0.1", "172.32.0.1", "100.63.0.1", "100.128.0.1", "192.0.1.1",
     "168.63.129.15", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"],
)  # fmt: skip
def test_address_is_public(address: str) -> None:
    assert is_public(address)


def test_allowed_network_is_let_through_and_no_other() -> None:
    guard = AddressGuard([ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/64")])

    assert guard.permits("10.1.2.3")
    assert guard.permits("::ffff:10.1.2.3")
    assert guard.permits("fd00::7")
    assert not guard.permits("10.2.0.1")
    assert not guard.permits("fd01::7")


async def test_body_is_fetched_from_an_allowed_network(first_hop: FirstHop) -> None:
    first_hop.answer = lambda _: _answer(b"picture")

    assert b"picture" == await _fetch(first_hop)


@pytest.mark.parametrize(("hops", "arrives"), [(3, True), (4, False)])
async def test_three_redirects_are_followed_and_no_more(
    first_hop: FirstHop, hops: int, arrives: bool
) -> None:
    def answer(request: web.Request) -> Any:
        at = int(request.path.strip("/") or 0)
        return _answer(b"there") if at == hops else _redirect(f"/{at + 1}")

    first_hop.answer = answer

    if arrives:
        assert b"there" == await _fetch(first_hop)
    else:
        with pytest.raises(ProviderError, match="cannot be followed"):
            await _fetch(first_hop)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.2/x", "gopher://x/", "http://[bad/"])
async def test_redirect_to_another_scheme_is_refused(first_hop: FirstHop, target: str) -> None:
    first_hop.answer = lambda _: _redirect(target)

    with pytest.raises(ProviderError) as caught:
        await _fetch(first_hop)

    assert (Fate.PERMANENT, "url_malformed") == (caught.value.fate, caught.value.code)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.com/", "http://", "//x", "http://a b/"])
async def test_url_that_is_no_web_address_is_malformed(url: str) -> None:
    with pytest.raises(ProviderError) as caught:
        await fetch_bytes(url, max_bytes=10, deadline_s=5)

    assert (Fate.PERMANENT, "url_malformed") == (caught.value.fate, caught.value.code)


@pytest.mark.parametrize("declared", [True, False])
async def test_large_body_is_cut_off(first_hop: FirstHop, declared: bool) -> None:
    sent = 0

    async def stream(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        if declared:
            response.content_length = 400_000_000
        await response.prepare(request)
        try:
            while sent < 400_000_000:
                await response.write(bytes(65536))
                sent += 65536
        except (ConnectionError, ConnectionResetError):
            pass
        return response

    first_hop.answer = stream

    with pytest.raises(ProviderError) as caught:
        await _fetch(first_hop, max_bytes=1_000_000)

    assert (Fate.PERMANENT, "url_too_large") == (caught.value.fate, caught.value.code)
    assert sent < 20_000_000


async def test_slow_drip_ends_at_the_deadline(first_hop: FirstHop) -> None:
    """A read timeout would never fire: there is always another byte."""

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            for _ in range(1000):
                await response.write(b"x")
                await asyncio.sleep(0.05)
        except (ConnectionError, ConnectionResetError):
            pass
        return response

    first_hop.answer = drip

    with pytest.raises(ProviderError) as caught:
        await _fetch(first_hop, deadline_s=0.5)

    assert (Fate.RETRY, "url_timed_out") == (caught.value.fate, caught.value.code)


@pytest.mark.parametrize(
    ("status", "fate"),
    [(404, Fate.PERMANENT), (403, Fate.PERMANENT), (410, Fate.PERMANENT), (204, Fate.PERMANENT),
     (408, Fate.RETRY), (429, Fate.RETRY), (500, Fate.RETRY), (503, Fate.RETRY)],
)  # fmt: skip
async def test_status_decides_whether_to_come_back(first_hop: FirstHop, status: int, fate: Fate) -> None:
    first_hop.answer = lambda _: _answer(b"", status=status)

    with pytest.raises(ProviderError) as caught:
        await _fetch(first_hop)

    assert (fate, status) == (caught.value.fate, caught.value.status)


async def test_compressed_body_is_not_unpacked(first_hop: FirstHop) -> None:
    """A kilobyte of gzip may hold a gigabyte; what comes out here is what came over the wire."""
    first_hop.answer = lambda _: _answer(b"\x1f\x8b", headers={"Content-Encoding": "gzip"})

    assert b"\x1f\x8b" == await _fetch(first_hop)


async def test_proxy_of_the_environment_is_not_used(
    canary: Canary, first_hop: FirstHop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy resolves names by itself: the guard would see only the proxy's address."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{canary.port}")
    first_hop.answer = lambda _: _answer(b"direct")

    assert b"direct" == await _fetch(first_hop)
    assert 0 == canary.touched


async def _fetch(first_hop: FirstHop, *, max_bytes: int = 1000, deadline_s: float = 5) -> bytes:
    url = first_hop.url + "/"
    return await fetch_bytes(url, max_bytes=max_bytes, deadline_s=deadline_s, allowed=[LOOPBACK])


async def _redirect(target: str) -> web.Response:
    return web.Response(status=302, headers={"Location": target})


async def _answer(body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=status, headers=headers)
