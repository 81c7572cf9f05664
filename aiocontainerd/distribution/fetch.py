"""Fetching the bytes of a blob: resumed where a body breaks off, bounded by the descriptor (facts/core 14)."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import anyio

from aiocontainerd.errors import ContainerdError, DataLoss, FailedPrecondition, InvalidArgument, Unavailable
from aiocontainerd.oci import image as oci

if TYPE_CHECKING:
    from aiocontainerd.distribution.requests import RegistryClient
    from aiocontainerd.oci.image import ChildDescriptor

CHUNK_BYTES = 256 << 10
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)\Z")
_PARTIAL = 206


async def fetch(registry: RegistryClient, item: ChildDescriptor, offset: int = 0) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of a blob from `offset`, never more than its size.

    A body that breaks off is reopened where it ended. Raises NotFound, DataLoss where too few bytes come,
    FailedPrecondition where more come than the descriptor says.
    """
    options, stalled = registry.options, 0
    while offset < item.size:
        before = offset
        failure: Exception | None = None
        try:
            async with _opened(registry, item, offset) as response:
                async for data in _from(response, offset, item):
                    offset += len(data)
                    yield data
        except (aiohttp.ClientError, TimeoutError, Unavailable) as error:
            failure = error
        stalled = 0 if offset > before else stalled + 1
        if offset < item.size and stalled >= options.stalled_tries:
            raise _broken(registry, item, offset, failure) from failure
        if offset < item.size:
            await anyio.sleep(options.retry_pause_s)


@asynccontextmanager
async def _opened(
    registry: RegistryClient, item: ChildDescriptor, offset: int
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Yield a response from the first URL of the descriptor that has the blob, else from the registry."""
    headers = {"Accept": f"{item.media_type or '*/*'}, */*"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    async with AsyncExitStack() as stack:
        response = await _elsewhere(stack, registry, item.urls, headers)
        if response is None:
            response = await stack.enter_async_context(registry.request("GET", _path_of(item), headers))
        yield response


async def _elsewhere(
    stack: AsyncExitStack, registry: RegistryClient, urls: Sequence[str], headers: dict[str, str]
) -> aiohttp.ClientResponse | None:
    """Return the first response that is no error; None where no URL has one."""
    for url in urls:
        if url.startswith(("https://", "http://")):
            try:
                return await stack.enter_async_context(registry.elsewhere(url, headers))
            except ContainerdError:
                continue
    return None


def _path_of(item: ChildDescriptor) -> str:
    document = item.media_type in oci.MANIFEST_TYPES or item.media_type in oci.INDEX_TYPES
    return f"{'manifests' if document else 'blobs'}/{item.digest}"


async def _from(response: aiohttp.ClientResponse, offset: int, item: ChildDescriptor) -> AsyncIterator[bytes]:
    """Yield the blob's bytes from `offset` on, whether or not the server heeded the range."""
    skip = _to_skip(response, offset, item)
    left = item.size - offset
    async for data in response.content.iter_chunked(CHUNK_BYTES):
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


def _broken(registry: RegistryClient, item: ChildDescriptor, offset: int, failure: Exception | None) -> ContainerdError:
    if isinstance(failure, Unavailable):
        return failure
    why = f" ({failure})" if failure is not None and str(failure) else ""
    return DataLoss(
        f"blob {item.digest} of {registry.reference} breaks off after {offset} of {item.size} bytes, "
        f"{registry.options.stalled_tries} times{why}"
    )
