"""Call the content store of a proxy plugin. `ownership` says what differs for a peer that is a whole daemon."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

import msgspec

from aiocontainerd import context
from aiocontainerd.client.content import BlobReader, Content, IngestWriter
from aiocontainerd.distribution import blobs
from aiocontainerd.errors import AlreadyExists, NotFound
from aiocontainerd.interfaces.content import BlobInfo, IngestStatus
from aiocontainerd_proxy.connection import ProxyConnection
from aiocontainerd_proxy.ownership import ROOT, Ownership, without_marks

_OUR_REF = re.compile(r"(?P<namespace>[^/]+)/\d+/")
"""References of ingests are `<namespace>/<number>/<ref>` (facts/core 4)."""


class ProxyContentStore:
    """Blobs and ingests behind a connection."""

    def __init__(self, connection: ProxyConnection, ownership: Ownership) -> None:
        self._connection = connection
        self._ownership = ownership

    def __repr__(self) -> str:
        return f"<ProxyContentStore {self._connection.link!r}>"

    async def info(self, digest: str) -> BlobInfo:
        """Raise NotFound."""
        return _shown(await (await self._store_of(digest)).info(digest))

    async def update(self, info: BlobInfo, paths: Sequence[str] = ()) -> BlobInfo:
        """Raise NotFound."""
        store = await self._store_of(info.digest)
        peer = await self._connection.peer()
        if peer.namespaced and "labels" in (paths or ("labels",)):
            info = msgspec.structs.replace(info, labels=self._ownership.marked(info.labels))
        return _shown(await store.update(info, paths))

    async def walk(self, filters: Sequence[str] = ()) -> AsyncGenerator[BlobInfo, None]:
        """Yield every blob that a filter matches, sorted by digest."""
        peer = await self._connection.peer()
        chosen = self._ownership.only_ours(filters) if peer.namespaced else filters
        found: dict[str, BlobInfo] = {}
        for namespace in await self._connection.namespaces():
            async with aclosing(self._within(namespace).walk(chosen)) as infos:
                found.update({info.digest: _shown(info) async for info in infos})
        for _, info in sorted(found.items()):
            yield info

    async def delete(self, digest: str) -> None:
        """Raise NotFound."""
        await (await self._store_of(digest)).delete(digest)

    async def reader(self, digest: str) -> BlobReader:
        """Raise NotFound."""
        return await (await self._store_of(digest)).reader(digest)

    async def writer(self, ref: str, *, total: int = 0, expected: str = "") -> ProxyWriter:
        """Raise Unavailable where another holds the ingest, AlreadyExists where `expected` is there."""
        peer = await self._connection.peer()
        connection = self._connection.within(_namespace_of(ref))
        writer = ProxyWriter(connection, ref, self._ownership if peer.namespaced else None)
        await writer.open(total, expected)
        return writer

    async def status(self, ref: str) -> IngestStatus:
        """Raise NotFound."""
        return await self._within(_namespace_of(ref)).status(ref)

    async def statuses(self, filters: Sequence[str] = ()) -> list[IngestStatus]:
        """Return every ingest that a filter matches, sorted by ref."""
        peer = await self._connection.peer()
        found = [
            status
            for namespace in await self._connection.namespaces()
            for status in await self._within(namespace).statuses(filters)
            if not peer.namespaced or _is_ours(status.ref, namespace)
        ]
        return sorted(found, key=lambda status: status.ref)

    async def abort(self, ref: str) -> None:
        """Raise NotFound."""
        await self._within(_namespace_of(ref)).abort(ref)

    async def _store_of(self, digest: str) -> Content:
        """Return the store that has a blob: the caller's namespace, else any other (blobs are shared, facts/core 4)."""
        peer = await self._connection.peer()
        here = context.current().namespace
        if not peer.namespaced:
            return self._within(here)
        if here and await self._has(here, digest):
            return self._within(here)
        for namespace in await self._connection.namespaces(everywhere=True):
            if await self._has(namespace, digest):
                return self._within(namespace)
        raise NotFound(f"content digest {digest}")

    async def _has(self, namespace: str, digest: str) -> bool:
        return await blobs.exists(self._within(namespace), digest)

    def _within(self, namespace: str) -> Content:
        return Content(self._connection.within(namespace))


class ProxyWriter(IngestWriter):
    """A writer that makes a peer with garbage collection keep the blob until we delete it."""

    def __init__(self, connection: ProxyConnection, ref: str, ownership: Ownership | None) -> None:
        super().__init__(connection, ref)
        self._content = Content(connection)
        self._ownership = ownership

    async def commit(self, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> BlobInfo:
        """Raise FailedPrecondition for a wrong size or digest, AlreadyExists."""
        if self._ownership is None:
            return await super().commit(size, expected, labels)
        digest = expected or self.digest()
        try:
            return _shown(await super().commit(size, expected, self._ownership.marked(labels or {})))
        except AlreadyExists:
            # Another client of the peer made it: we keep it there for as long as we may need it, and never remove it.
            info = await self._content.info(digest)
            if ROOT not in info.labels:
                await blobs.add_labels(self._content, digest, {ROOT: self._ownership.marked({})[ROOT]})
            raise


def _namespace_of(ref: str) -> str:
    return context.current().namespace or ref.partition("/")[0]


def _is_ours(ref: str, namespace: str) -> bool:
    found = _OUR_REF.match(ref)
    return found is not None and found["namespace"] == namespace


def _shown(info: BlobInfo) -> BlobInfo:
    return msgspec.structs.replace(info, labels=without_marks(info.labels))
