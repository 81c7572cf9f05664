"""Resolving a reference and fetching its blobs from a registry (facts/core 14)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import aiohttp
import anyio

from aiocontainerd.distribution.hosts import RegistryOptions
from aiocontainerd.distribution.http import RegistryHttp
from aiocontainerd.errors import (
    ContainerdError,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unknown,
)
from aiocontainerd.oci import image as oci
from aiocontainerd.oci.descriptor import Descriptor, split_digest
from aiocontainerd.oci.reference import Reference

if TYPE_CHECKING:
    from aiocontainerd.oci.image import ChildDescriptor

ACCEPT = ", ".join((oci.DOCKER_MANIFEST, oci.DOCKER_INDEX, oci.OCI_MANIFEST, oci.OCI_INDEX, "*/*"))
MAX_MANIFEST_BYTES = 4_393_216
CHUNK_BYTES = 256 << 10
STALLED_TRIES = 3
"""Reopenings of a body that breaks off without having brought a byte."""
RETRY_PAUSE_S = 0.05
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)\Z")
_PARTIAL = 206

_Opened = AbstractAsyncContextManager[aiohttp.ClientResponse]


class Remote(RegistryHttp):
    """A registry as a source of one repository. Used as an async context manager."""

    def __init__(self, reference: Reference, options: RegistryOptions | None = None) -> None:
        super().__init__(reference, options or RegistryOptions())

    async def resolve(self) -> Descriptor:
        """The descriptor that the reference names.

        Raises NotFound, PermissionDenied, Unavailable, Unimplemented for Docker's schema 1.
        """
        path = f"manifests/{self.reference.wanted}"
        try:
            return await self._head(path)
        except NotFound:
            if not self.reference.digest:
                raise
            return await self._head(f"blobs/{self.reference.digest}")

    async def _head(self, path: str) -> Descriptor:
        try:
            async with self.request("HEAD", path, {"Accept": ACCEPT}) as response:
                answered = response
        except NotFound as error:
            raise NotFound(str(self.reference)) from error
        except (PermissionDenied, Unknown):
            return await self._get(path)
        return self._described(answered) or await self._get(path)

    def _described(self, response: aiohttp.ClientResponse) -> Descriptor | None:
        """The descriptor that the headers tell; None where they don't."""
        digest = response.headers.get("Docker-Content-Digest") or self.reference.digest
        length = response.headers.get("Content-Length", "")
        if not digest or not length.isdecimal():
            return None
        return self._descriptor(_media_type(response), digest, int(length))

    async def _get(self, path: str) -> Descriptor:
        """The descriptor of a manifest by its bytes, and the registry's reason where HEAD had none."""
        async with self.request("GET", path, {"Accept": ACCEPT}) as response:
            media_type, size, hashed = _media_type(response), 0, hashlib.sha256()
            async for data in _body(response):
                size += len(data)
                self._check_size(size)
                hashed.update(data)
        return self._descriptor(media_type, f"sha256:{hashed.hexdigest()}", size)

    def _descriptor(self, media_type: str, digest: str, size: int) -> Descriptor:
        oci.refuse_schema1(oci.DOCKER_SCHEMA1 if media_type == "text/plain" else media_type)
        split_digest(digest)
        self._check_size(size)
        wanted = self.reference.digest
        if wanted and digest != wanted and digest.partition(":")[0] == wanted.partition(":")[0]:
            raise FailedPrecondition(f"{self.reference}: the registry answered with {digest}")
        return Descriptor(media_type, wanted or digest, size)

    def _check_size(self, size: int) -> None:
        if size > MAX_MANIFEST_BYTES:
            raise NotFound(f"rejecting {size} byte manifest for {self.reference}")

    async def fetch(self, item: ChildDescriptor, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from `offset`, never more than its size.

        A body that breaks off is reopened where it ended. Raises NotFound, DataLoss where too few bytes come,
        FailedPrecondition where more come than the descriptor says.
        """
        stalled = 0
        while offset < item.size:
            before = offset
            failure: Exception | None = None
            try:
                async with self._open(item, offset) as response:
                    async for data in _from(response, offset, item):
                        offset += len(data)
                        yield data
            except (aiohttp.ClientError, TimeoutError, Unavailable) as error:
                failure = error
            stalled = 0 if offset > before else stalled + 1
            if offset < item.size and stalled >= STALLED_TRIES:
                raise _broken(self.reference, item, offset, failure) from failure
            if offset < item.size:
                await anyio.sleep(RETRY_PAUSE_S)

    def _open(self, item: ChildDescriptor, offset: int) -> _Opened:
        headers = {"Accept": f"{item.media_type or '*/*'}, */*"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        named = [url for url in item.urls if url.startswith(("https://", "http://"))]
        return _first_of(self, named, item, headers)

    def own(self, item: ChildDescriptor, headers: dict[str, str]) -> _Opened:
        """The blob from the registry itself."""
        document = item.media_type in oci.MANIFEST_TYPES or item.media_type in oci.INDEX_TYPES
        return self.request("GET", f"{'manifests' if document else 'blobs'}/{item.digest}", headers)


class _first_of:  # noqa: N801 - reads as the function it stands for
    """A response from the first URL of a descriptor that has the blob, else from the registry."""

    def __init__(self, remote: Remote, urls: list[str], item: ChildDescriptor, headers: dict[str, str]) -> None:
        self._candidates = [remote.elsewhere(url, headers) for url in urls]
        self._last = remote.own(item, headers)
        self._opened: _Opened | None = None

    async def __aenter__(self) -> aiohttp.ClientResponse:
        for candidate in self._candidates:
            try:
                response = await candidate.__aenter__()
            except ContainerdError:
                continue
            self._opened = candidate
            return response
        response = await self._last.__aenter__()
        self._opened = self._last
        return response

    async def __aexit__(self, *failure: object) -> bool | None:
        return None if self._opened is None else await self._opened.__aexit__(None, None, None)


def _media_type(response: aiohttp.ClientResponse) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip()


async def _body(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async for data in response.content.iter_chunked(CHUNK_BYTES):
        yield data


async def _from(response: aiohttp.ClientResponse, offset: int, item: ChildDescriptor) -> AsyncIterator[bytes]:
    """The body's bytes from `offset` of the blob on, whether or not the server heeded the range."""
    skip = _to_skip(response, offset, item)
    left = item.size - offset
    async for data in _body(response):
        fresh = data[skip:]
        skip = max(0, skip - len(data))
        if len(fresh) > left:
            raise FailedPrecondition(f"blob {item.digest} is larger than the {item.size} bytes its descriptor says")
        left -= len(fresh)
        if fresh:
            yield fresh


def _to_skip(response: aiohttp.ClientResponse, offset: int, item: ChildDescriptor) -> int:
    if response.status != _PARTIAL:
        return offset
    found = _RANGE.match(response.headers.get("Content-Range", ""))
    if not found or int(found[1]) != offset or found[3] not in ("*", str(item.size)):
        raise InvalidArgument(f"blob {item.digest}: the registry answered with another range than the one asked for")
    return 0


def _broken(reference: Reference, item: ChildDescriptor, offset: int, failure: Exception | None) -> ContainerdError:
    if isinstance(failure, Unavailable):
        return failure
    why = f" ({failure})" if failure is not None and str(failure) else ""
    return DataLoss(
        f"blob {item.digest} of {reference} breaks off after {offset} of {item.size} bytes, {STALLED_TRIES} times{why}"
    )
