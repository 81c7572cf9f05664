"""Pulling: an image from a registry into the content store, its labels, its snapshots and its name (facts/core 14).

Everything is written under one lease, which is gone at the end. The name comes last, so that it never stands for an
image that isn't whole; a failure leaves neither ingest nor snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from aiocontainerd import labels
from aiocontainerd.distribution.unpack import default_snapshotter, unpack
from aiocontainerd.distribution.walk import CONCURRENCY, Walker, choose
from aiocontainerd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from aiocontainerd.interfaces.metadata import Image
from aiocontainerd.oci import image as oci
from aiocontainerd.oci import reference as references

if TYPE_CHECKING:
    from aiocontainerd.client.client import Client
    from aiocontainerd.client.content import Writer
    from aiocontainerd.distribution.hosts import RegistryOptions
    from aiocontainerd.distribution.requests import RegistryClient
    from aiocontainerd.oci.descriptor import Descriptor
    from aiocontainerd.oci.image import ChildDescriptor
    from aiocontainerd.oci.platform import Ranking

_NONE: Mapping[str, str] = MappingProxyType({})

Progress = Callable[[str, str, int, int], None]
"""Told of every object: its name, its status, bytes done, bytes in all."""


class PullOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to pull. `snapshotter` "" is the namespace's default."""

    rank: Ranking
    all_platforms: bool = False
    unpack: bool = True
    snapshotter: str = ""
    labels: Mapping[str, str] = _NONE
    concurrency: int = CONCURRENCY


def silent(_name: str, _status: str, _done: int, _total: int) -> None:
    """Progress that nobody looks at."""


async def pull(
    client: Client, name: str, registry: RegistryOptions, options: PullOptions, told: Progress = silent
) -> Image:
    """Pull the image that a reference names.

    Raises InvalidArgument for the reference or a malformed image, NotFound where the registry or the image has nothing
    that suits, PermissionDenied, FailedPrecondition for bytes that are not what their digest says, Unavailable.
    """
    from aiocontainerd.distribution.requests import RegistryClient
    from aiocontainerd.distribution.resolve import resolve

    reference = references.parse(name)
    reference.require_object()
    async with client.leases.held() as lease, RegistryClient(reference, registry) as remote:
        held = client.under(lease=lease.id)
        told(name, "resolving", 0, 0)
        target = await resolve(remote)
        if target.media_type not in oci.INDEX_TYPES and target.media_type not in oci.MANIFEST_TYPES:
            raise InvalidArgument(f'{name} is of type "{target.media_type}", which is no image')
        told(name, "resolved", 0, 0)
        fetcher = Fetcher(held, remote, told)
        walker = Walker(
            held.content,
            fetcher.fetch,
            options.rank,
            all_platforms=options.all_platforms,
            concurrency=options.concurrency,
        )
        await walker.walk(target)
        await _unpack(held, target, options, told)
        return await held.images.put(Image(name=name, target=target, labels=options.labels))


async def _unpack(client: Client, target: Descriptor, options: PullOptions, told: Progress) -> None:
    if not options.unpack:
        return

    def layered(layer: Descriptor, new: bool) -> None:
        told(oci.ingest_key(layer), "extracted" if new else "exists", layer.size, layer.size)

    chosen = await choose(client.content, target, options.rank)
    await unpack(client, chosen, options.snapshotter or await default_snapshotter(client), layered=layered)


class Fetcher:
    """Brings single blobs from a registry to the content store, with the label of where they came from."""

    def __init__(self, client: Client, remote: RegistryClient, told: Progress = silent) -> None:
        self._content = client.content
        self._remote = remote
        self._told = told
        self._source = f"{labels.DISTRIBUTION_SOURCE}.{remote.reference.hostname}"

    def __repr__(self) -> str:
        return f"<Fetcher {self._remote!r}>"

    async def fetch(self, item: ChildDescriptor) -> None:
        """Store a blob unless it is there. A failure leaves no ingest."""
        key = oci.ingest_key(item.plain())
        try:
            if not await self._content.exists(item.digest):
                await self._store(item, key)
                return
        except AlreadyExists:
            pass
        await self._label(item.digest)
        self._told(key, "exists", item.size, item.size)

    async def _store(self, item: ChildDescriptor, key: str) -> None:
        try:
            async with self._content.writer(key, total=item.size, expected=item.digest) as writer:
                await self._copy(item, key, writer)
                await writer.commit(item.size, item.digest, {self._source: self._remote.reference.path})
        except AlreadyExists:
            raise
        except BaseException as error:
            await self._content.discard(key)
            if isinstance(error, FailedPrecondition):
                raise FailedPrecondition(
                    f"blob {item.digest} of {self._remote.reference}: the registry sent something else: {error.message}"
                ) from error
            raise
        self._told(key, "done", item.size, item.size)

    async def _copy(self, item: ChildDescriptor, key: str, writer: Writer) -> None:
        if writer.offset > item.size:
            await writer.restart()
        from aiocontainerd.distribution.fetch import fetch

        async with aclosing(fetch(self._remote, item, writer.offset)) as body:
            async for data in body:
                await writer.write(data)
                self._told(key, "downloading", writer.offset, item.size)

    async def _label(self, digest: str) -> None:
        """Add this repository to those that a blob came from, sorted and unique."""
        try:
            before = (await self._content.info(digest)).labels.get(self._source, "")
        except NotFound:
            return
        repositories = {*before.split(","), self._remote.reference.path} - {""}
        joined = ",".join(sorted(repositories))
        if joined != before:
            await self._content.add_labels(digest, {self._source: joined})
