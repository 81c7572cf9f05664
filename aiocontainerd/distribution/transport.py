"""HTTP requests to the outside: the proxy for each URL, and redirects that give nothing away (facts/security 2.3)."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from types import MappingProxyType
from typing import TYPE_CHECKING, Self
from urllib.parse import urljoin, urlsplit

import aiohttp
import msgspec
from yarl import URL

from aiocontainerd import __version__
from aiocontainerd.distribution.hosts import RegistryOptions, may_redirect, redacted
from aiocontainerd.distribution.proxies import Proxies
from aiocontainerd.errors import Unavailable, text_of

if TYPE_CHECKING:
    from types import TracebackType

MAX_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SOCKS = frozenset({"socks5", "socks5h"})
_NONE: Mapping[str, str] = MappingProxyType({})


class Sent(msgspec.Struct, frozen=True):
    """What a request to one URL carries, and whether the certificate of its server is checked."""

    headers: Mapping[str, str] = _NONE
    verify: bool = True


class Transport:
    """Sessions to registries and token servers, each by the proxy of the environment. An async context manager."""

    def __init__(self, options: RegistryOptions, proxies: Proxies | None = None) -> None:
        self.timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=options.connect_timeout_s, sock_read=options.read_timeout_s
        )
        self._proxies = proxies or Proxies.of(os.environ)
        self._stack = AsyncExitStack()
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    def __repr__(self) -> str:
        return f"<Transport {len(self._sessions)} sessions>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def send(
        self, method: str, url: str, sent: Sent, data: Mapping[str, str] | None = None
    ) -> aiohttp.ClientResponse:
        """Return the response of one request; a redirect is not followed.

        Raises aiohttp.ClientError, TimeoutError, InvalidArgument for an unusable proxy, Unavailable for one that fails.
        """
        proxy = self._proxies.url_for(url)
        if urlsplit(proxy).scheme in _SOCKS:
            return await self._send_by_socks(proxy, method, url, sent, data)
        return await self._request(await self._session_by(""), method, url, sent, data, proxy or None)

    async def _send_by_socks(
        self, proxy: str, method: str, url: str, sent: Sent, data: Mapping[str, str] | None
    ) -> aiohttp.ClientResponse:
        from aiohttp_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError

        session = await self._session_by(proxy)
        try:
            return await self._request(session, method, url, sent, data, None)
        except (ProxyConnectionError, ProxyError, ProxyTimeoutError) as error:
            raise Unavailable(f"{method} {redacted(url)} by the proxy {redacted(proxy)}: {text_of(error)}") from error

    async def _request(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: str,
        sent: Sent,
        data: Mapping[str, str] | None,
        proxy: str | None,
    ) -> aiohttp.ClientResponse:
        return await session.request(
            method, as_given(url), headers=sent.headers, data=data, allow_redirects=False, ssl=sent.verify, proxy=proxy
        )

    async def follow(self, method: str, url: str, sent_to: Callable[[str], Awaitable[Sent]]) -> aiohttp.ClientResponse:
        """Return the response behind redirects. `sent_to` says what the request to each URL carries.

        Raises as `send`, and Unavailable for a redirect that is not followed or for too many of them.
        """
        for _ in range(MAX_REDIRECTS + 1):
            response = await self.send(method, url, await sent_to(url))
            if response.status not in _REDIRECTS or "Location" not in response.headers:
                return response
            following = urljoin(url, response.headers["Location"])
            response.close()
            if not may_redirect(url, following):
                raise Unavailable(f"{redacted(url)} redirects to {redacted(following)}, which is not followed")
            url = following
        raise Unavailable(f"{redacted(url)}: more than {MAX_REDIRECTS} redirects")

    async def _session_by(self, socks: str) -> aiohttp.ClientSession:
        """Return the session of a SOCKS proxy, of none for ""."""
        if socks not in self._sessions:
            opened = aiohttp.ClientSession(
                connector=_socks_connector(socks) if socks else None,
                timeout=self.timeout,
                headers={"User-Agent": f"containerd/{__version__}", "Accept-Encoding": "identity"},
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
            self._sessions[socks] = await self._stack.enter_async_context(opened)
        return self._sessions[socks]


def as_given(url: str) -> URL:
    """Return a URL that is sent as it is: whoever signed it may have signed its very escapes.

    Only one with spaces or letters beyond ASCII is escaped.
    """
    return URL(url, encoded=url.isascii() and url.isprintable() and " " not in url)


def _socks_connector(proxy: str) -> aiohttp.BaseConnector:
    """Return a connector whose proxy resolves the names, as Go has it for `socks5` and `socks5h`."""
    from aiohttp_socks import ProxyConnector

    return ProxyConnector.from_url(urlsplit(proxy)._replace(scheme="socks5").geturl(), rdns=True)


def cause_of(error: BaseException) -> str:
    """Return what a failed request says of itself."""
    if isinstance(error, TimeoutError) and not str(error):
        return "timed out"
    return str(error) or type(error).__name__
