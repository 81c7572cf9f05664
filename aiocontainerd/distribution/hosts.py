"""Where and how to reach a registry: base URLs in the order to try, which redirects to follow.

Loopback means the literal `localhost` or a loopback address, never what a name resolves to (facts/security
2026-92543). Only there is plain http tried without being asked for, and a certificate used that is not trusted
(facts/core 14). containerd does not look at it at all; here it is checked first, and a person is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from urllib.parse import urlsplit

import aiohttp
import msgspec

from aiocontainerd.distribution.proxies import parsed_address
from aiocontainerd.oci.reference import DOCKER_HOST

_NONE: Mapping[str, str] = MappingProxyType({})
DOCKER_REGISTRY = "registry-1.docker.io"
_HTTP_PORT, _HTTPS_PORT = 80, 443


class RegistryCredentials(msgspec.Struct, frozen=True):
    """A user and a secret; an empty user means that the secret is a refresh token."""

    user: str
    secret: str

    def __repr__(self) -> str:
        return f"RegistryCredentials(user={self.user!r}, secret=<redacted>)"


class RegistryOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to talk to the registry of a reference.

    `headers` go to it and its token server alone. A body that brings no byte for `read_timeout_s` seconds counts as
    broken. A request is made up to `attempts` times, after a pause of `retry_pause_s` seconds, or of `busy_pause_s`
    where the registry says that it is busy. A body that broke off without a new byte is reopened `stalled_tries` times.
    """

    plain_http: bool = False
    skip_verify: bool = False
    credentials: RegistryCredentials | None = None
    headers: Mapping[str, str] = _NONE
    connect_timeout_s: float = 30.0
    read_timeout_s: float = 30.0
    attempts: int = 5
    retry_pause_s: float = 0.05
    busy_pause_s: float = 1.0
    stalled_tries: int = 3

    def __repr__(self) -> str:
        names = sorted(self.headers)
        return (
            f"RegistryOptions(plain_http={self.plain_http}, skip_verify={self.skip_verify}, "
            f"credentials={self.credentials!r}, headers={names})"
        )


class Base(msgspec.Struct, frozen=True):
    """A base URL of a registry's API, and whether its certificate is checked."""

    url: str
    verify: bool = True


def bases(host: str, options: RegistryOptions) -> list[Base]:
    """Return the base URLs of a registry in the order to try: on loopback, https, then unchecked, then plain http."""
    name = DOCKER_REGISTRY if host == DOCKER_HOST else host
    http, https = f"http://{name}/v2", f"https://{name}/v2"
    if options.plain_http:
        return [Base(http)]
    if not is_loopback(name):
        return [Base(https, not options.skip_verify)]
    port = urlsplit(https).port
    if port == _HTTP_PORT:
        return [Base(http)]
    checked = [] if options.skip_verify else [Base(https)]
    plain = [] if port in (None, _HTTPS_PORT) else [Base(http)]
    return [*checked, Base(https, verify=False), *plain]


def is_loopback(host: str) -> bool:
    """Return whether `host[:port]` is literally this machine."""
    name = urlsplit(f"//{host}").hostname or ""
    return name == "localhost" or _address_is(name, "is_loopback")


def _address_is(name: str, what: str) -> bool:
    return bool(getattr(parsed_address(name), what, False))


def remaining(bases: Sequence[Base], error: Exception) -> Sequence[Base]:
    """Return the base URLs to go on with after the first one failed so; none where the failure is final.

    A certificate that is not trusted leads to the same URL unchecked, an answer that is not TLS to plain http.
    """
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return bases[1:] if len(bases) > 1 and bases[1].url == bases[0].url else []
    if isinstance(error, aiohttp.ClientConnectorSSLError | aiohttp.ServerTimeoutError):
        return [base for base in bases[1:] if base.url != bases[0].url]
    return []


def same_origin(one: str, other: str) -> bool:
    """Return whether two URLs have the same scheme, host and port."""
    return origin(one) == origin(other)


def origin(url: str) -> str:
    """Return scheme, host and port of a URL, as a URL."""
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    port = parts.port or (_HTTPS_PORT if parts.scheme == "https" else _HTTP_PORT)
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def may_redirect(before: str, after: str) -> bool:
    """Return whether a redirect may be followed: http and https only, never from https to http."""
    scheme = urlsplit(after).scheme
    return scheme == "https" or (scheme == "http" and urlsplit(before).scheme == "http")


def realm_problem(realm: str, registry: str) -> str:
    """Return why credentials must not go to a token server, "" where they may (facts/security 2.3)."""
    token, own = urlsplit(realm), urlsplit(registry)
    if token.scheme not in ("http", "https") or not token.hostname:
        return "it is no http URL"
    if token.scheme == "http" and own.scheme != "http":
        return "it is http while the registry is https"
    inside = is_loopback(token.netloc.rpartition("@")[2]) or _address_is(token.hostname, "is_link_local")
    if inside and not is_loopback(own.netloc):
        return "it is an address of this machine while the registry is elsewhere"
    return ""


def redacted(url: str) -> str:
    """Return a URL fit for messages: without user information and with the values of its query hidden."""
    parts = urlsplit(url)
    query = "&".join(f"{pair.partition('=')[0]}=redacted" for pair in parts.query.split("&") if pair)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query, fragment="").geturl()
