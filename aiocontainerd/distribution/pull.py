"""Pulling: an image from a registry into the content store, its labels, its snapshots and its name (facts/core 14).

Everything is written under one lease, which is gone at the end. The name comes last, so that it never stands for an
image that isn't whole; a failure leaves neither ingest nor snapshot.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from aiocontainerd import labels
from aiocontainerd.distribution import blobs, images
from aiocontainerd.distribution.fetch import fetch
from aiocontainerd.distribution.leases import held
from aiocontainerd.distribution.legacy_config import converted
from aiocontainerd.distribution.requests import RegistryClient
from aiocontainerd.distribution.resolve import resolve
from aiocontainerd.distribution.unpack import unpack_image
from aiocontainerd.distribution.walk import CONCURRENCY, Walker
from aiocontainerd.errors import AlreadyExists, FailedPrecondition, NotFound
from aiocontainerd.interfaces.metadata import Image
from aiocontainerd.oci import image as oci
from aiocontainerd.oci import platform
from aiocontainerd.oci import reference as references
from aiocontainerd.oci.platform import Ranking

if TYPE_CHECKING:
    from aiocontainerd.distribution.hosts import RegistryOptions
    from aiocontainerd.distribution.stores import Stores
    from aiocontainerd.interfaces.content import ContentStore, Writer
    from aiocontainerd.oci.descriptor import Descriptor
    from aiocontainerd.oci.image import ChildDescriptor

_NONE: Mapping[str, str] = MappingProxyType({})

Progress = Callable[[str, str, int, int], None]
"""Called for every object: its name, its status, bytes done, bytes in all."""


class PullOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to pull. `rank` is this host's platform unless given, `snapshotter` "" the namespace's default."""

    rank: Ranking = msgspec.field(default_factory=lambda: platform.ranking([platform.default()]))
    all_platforms: bool = False
    unpack: bool = True
    snapshotter: str = ""
    labels: Mapping[str, str] = _NONE
    concurrency: int = CONCURRENCY


def silent(_name: str, _status: str, _done: int, _total: int) -> None:
    """Show no progress."""


async def pull(
    stores: Stores,
    name: str,
    registry: RegistryOptions | None = None,
    options: PullOptions | None = None,
    told: Progress = silent,
) -> Image:
    """Pull the image or other artifact that a reference names, into the namespace of the context.

    What is no image is stored and named, and stays packed.

    Raises InvalidArgument for the reference or a malformed image, NotFound where the registry or the image has nothing
    that suits, PermissionDenied, FailedPrecondition for bytes that are not what their digest says, Unavailable.
    """
    reference, options = references.parse(name), options or PullOptions()
    reference.require_object()
    async with held(stores.leases), RegistryClient(reference, registry) as remote:
        told(name, "resolving", 0, 0)
        target = await resolve(remote)
        told(name, "resolved", 0, 0)
        await _fetch_all(stores.content, remote, target, options, told)
        target = await converted(stores.content, target)
        if options.unpack:
            await _unpack(stores, target, options, told)
        return await images.put(stores.images, Image(name=name, target=target, labels=options.labels))


async def _fetch_all(
    content: ContentStore, remote: RegistryClient, target: Descriptor, options: PullOptions, told: Progress
) -> None:
    walker = Walker(
        content,
        Fetcher(content, remote, told).fetch,
        options.rank,
        all_platforms=options.all_platforms,
        concurrency=options.concurrency,
    )
    await walker.walk(target)


async def _unpack(stores: Stores, target: Descriptor, options: PullOptions, told: Progress) -> None:
    def layered(layer: Descriptor, new: bool) -> None:
        told(oci.ingest_key(layer), "extracted" if new else "exists", layer.size, layer.size)

    await unpack_image(stores, target, options.rank, options.snapshotter, layered=layered)


class Fetcher:
    """Brings single blobs from a registry to a content store, with the label of where they came from."""

    def __init__(self, content: ContentStore, remote: RegistryClient, told: Progress = silent) -> None:
        self._content = content
        self._remote = remote
        self._told = told
        self._source = f"{labels.DISTRIBUTION_SOURCE}.{remote.reference.hostname}"

    def __repr__(self) -> str:
        return f"<Fetcher {self._remote!r}>"

    async def fetch(self, item: ChildDescriptor) -> None:
        """Store a blob unless it is there, whole. A failure leaves no ingest."""
        key = oci.ingest_key(item.plain())
        try:
            if not await blobs.is_whole(self._content, item.digest):
                await self._store(item, key)
                return
        except AlreadyExists:
            pass
        await self._label(item)
        self._told(key, "exists", item.size, item.size)

    async def _store(self, item: ChildDescriptor, key: str) -> None:
        try:
            async with await blobs.writer(self._content, key, total=item.size, expected=item.digest) as writer:
                await self._copy(item, key, writer)
                await writer.commit(item.size, item.digest, {self._source: self._remote.reference.path})
        except AlreadyExists:
            raise
        except BaseException as error:
            await blobs.discard(self._content, key)
            if isinstance(error, FailedPrecondition):
                raise FailedPrecondition(
                    f"blob {item.digest} of {self._remote.reference}: the registry sent something else: {error.message}"
                ) from error
            raise
        self._told(key, "done", item.size, item.size)

    async def _copy(self, item: ChildDescriptor, key: str, writer: Writer) -> None:
        if writer.offset > item.size:
            await writer.truncate()
        inline = _inline(item)
        if inline is not None:
            await writer.truncate()
            await writer.write(inline)
            return
        async with aclosing(fetch(self._remote, item, writer.offset)) as body:
            async for data in body:
                await writer.write(data)
                self._told(key, "downloading", writer.offset, item.size)

    async def _label(self, item: ChildDescriptor) -> None:
        """Add this repository to the blob's label of repositories, sorted and unique.

        Raises FailedPrecondition for a blob that has not the size that its descriptor tells.
        """
        digest = item.digest
        try:
            info = await self._content.info(digest)
        except NotFound:
            return
        if info.size != item.size:
            raise FailedPrecondition(f"blob {digest} has {info.size} bytes, and its descriptor tells {item.size}")
        before = info.labels.get(self._source, "")
        repositories = {*before.split(","), self._remote.reference.path} - {""}
        joined = ",".join(sorted(repositories))
        if joined != before:
            await blobs.add_labels(self._content, digest, {self._source: joined})


def _inline(item: ChildDescriptor) -> bytes | None:
    """Return the bytes that a descriptor holds itself, None where it does not have all of them (facts/core 14)."""
    try:
        data = base64.b64decode(item.data, validate=True)
    except ValueError:
        return None
    return data if data and len(data) == item.size else None
