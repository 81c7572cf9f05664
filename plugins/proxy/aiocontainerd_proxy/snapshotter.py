"""Call the snapshotter of a proxy plugin.

Keys are `<namespace>/<number>/<key>` (facts/core 6). Most peers know no namespaces; one that does is a whole daemon,
such as containerd: see `ownership`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

import msgspec

from aiocontainerd import context
from aiocontainerd.client.snapshots import Snapshots
from aiocontainerd.interfaces.snapshotter import SnapshotInfo, Usage
from aiocontainerd.sys.mount import Mount
from aiocontainerd_proxy.connection import ProxyConnection
from aiocontainerd_proxy.ownership import Ownership, without_marks


class ProxySnapshotter:
    """Snapshots behind a connection."""

    def __init__(self, connection: ProxyConnection, ownership: Ownership) -> None:
        self._connection = connection
        self._ownership = ownership

    def __repr__(self) -> str:
        return f"<ProxySnapshotter {self._connection.link!r}>"

    async def stat(self, key: str) -> SnapshotInfo:
        """Raise NotFound."""
        return _shown(await self._of(key).stat(key))

    async def update(self, info: SnapshotInfo, paths: Sequence[str] = ()) -> SnapshotInfo:
        """Raise NotFound."""
        if "labels" in (paths or ("labels",)):
            info = msgspec.structs.replace(info, labels=await self._given(info.labels))
        return _shown(await self._of(info.name).update(info, paths))

    async def usage(self, key: str) -> Usage:
        """Raise NotFound."""
        return await self._of(key).usage(key)

    async def mounts(self, key: str) -> list[Mount]:
        """Raise NotFound, FailedPrecondition for a committed snapshot."""
        return await self._of(key).mounts(key)

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Raise AlreadyExists, NotFound for the parent."""
        return await self._of(key).prepare(key, parent, await self._given(labels))

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Raise AlreadyExists, NotFound for the parent."""
        return await self._of(key).view(key, parent, await self._given(labels))

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        """Raise AlreadyExists, NotFound."""
        await self._of(key).commit(name, key, await self._given(labels), parent)

    async def remove(self, key: str) -> None:
        """Raise NotFound, FailedPrecondition where it has children."""
        await self._of(key).remove(key)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncGenerator[SnapshotInfo, None]:
        """Yield every snapshot that a filter matches, sorted by key."""
        peer = await self._connection.peer()
        chosen = self._ownership.only_ours(filters) if peer.namespaced else filters
        found: list[SnapshotInfo] = []
        for namespace in await self._connection.namespaces():
            async with aclosing(self._within(namespace).walk(chosen)) as infos:
                found += [_shown(info) async for info in infos]
        for info in sorted(found, key=lambda info: info.name):
            yield info

    async def cleanup(self) -> None:
        """Raise Unimplemented where the peer cleans up by itself."""
        await self._within("").cleanup()

    async def _given(self, labels: Mapping[str, str] | None) -> Mapping[str, str]:
        """Return the labels to send to the peer."""
        peer = await self._connection.peer()
        return self._ownership.marked(labels or {}) if peer.namespaced else labels or {}

    def _of(self, key: str) -> Snapshots:
        """Return the snapshots in the caller's namespace, else in the key's: a garbage collection has no caller."""
        return self._within(context.current().namespace or key.partition("/")[0])

    def _within(self, namespace: str) -> Snapshots:
        return Snapshots(self._connection.within(namespace), self._connection.link.remote_name)


def _shown(info: SnapshotInfo) -> SnapshotInfo:
    return msgspec.structs.replace(info, labels=without_marks(info.labels))
