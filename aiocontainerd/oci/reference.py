"""Image references, `<host[:port]>/<path>[:tag][@digest]` (facts/core 14).

The daemon and its clients add neither `docker.io/library` nor `latest`. Only docker-save archives hold names in the
familiar short form; `normalize` lengthens those.
"""

from __future__ import annotations

import re

import msgspec

from aiocontainerd.errors import InvalidArgument
from aiocontainerd.oci.descriptor import split_digest

DOCKER_HOST = "docker.io"
_HOST = re.compile(r"(?:\[[0-9a-fA-F:]+\]|[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?::[0-9]{1,5})?\Z")
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_OBJECT = re.compile(r"[:@]")
MAX_LENGTH = 4096


class Reference(msgspec.Struct, frozen=True):
    """A parsed reference. `object` follows the first `:` or `@` of the path: `tag`, `tag@digest` or `@digest`."""

    host: str
    path: str
    object: str = ""

    def __str__(self) -> str:
        separator = "" if not self.object or self.object.startswith("@") else ":"
        return f"{self.locator}{separator}{self.object}"

    @property
    def locator(self) -> str:
        """Host and path."""
        return f"{self.host}/{self.path}"

    @property
    def hostname(self) -> str:
        """The host without its port."""
        return self.host[: self.host.rindex("]") + 1] if self.host.startswith("[") else self.host.partition(":")[0]

    @property
    def tag(self) -> str:
        """The tag, or ""."""
        return self.object.partition("@")[0]

    @property
    def digest(self) -> str:
        """The digest, or ""."""
        return self.object.partition("@")[2]

    @property
    def wanted(self) -> str:
        """The digest, else the tag, to ask a registry for. Raises InvalidArgument for a reference with neither."""
        self.require_object()
        return self.digest or self.tag

    def require_object(self) -> None:
        """Raise InvalidArgument `object required` for a reference with neither tag nor digest."""
        if not self.object:
            raise InvalidArgument(f"image reference {self}: object required (a tag or a digest, such as {self}:latest)")


def parse(text: str) -> Reference:
    """Parse a reference. Raises InvalidArgument `invalid reference` or `hostname required`."""
    if not text or len(text) > MAX_LENGTH or "://" in text or any(ord(c) <= 0x20 or ord(c) == 0x7F for c in text):
        raise InvalidArgument(f'image reference "{text[:128]}": invalid reference')
    host, slash, rest = text.partition("/")
    if not slash or not host:
        raise InvalidArgument(f'image reference "{text}": hostname required (such as docker.io/library/busybox:latest)')
    path, following = _split(rest)
    if not _HOST.match(host) or not _PATH.match(path) or rest.endswith(":"):
        raise InvalidArgument(f'image reference "{text}": invalid reference')
    reference = Reference(host, path, following)
    _check_object(reference, text)
    return reference


def _split(rest: str) -> tuple[str, str]:
    found = _OBJECT.search(rest)
    if found is None:
        return rest, ""
    start = found.start()
    return rest[:start], rest[start:] if rest[start] == "@" else rest[start + 1 :]


def _check_object(reference: Reference, text: str) -> None:
    following = reference.object
    if following and not following.startswith("@") and not _TAG.match(reference.tag):
        raise InvalidArgument(f'image reference "{text}": invalid reference (the tag is none)')
    if "@" in following:
        split_digest(reference.digest)


def normalize(name: str) -> str:
    """Return the full form of a familiar name: `foo:1` becomes `docker.io/library/foo:1`. Raises InvalidArgument."""
    first, slash, rest = name.partition("/")
    named_host = slash and ("." in first or ":" in first or first == "localhost" or first != first.lower())
    host, path = (first, rest) if named_host else (DOCKER_HOST, name)
    if host == DOCKER_HOST and "/" not in path:
        path = f"library/{path}"
    reference = parse(f"{host}/{path}")
    return str(reference) if reference.object else f"{reference}:latest"
