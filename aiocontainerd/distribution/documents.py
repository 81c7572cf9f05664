"""JSON documents of images: made from records, with their digests."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from aiocontainerd.oci.image import ChildDescriptor


def child_json(child: ChildDescriptor) -> dict[str, object]:
    """Return the JSON form of a descriptor with annotations and platform."""
    made: dict[str, object] = {"mediaType": child.media_type, "digest": child.digest, "size": child.size}
    if child.annotations:
        made["annotations"] = child.annotations
    if child.platform is not None:
        plain = msgspec.to_builtins(child.platform)
        made["platform"] = {key: value for key, value in plain.items() if value}
    return made


def encode(value: object) -> bytes:
    """Return the bytes of a document, without spaces."""
    return json.dumps(value, separators=(",", ":")).encode()


def digest_of(data: bytes) -> str:
    """Return the sha256 digest of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
