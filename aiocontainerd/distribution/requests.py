"""Requests to a registry: retries, authentication, redirects without credentials (facts/core 14)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Self
from urllib.parse import urljoin

import aiohttp
import anyio

from aiocontainerd import __version__
from aiocontainerd.distribution.auth import Authorizer, denied
from aiocontainerd.distribution.hosts import (
    Base,
    RegistryOptions,
    bases,
    may_redirect,
    proxy_for,
    redacted,
    same_origin,
)
from aiocontainerd.errors import ContainerdError, NotFound, PermissionDenied, ResourceExhausted, Unavailable, Unknown
from aiocontainerd.oci.reference import Reference

if TYPE_CHECKING:
    from types import TracebackType

_NONE: Mapping[str, str] = MappingProxyType({})
MAX_REDIRECTS = 10
MAX_ERROR_BYTES = 64_000
SHOWN_ERROR = 200
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BUSY = frozenset({408, 429})
_FAILING = frozenset({500, 503, 504})
_STATUS_ERRORS: Mapping[int, type[ContainerdError]] = {
    401: PermissionDenied,
    403: PermissionDenied,
    404: NotFound,
    410: NotFound,
    429: ResourceExhausted,
    500: Unavailable,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}
_UNAUTHORIZED = 401
_ERRORS_FROM = 400


class RegistryClient:
    """The registry of one reference over HTTP. Used as an async context manager."""

    def __init__(self, reference: Reference, options: RegistryOptions | None = None) -> None:
        self.reference = reference
        self.options = options = options or RegistryOptions()
        self._bases = bases(reference.host, options)
        self._session: aiohttp.ClientSession
        self._authorizer: Authorizer

    def __repr__(self) -> str:
        return f"<RegistryClient {self._bases[0].url} {self.options!r}>"

    async def __aenter__(self) -> Self:
        options = self.options
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=options.connect_timeout_s, sock_read=options.read_timeout_s
        )
        headers = {"User-Agent": f"containerd/{__version__}", "Accept-Encoding": "identity"}
        self._session = aiohttp.ClientSession(
            timeout=timeout, headers=headers, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )
        self._authorizer = Authorizer(self._session, self._bases[0].url, self.options)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    @asynccontextmanager
    async def request(
        self, method: str, path: str, headers: Mapping[str, str] = _NONE
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the response to a request below the repository, such as `manifests/latest`, with a status below 400.

        Raises NotFound, PermissionDenied, ResourceExhausted, Unavailable or Unknown
        `unexpected status from <METHOD> request to <URL>: <status>`.
        """
        response = await self._respond(method, path, headers)
        try:
            await _check(response, method, self.reference.path)
            yield response
        finally:
            response.close()

    async def _respond(self, method: str, path: str, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        options, failed, sent_auth = self.options, 0, False
        for attempt in range(options.attempts):
            last = attempt == options.attempts - 1
            base = self._bases[0]
            try:
                response = await self._follow(method, f"{base.url}/{self.reference.path}/{path}", headers, base)
            except (aiohttp.ClientError, TimeoutError) as error:
                if self._fell_back(error):
                    continue
                if last or not isinstance(error, aiohttp.ServerDisconnectedError | TimeoutError):
                    raise Unavailable(f"{method} {redacted(base.url)}: {_cause(error)}") from error
                await anyio.sleep(options.retry_pause_s)
                continue
            if last or not self._worth_retrying(response, base, failed):
                return response
            failed += response.status in _FAILING
            challenges = response.headers.getall("WWW-Authenticate", [])
            response.close()
            if response.status == _UNAUTHORIZED:
                await self._authorizer.answer(challenges, self.reference.path, again=sent_auth)
                sent_auth = True
            else:
                await anyio.sleep(options.busy_pause_s if response.status in _BUSY else options.retry_pause_s)
        raise Unavailable(f"{method} {redacted(self._bases[0].url)}: given up after {options.attempts} attempts")

    def _worth_retrying(self, response: aiohttp.ClientResponse, base: Base, failed: int) -> bool:
        if response.status == _UNAUTHORIZED:
            return same_origin(str(response.url), base.url)
        return response.status in _BUSY or (response.status in _FAILING and not failed)

    async def _follow(self, method: str, url: str, headers: Mapping[str, str], base: Base) -> aiohttp.ClientResponse:
        """Return the response behind redirects. Another origin sees neither credentials nor custom headers."""
        for _ in range(MAX_REDIRECTS + 1):
            own = same_origin(url, base.url)
            sent = {**headers, **(self.options.headers if own else {})}
            if own and self._authorizer.header:
                sent["Authorization"] = self._authorizer.header
            response = await self._session.request(
                method,
                url,
                headers=sent,
                allow_redirects=False,
                ssl=base.verify or not own,
                proxy=proxy_for(url),
            )
            if response.status not in _REDIRECTS or "Location" not in response.headers:
                return response
            following = urljoin(url, response.headers["Location"])
            response.close()
            if not may_redirect(url, following):
                raise Unavailable(f"{redacted(url)} redirects to {redacted(following)}, which is not followed")
            url = following
        raise Unavailable(f"{redacted(url)}: more than {MAX_REDIRECTS} redirects")

    def _fell_back(self, error: Exception) -> bool:
        """Change to plain http, for good, where the other side does not speak TLS. False where that is not possible."""
        plain = isinstance(error, aiohttp.ClientConnectorSSLError | aiohttp.ServerTimeoutError)
        if not plain or len(self._bases) == 1:
            return False
        self._bases = self._bases[1:]
        self._authorizer = Authorizer(self._session, self._bases[0].url, self.options)
        return True

    @asynccontextmanager
    async def elsewhere(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the response of a URL that a descriptor names; it gets no credentials and no custom headers."""
        try:
            for _ in range(MAX_REDIRECTS + 1):
                response = await self._session.get(url, headers=headers, allow_redirects=False, proxy=proxy_for(url))
                if response.status not in _REDIRECTS or "Location" not in response.headers:
                    break
                following = urljoin(url, response.headers["Location"])
                response.close()
                if not may_redirect(url, following):
                    raise Unavailable(f"{redacted(url)} redirects to {redacted(following)}, which is not followed")
                url = following
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"GET {redacted(url)}: {_cause(error)}") from error
        try:
            await _check(response, "GET", redacted(url))
            yield response
        finally:
            response.close()


async def _check(response: aiohttp.ClientResponse, method: str, repository: str) -> None:
    if response.status < _ERRORS_FROM:
        return
    status = f"{response.status} {response.reason or ''}".strip()
    text = (
        f"unexpected status from {method} request to {redacted(str(response.url))}: {status}{await _detail(response)}"
    )
    kind = _STATUS_ERRORS.get(response.status, Unknown)
    if response.status == _UNAUTHORIZED:
        text = denied(repository, text)
    raise kind(text)


async def _detail(response: aiohttp.ClientResponse) -> str:
    """Return what the registry's answer says in words, "" where nothing of it can be shown."""
    import msgspec

    try:
        body = await response.content.read(MAX_ERROR_BYTES)
        errors = msgspec.json.decode(body)["errors"]
        words = "; ".join(f"{error['code']}: {error['message']}" for error in errors)
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, LookupError, TypeError):
        return ""
    shown = "".join(character for character in words if character.isprintable())[:SHOWN_ERROR]
    return f" ({shown})" if shown else ""


def _cause(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "timed out"
    return str(error) or type(error).__name__
