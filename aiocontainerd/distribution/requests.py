"""Requests to a registry: retries, authentication, redirects without credentials (facts/core 14)."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

import aiohttp
import anyio
import msgspec

from aiocontainerd.distribution.auth import Authorizer, Refusal, denied, parse_challenges
from aiocontainerd.distribution.hosts import Base, RegistryOptions, bases, origin, redacted, remaining, same_origin
from aiocontainerd.distribution.transport import Sent, Transport, cause_of
from aiocontainerd.errors import ContainerdError, NotFound, PermissionDenied, ResourceExhausted, Unavailable, Unknown
from aiocontainerd.oci.reference import Reference

if TYPE_CHECKING:
    from types import TracebackType

    from aiocontainerd.distribution.proxies import Proxies

log = logging.getLogger(__name__)
_NONE: Mapping[str, str] = MappingProxyType({})
MAX_ERROR_BYTES = 64_000
SHOWN_ERROR = 200
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

    def __init__(
        self, reference: Reference, options: RegistryOptions | None = None, proxies: Proxies | None = None
    ) -> None:
        """`proxies` are those of the environment unless given."""
        self.reference = reference
        self.options = options = options or RegistryOptions()
        self._bases = bases(reference.host, options)
        self.transport = Transport(options, proxies)
        self._authorizer = Authorizer(self.transport, self._bases[0].url, options)
        self._elsewhere: dict[str, Authorizer] = {}
        """Tokens of the places that the registry redirects to. They are fetched without credentials."""

    def __repr__(self) -> str:
        return f"<RegistryClient {self._bases[0].url} {self.options!r}>"

    async def __aenter__(self) -> Self:
        await self.transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.transport.__aexit__(kind, error, trace)

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
        options, failed = self.options, 0
        answered: defaultdict[str, set[str]] = defaultdict(set)
        for attempt in range(options.attempts):
            last = attempt == options.attempts - 1
            base = self._bases[0]
            try:
                response = await self._follow(method, f"{base.url}/{self.reference.path}/{path}", headers, base)
            except (aiohttp.ClientError, TimeoutError) as error:
                if self._fell_back(error):
                    continue
                if last or not isinstance(error, aiohttp.ServerDisconnectedError | TimeoutError):
                    raise Unavailable(f"{method} {redacted(base.url)}: {cause_of(error)}") from error
                await anyio.sleep(options.retry_pause_s)
                continue
            refusal = _refusal(response)
            if last or not self._worth_retrying(response, refusal, base, failed):
                return response
            failed += response.status in _FAILING
            response.close()
            if response.status == _UNAUTHORIZED:
                place = origin(str(response.url))
                await self._authorizer_of(place, base).answer(refusal, self.reference.path, answered[place])
            else:
                await anyio.sleep(options.busy_pause_s if response.status in _BUSY else options.retry_pause_s)
        raise Unavailable(f"{method} {redacted(self._bases[0].url)}: given up after {options.attempts} attempts")

    def _authorizer_of(self, place: str, base: Base) -> Authorizer:
        """Return who answers for an origin: with the credentials for the registry, without for any other."""
        if place == origin(base.url):
            return self._authorizer
        if place not in self._elsewhere:
            anonymous = msgspec.structs.replace(self.options, credentials=None, headers={}, skip_verify=False)
            self._elsewhere[place] = Authorizer(self.transport, place, anonymous)
        return self._elsewhere[place]

    def _worth_retrying(self, response: aiohttp.ClientResponse, refusal: Refusal, base: Base, failed: int) -> bool:
        if response.status == _UNAUTHORIZED:
            return same_origin(str(response.url), base.url) or refusal.wants_token
        return response.status in _BUSY or (response.status in _FAILING and not failed)

    async def _follow(self, method: str, url: str, headers: Mapping[str, str], base: Base) -> aiohttp.ClientResponse:
        """Return the response behind redirects. Another origin sees neither credentials nor custom headers."""

        async def sent_to(target: str) -> Sent:
            place = origin(target)
            is_own = place == origin(base.url)
            known = self._authorizer if is_own else self._elsewhere.get(place)
            authorization = await known.header() if known else ""
            own = {**headers, **(self.options.headers if is_own else {})}
            return Sent(
                {**own, **({"Authorization": authorization} if authorization else {})}, base.verify or not is_own
            )

        return await self.transport.follow(method, url, sent_to)

    def _fell_back(self, error: Exception) -> bool:
        """Change to another base URL of this machine, for good. False where there is none after such a failure."""
        left = remaining(self._bases, error)
        if not left:
            return False
        if left[0].url == self._bases[0].url:
            log.warning(
                "the certificate of %s is not trusted (%s); it is used all the same: the registry is on this machine",
                self.reference.host,
                cause_of(error),
            )
        self._bases = list(left)
        self._authorizer = Authorizer(self.transport, self._bases[0].url, self.options)
        return True

    @asynccontextmanager
    async def elsewhere(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the response of a URL that a descriptor names; it gets no credentials and no custom headers."""

        async def sent_to(_target: str) -> Sent:
            return Sent(headers)

        try:
            response = await self.transport.follow("GET", url, sent_to)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"GET {redacted(url)}: {cause_of(error)}") from error
        try:
            await _check(response, "GET", redacted(url))
            yield response
        finally:
            response.close()


def _refusal(response: aiohttp.ClientResponse) -> Refusal:
    sent = response.request_info.headers.get("Authorization", "")
    return Refusal(parse_challenges(response.headers.getall("WWW-Authenticate", [])), sent)


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
    try:
        body = await response.content.read(MAX_ERROR_BYTES)
        errors = msgspec.json.decode(body)["errors"]
        words = "; ".join(f"{error['code']}: {error['message']}" for error in errors)
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, LookupError, TypeError):
        return ""
    shown = "".join(character for character in words if character.isprintable())[:SHOWN_ERROR]
    return f" ({shown})" if shown else ""
