"""Which proxy the environment names for a URL, by the rules of Go's `golang.org/x/net/http/httpproxy`. Pure.

`HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` are read, each in upper case first. `ALL_PROXY` does not count. This machine
(`localhost` and loopback addresses) is never reached by a proxy.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Self
from urllib.parse import SplitResult, urlsplit

import msgspec

from aiocontainerd.errors import InvalidArgument

_PORTS = {"http": 80, "https": 443}
_MAPPED_BITS = 96
"""Bits before an IPv4 address in the form of IPv6."""
SCHEMES = ("http", "https", "socks5", "socks5h")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Exemption(msgspec.Struct, frozen=True):
    """An entry of NO_PROXY: everything, a network, or a host (an address, a domain with its hosts) and a port.

    `port` 0 means any. `domain` begins with a dot. `itself` says that the domain's own name counts, too.
    """

    everything: bool = False
    network: Network | None = None
    address: Address | None = None
    domain: str = ""
    itself: bool = False
    port: int = 0

    def covers(self, host: str, port: int, address: Address | None) -> bool:
        """Return whether no proxy is used for a host in lower case and a port. `address` is the host as an address."""
        if self.everything:
            return True
        if self.network is not None:
            return address is not None and address.version == self.network.version and address in self.network
        if self.port not in (0, port):
            return False
        if self.address is not None:
            return address == self.address
        return host.endswith(self.domain) or (self.itself and host == self.domain[1:])


class Proxies(msgspec.Struct, frozen=True):
    """The proxies of an environment by the scheme of the URL, and what is reached without one."""

    by_scheme: Mapping[str, str]
    exemptions: tuple[Exemption, ...] = ()

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Self:
        """Read the variables of an environment."""
        found = {scheme: _variable(environ, f"{scheme}_proxy") for scheme in _PORTS}
        if environ.get("REQUEST_METHOD"):  # a CGI program: the other side could have set HTTP_PROXY by a header
            del found["http"]
        exempt = tuple(_exemptions(_variable(environ, "no_proxy")))
        return cls({scheme: proxy for scheme, proxy in found.items() if proxy}, exempt)

    def url_for(self, url: str) -> str:
        """Return the URL of the proxy to reach a URL by, "" for none. Raises InvalidArgument for an unusable one."""
        parts = urlsplit(url)
        proxy = self.by_scheme.get(parts.scheme, "")
        if not proxy or not self._is_proxied(parts):
            return ""
        return proxy_url(proxy)

    def _is_proxied(self, parts: SplitResult) -> bool:
        host = _ascii((parts.hostname or "").strip().lower())
        address = parsed_address(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            return False
        port = parts.port or _PORTS.get(parts.scheme, 0)
        return not any(exemption.covers(host, port, address) for exemption in self.exemptions)


def proxy_url(text: str) -> str:
    """Return a proxy as a URL; `host:port` alone is an http proxy. Raises InvalidArgument."""
    try:
        parts = urlsplit(text)
        if not parts.scheme or not parts.hostname:
            parts = urlsplit(f"http://{text}")
        usable = parts.scheme in SCHEMES and bool(parts.hostname) and (parts.port or 0) >= 0
    except ValueError:
        usable = False
    if not usable:
        raise InvalidArgument(f"the proxy of the environment is no URL of {', '.join(SCHEMES)}, nor host:port")
    return parts.geturl()


def parsed_address(host: str) -> Address | None:
    """Return the address that a host is, None for a name. An IPv4 address in the form of IPv6 is an IPv4 address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _variable(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name.upper()) or environ.get(name, "")


def _exemptions(text: str) -> Iterator[Exemption]:
    for entry in text.lower().split(","):
        exemption = _exemption(entry.strip())
        if exemption is not None:
            yield exemption


def _exemption(entry: str) -> Exemption | None:
    """Return the meaning of one entry of NO_PROXY, None for an empty or malformed one."""
    if entry == "*":
        return Exemption(everything=True)
    network = _network(entry)
    if network is not None:
        return Exemption(network=network)
    host, port = _host_and_port(entry)
    if not host.strip(".") or port is None:
        return None
    address = parsed_address(host)
    if address is not None:
        return Exemption(address=address, port=port)
    host = _ascii(host[1:] if host.startswith("*.") else host)
    return Exemption(domain=f".{host.lstrip('.')}", itself=not host.startswith("."), port=port)


def _network(entry: str) -> Network | None:
    _, slash, bits = entry.partition("/")
    if not slash or not bits.isdecimal():
        return None
    try:
        network = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return None
    mapped = parsed_address(str(network.network_address))
    if isinstance(network, ipaddress.IPv6Network) and isinstance(mapped, ipaddress.IPv4Address):
        return ipaddress.ip_network((mapped, max(0, network.prefixlen - _MAPPED_BITS)), strict=False)
    return network


def _host_and_port(entry: str) -> tuple[str, int | None]:
    """Return the host and the port of an entry, 0 for any port. None is port 0, which no URL has."""
    host, colon, port = entry.rpartition(":")
    if not colon or not (port.isdecimal() or not port) or (":" in host and not host.endswith("]")):
        return entry.strip("[]"), 0
    return host.strip("[]"), (int(port) or None) if port else 0


def _ascii(host: str) -> str:
    """Return a name as DNS has it. One that cannot be a name of DNS stays as it is."""
    try:
        return host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return host
