"""Resolving a reference: which descriptor a registry has under a tag or a digest (facts/core 14)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from aiocontainerd.errors import FailedPrecondition, NotFound, PermissionDenied, Unknown
from aiocontainerd.oci import image as oci
from aiocontainerd.oci.descriptor import Descriptor, split_digest

if TYPE_CHECKING:
    import aiohttp

    from aiocontainerd.distribution.requests import RegistryClient
    from aiocontainerd.oci.reference import Reference

ACCEPT = ", ".join((oci.DOCKER_MANIFEST, oci.DOCKER_INDEX, oci.OCI_MANIFEST, oci.OCI_INDEX, "*/*"))
MAX_MANIFEST_BYTES = 4_393_216
CHUNK_BYTES = 256 << 10


async def resolve(registry: RegistryClient) -> Descriptor:
    """Return the descriptor that the registry's reference names.

    Raises NotFound, PermissionDenied, Unavailable, FailedPrecondition for another digest than the one asked for,
    Unimplemented for Docker's schema 1.
    """
    reference = registry.reference
    try:
        return await _head(registry, f"manifests/{reference.wanted}")
    except NotFound:
        if not reference.digest:
            raise
        return await _head(registry, f"blobs/{reference.digest}")


async def _head(registry: RegistryClient, path: str) -> Descriptor:
    try:
        async with registry.request("HEAD", path, {"Accept": ACCEPT}) as response:
            answered = response
    except NotFound as error:
        raise NotFound(str(registry.reference)) from error
    except (PermissionDenied, Unknown):
        return await _get(registry, path)
    return _described(registry.reference, answered) or await _get(registry, path)


def _described(reference: Reference, response: aiohttp.ClientResponse) -> Descriptor | None:
    """Return the descriptor that the headers tell; None where they leave something out."""
    digest = response.headers.get("Docker-Content-Digest") or reference.digest
    length = response.headers.get("Content-Length", "")
    if not digest or not length.isdecimal():
        return None
    return _checked(reference, _media_type(response), digest, int(length))


async def _get(registry: RegistryClient, path: str) -> Descriptor:
    """Return the descriptor of a manifest by its bytes, or raise the registry's reason, which HEAD cannot carry."""
    async with registry.request("GET", path, {"Accept": ACCEPT}) as response:
        media_type, size, hashed = _media_type(response), 0, hashlib.sha256()
        async for data in response.content.iter_chunked(CHUNK_BYTES):
            size += len(data)
            _check_size(registry.reference, size)
            hashed.update(data)
    return _checked(registry.reference, media_type, f"sha256:{hashed.hexdigest()}", size)


def _checked(reference: Reference, media_type: str, digest: str, size: int) -> Descriptor:
    oci.refuse_schema1(oci.DOCKER_SCHEMA1 if media_type == "text/plain" else media_type)
    split_digest(digest)
    _check_size(reference, size)
    wanted = reference.digest
    if wanted and digest != wanted and digest.partition(":")[0] == wanted.partition(":")[0]:
        raise FailedPrecondition(f"{reference}: the registry answered with {digest}")
    return Descriptor(media_type, wanted or digest, size)


def _check_size(reference: Reference, size: int) -> None:
    if size > MAX_MANIFEST_BYTES:
        raise NotFound(f"rejecting {size} byte manifest for {reference}")


def _media_type(response: aiohttp.ClientResponse) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip()
