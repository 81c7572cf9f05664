"""Blobs and ingests over any content store: what several modules do with them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import anyio

from aiocontainerd.errors import AlreadyExists, ContainerdError, DataLoss, FailedPrecondition, NotFound, Unavailable
from aiocontainerd.interfaces.content import BlobInfo, ContentStore, Writer

if TYPE_CHECKING:
    from aiocontainerd.oci.descriptor import Descriptor

_NONE: Mapping[str, str] = MappingProxyType({})
LOCK_WAIT_S = 30.0
"""How long to wait for another writer of the same ingest; Go clients poll as well."""
LOCK_PAUSE_S = 0.2
DISCARD_S = 5.0
DISCARD_PAUSE_S = 0.05


async def exists(content: ContentStore, digest: str) -> bool:
    """Return whether the namespace has the blob."""
    try:
        await content.info(digest)
    except NotFound:
        return False
    return True


async def is_whole(content: ContentStore, digest: str) -> bool:
    """Return whether the namespace has the blob, and all of its bytes as far as the store can tell by its size."""
    try:
        async with await content.reader(digest):
            return True
    except (NotFound, DataLoss):
        return False


async def add_labels(content: ContentStore, digest: str, labels: Mapping[str, str]) -> None:
    """Set some labels of a blob and keep the others. Raises NotFound."""
    if labels:
        info = BlobInfo(digest=digest, size=0, created_at_ns=0, updated_at_ns=0, labels=labels)
        await content.update(info, [f"labels.{key}" for key in labels])


async def read_all(content: ContentStore, digest: str, *, limit: int) -> bytes:
    """Return a whole small blob. Raises NotFound, FailedPrecondition for one over `limit` bytes."""
    async with await content.reader(digest) as reader:
        size, parts, at = reader.size, [], 0
        if size > limit:
            raise FailedPrecondition(f"blob {digest} has {size} bytes, more than the {limit} that are read at once")
        while at < size:
            data = await reader.read(size - at, at)
            if not data:
                raise DataLoss(f"blob {digest} ended after {at} of {size} bytes")
            parts.append(data)
            at += len(data)
    return b"".join(parts)


async def writer(
    content: ContentStore, ref: str, *, total: int = 0, expected: str = "", wait_s: float = LOCK_WAIT_S
) -> Writer:
    """Open an ingest, and wait up to `wait_s` seconds for another writer of it.

    Raises AlreadyExists where the namespace has `expected` already, Unavailable where the ingest stays locked.
    """
    until = anyio.current_time() + wait_s
    while True:
        try:
            return await content.writer(ref, total=total, expected=expected)
        except Unavailable as error:
            if "locked" not in error.message or anyio.current_time() > until:
                raise
        await anyio.sleep(LOCK_PAUSE_S)


async def put(
    content: ContentStore, ref: str, data: bytes, target: Descriptor, labels: Mapping[str, str] = _NONE
) -> None:
    """Store a small blob; one that exists only gets the labels."""
    try:
        async with await writer(content, ref, total=len(data), expected=target.digest) as ingest:
            if ingest.offset != len(data):
                await ingest.truncate()
                await ingest.write(data)
            await ingest.commit(len(data), target.digest, labels)
    except AlreadyExists:
        await add_labels(content, target.digest, labels)


async def discard(content: ContentStore, ref: str) -> None:
    """Drop an ingest whose writing failed. Raises nothing, as that failure is what counts.

    A daemon may still be busy ending the write; it is asked again. An ingest that it keeps all the same goes with the
    lease it was written under.
    """
    with anyio.move_on_after(DISCARD_S, shield=True):
        while True:
            try:
                await content.abort(ref)
            except NotFound:
                return
            except ContainerdError:
                pass
            await anyio.sleep(DISCARD_PAUSE_S)
