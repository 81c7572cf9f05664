"""Content descriptors (OCI image specification, descriptor.md) and digests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from aiocontainerd.errors import InvalidArgument

_ALGORITHM_LENGTH = {"sha256": 64, "sha384": 96, "sha512": 128}
_ALGORITHM = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*\Z")
_ENCODED = re.compile(r"[a-zA-Z0-9=_-]+\Z")
_LONGEST_ALGORITHM = 64
_HEX = re.compile(r"[a-f0-9]+\Z")
_NONE: Mapping[str, str] = MappingProxyType({})


class Descriptor(msgspec.Struct, frozen=True):
    """A reference to a blob: media type, digest, size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = _NONE


def split_digest(digest: str) -> tuple[str, str]:
    """Return the algorithm and the hex digits of a digest. Raises InvalidArgument in the words of go-digest."""
    algorithm, _, encoded = digest.partition(":")
    length = _ALGORITHM_LENGTH.get(algorithm)
    if length is None:
        if len(algorithm) > _LONGEST_ALGORITHM or not _ALGORITHM.match(algorithm) or not _ENCODED.match(encoded):
            raise InvalidArgument("invalid checksum digest format")
        raise InvalidArgument("unsupported digest algorithm")
    if not encoded:
        raise InvalidArgument("invalid checksum digest format")
    if len(encoded) != length:
        raise InvalidArgument("invalid checksum digest length")
    if not _HEX.match(encoded):
        raise InvalidArgument("invalid checksum digest format")
    return algorithm, encoded
