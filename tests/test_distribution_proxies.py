"""Proxies by the rules of Go's `golang.org/x/net/http/httpproxy` (facts/core 14)."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from aiocontainerd.distribution.hosts import RegistryOptions
from aiocontainerd.distribution.proxies import Proxies
from aiocontainerd.distribution.requests import RegistryClient
from aiocontainerd.errors import ContainerdError, InvalidArgument
from aiocontainerd.oci import reference
from aiocontainerd.testing.registry import scripted_registry

PROXY = "http://proxy:3128"


@pytest.mark.parametrize(
    ("no_proxy", "url", "proxied"),
    [
        ("", "http://example.com/", True),
        ("*", "http://example.com/", False),
        (" * , x", "http://example.com/", False),
        ("example.com", "http://example.com/", False),
        ("example.com", "http://EXAMPLE.com/", False),
        ("example.com", "http://www.example.com/", False),
        ("example.com", "http://notexample.com/", True),
        (".example.com", "http://www.example.com/", False),
        (".example.com", "http://example.com/", True),
        ("*.example.com", "http://www.example.com/", False),
        ("*.example.com", "http://example.com/", True),
        ("example.com:80", "http://example.com/", False),
        ("example.com:8080", "http://example.com/", True),
        ("example.com:8080", "http://example.com:8080/", False),
        ("10.0.0.0/8", "http://10.1.2.3/", False),
        ("10.1.2.3/8", "http://10.9.9.9:5000/", False),
        ("10.0.0.0/8", "http://11.1.2.3/", True),
        ("10.0.0.0/8", "http://ten.example/", True),
        ("fd00::/8", "http://[fd00::1]:5000/", False),
        ("10.1.2.3", "http://10.1.2.3/", False),
        ("10.1.2.3:5000", "http://10.1.2.3/", True),
        ("10.1.2.3:5000", "http://10.1.2.3:5000/", False),
        ("[fd00::1]:5000", "http://[fd00::1]:5000/", False),
        ("fd00::1", "http://[fd00::1]/", False),
        ("10.1.2.3", "http://[::ffff:10.1.2.3]/", False),
        (",,:80, ,", "http://example.com/", True),
        ("a, example.com ,b", "http://example.com/", False),
        ("example.com:", "http://www.example.com:5000/", False),
        ("10.1.2.3:", "http://10.1.2.3/", False),
        ("10.1.2.3:0", "http://10.1.2.3/", True),
        ("::ffff:10.0.0.0/104", "http://10.1.2.3/", False),
        ("::ffff:10.0.0.0/104", "http://11.1.2.3/", True),
        ("bücher.example", "http://www.xn--bcher-kva.example/", False),
        ("xn--bcher-kva.example", "http://bücher.example/", False),
        (".", "http://example.com/", True),
        ("", "http://localhost/", False),
        ("", "http://localhost:5000/", False),
        ("", "http://127.0.0.1/", False),
        ("", "http://[::1]:5000/", False),
        ("", "http://localhost.example/", True),
    ],
)
def test_no_proxy_has_networks_domains_and_ports(no_proxy: str, url: str, proxied: bool) -> None:
    proxies = Proxies.of({"HTTP_PROXY": PROXY, "NO_PROXY": no_proxy})
    assert proxies.url_for(url) == (PROXY if proxied else "")


@pytest.mark.parametrize(
    ("environ", "url", "proxy"),
    [
        ({"http_proxy": "a:1"}, "http://x/", "http://a:1"),
        ({"HTTP_PROXY": "a:1", "http_proxy": "b:1"}, "http://x/", "http://a:1"),
        ({"HTTP_PROXY": "", "http_proxy": "b:1"}, "http://x/", "http://b:1"),
        ({"HTTP_PROXY": "a:1"}, "https://x/", ""),
        ({"https_proxy": "https://a:1"}, "https://x/", "https://a:1"),
        ({"HTTPS_PROXY": "localhost:3128"}, "https://x/", "http://localhost:3128"),
        ({"HTTPS_PROXY": "127.0.0.1:3128"}, "https://x/", "http://127.0.0.1:3128"),
        ({"HTTPS_PROXY": "proxy"}, "https://x/", "http://proxy"),
        ({"HTTPS_PROXY": "u:p@a:1"}, "https://x/", "http://u:p@a:1"),
        ({"HTTPS_PROXY": "socks5://a:1"}, "https://x/", "socks5://a:1"),
        ({"HTTPS_PROXY": "socks5h://a:1"}, "https://x/", "socks5h://a:1"),
        ({"ALL_PROXY": "a:1"}, "https://x/", ""),
        ({"HTTP_PROXY": "a:1", "REQUEST_METHOD": "GET"}, "http://x/", ""),
        ({"HTTPS_PROXY": "a:1", "no_proxy": "x"}, "https://x/", ""),
    ],
)
def test_a_proxy_is_found_by_the_scheme_of_the_url(environ: dict[str, str], url: str, proxy: str) -> None:
    assert Proxies.of(environ).url_for(url) == proxy


@pytest.mark.parametrize("proxy", ["ftp://a:1", "http://a:port", "http://["])
def test_an_unusable_proxy_is_an_error(proxy: str) -> None:
    with pytest.raises(InvalidArgument, match="proxy of the environment"):
        Proxies.of({"HTTP_PROXY": proxy}).url_for("http://x/")


class SocksProxy:
    """A SOCKS 5 proxy that reaches `target` whatever it is asked for, and notes what that was."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.asked: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        methods = (await reader.readexactly(2))[1]
        await reader.readexactly(methods)
        writer.write(b"\x05\x00")
        kind = (await reader.readexactly(4))[3]
        if kind == 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        else:
            host = str(ipaddress.ip_address(await reader.readexactly(4 if kind == 1 else 16)))
        self.asked.append(f"{host}:{struct.unpack('!H', await reader.readexactly(2))[0]}")
        address, _, port = self.target.rpartition(":")
        there_reader, there_writer = await asyncio.open_connection(address, int(port))
        writer.write(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        await asyncio.gather(_pipe(reader, there_writer), _pipe(there_reader, writer))


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


@asynccontextmanager
async def socks_proxy(target: str) -> AsyncIterator[tuple[SocksProxy, str]]:
    proxy = SocksProxy(target)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    async with server:
        yield proxy, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def answer(request: web.Request) -> web.Response:
    return web.Response(body=b"data")


async def fetched(proxies: Proxies, host: str = "registry.example:81") -> bytes:
    options = RegistryOptions(plain_http=True, attempts=1)
    async with (
        RegistryClient(reference.parse(f"{host}/a/b:1"), options, proxies) as client,
        client.request("GET", "x") as response,
    ):
        return await response.read()


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
async def test_a_socks_proxy_is_asked_by_name(scheme: str) -> None:
    async with scripted_registry(answer) as script, socks_proxy(script.url) as (proxy, address):
        assert await fetched(Proxies({"http": f"{scheme}://{address}"})) == b"data"
    assert proxy.asked == ["registry.example:81"]


@pytest.mark.anyio
async def test_an_http_proxy_gets_the_whole_url() -> None:
    async with scripted_registry(answer) as script:
        assert await fetched(Proxies.of({"HTTP_PROXY": script.url})) == b"data"
    assert [str(request.url) for request in script.requests] == ["http://registry.example:81/v2/a/b/x"]


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["socks5", "http"])
async def test_a_proxy_that_is_not_there_is_unavailable(scheme: str) -> None:
    async with scripted_registry(answer) as script:
        gone = script.url
    with pytest.raises(ContainerdError, match=r"GET http://registry"):
        await fetched(Proxies({"http": f"{scheme}://{gone}"}))
