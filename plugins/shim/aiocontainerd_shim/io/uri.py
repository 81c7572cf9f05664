"""URIs of output streams, read as Go's `url.Parse` reads them: what it refuses, we refuse in its words.

Pure functions.
"""

from __future__ import annotations

import re

import msgspec

from aiocontainerd.errors import Unknown
from aiocontainerd.gotext import quoted

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):|(:)")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST = re.compile(r"[A-Za-z0-9\-_.~!$&'()*+,;=:\[\]<>\"%@\u0080-\U0010ffff]")
_PORT = re.compile(r":[0-9]*")


class Uri(msgspec.Struct, frozen=True):
    """The parts that name a stream. A URI without a slash behind its scheme has no path."""

    scheme: str = ""
    path: str = ""
    query: str = ""


def parse(text: str) -> Uri:
    """Return the parts of a URI. Raises Unknown with what is wrong, such as `missing protocol scheme`."""
    before, _, fragment = text.partition("#")
    try:
        found = _parse(before)
    except ValueError as bad:
        raise Unknown(f"parse {quoted(before)}: {bad}") from bad
    try:
        _check_escapes(fragment)
    except ValueError as bad:
        raise Unknown(f"parse {quoted(text)}: {bad}") from bad
    return found


def _parse(text: str) -> Uri:
    if _CONTROL.search(text):
        raise ValueError("net/url: invalid control character in URL")
    start = _SCHEME.match(text)
    if start and start[2]:
        raise ValueError("missing protocol scheme")
    scheme = start[1].lower() if start else ""
    rest, _, query = text[start.end() if start else 0 :].partition("?")
    if not rest.startswith("/"):
        if not scheme and ":" in rest.partition("/")[0]:
            raise ValueError("first path segment in URL cannot contain colon")
        path = "" if scheme else rest
    elif rest.startswith("//") and (scheme or not rest.startswith("///")):
        host, slash, below = rest[2:].partition("/")
        _check_host(host)
        path = slash + below
    else:
        path = rest
    _check_escapes(path)
    return Uri(scheme, _unescaped(path), query)


def _unescaped(path: str) -> str:
    from urllib.parse import unquote

    return unquote(path, errors="surrogateescape") if "%" in path else path


def _check_escapes(text: str) -> None:
    bad = _BAD_ESCAPE.search(text)
    if bad:
        raise ValueError(f"invalid URL escape {quoted(text[bad.start() : bad.start() + 3])}")


def _check_host(authority: str) -> None:
    host = authority.rpartition("@")[2]
    for character in host:
        if not _HOST.match(character):
            raise ValueError(f"invalid character {quoted(character)} in host name")
    _check_escapes(host)
    port = host[host.rfind(":") :] if ":" in host.rpartition("]")[2] else ""
    if port and not _PORT.fullmatch(port):
        raise ValueError(f"invalid port {quoted(port)} after host")
