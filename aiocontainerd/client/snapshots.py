"""Snapshots of one backend of a daemon: `Snapshotter` over the API (facts/core 6)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from aiocontainerd import api
from aiocontainerd.client.connection import Connection
from aiocontainerd.errors import Internal
from aiocontainerd.interfaces.snapshotter import SnapshotInfo, Usage
from aiocontainerd.sys.mount import Mount
from aiocontainerd.wire.masks import mask_to_wire
from aiocontainerd.wire.mounts import mounts_from_wire
from aiocontainerd.wire.snapshots import snapshot_info_from_wire, usage_from_wire


class Snapshots:
    """`Snapshotter` over the API."""

    SERVICE = "containerd.services.snapshots.v1.Snapshots"

    def __init__(self, connection: Connection, snapshotter: str) -> None:
        self._connection = connection
        self.name = snapshotter

    async def stat(self, key: str) -> SnapshotInfo:
        """Return what is known of a snapshot. Raises NotFound."""
        s = api.snapshots
        request = s.StatSnapshotRequest(snapshotter=self.name, key=key)
        answer = await self._connection.call(self.SERVICE, "Stat", request, s.StatSnapshotResponse)
        return _info(answer.info)

    async def update(self, info: SnapshotInfo, paths: Sequence[str] = ()) -> SnapshotInfo:
        """Change labels: all of them, or those that `paths` name."""
        s = api.snapshots
        request = s.UpdateSnapshotRequest(
            snapshotter=self.name,
            info=s.Info(name=info.name, labels=dict(info.labels)),
            update_mask=mask_to_wire(paths),
        )
        answer = await self._connection.call(self.SERVICE, "Update", request, s.UpdateSnapshotResponse)
        return _info(answer.info)

    async def usage(self, key: str) -> Usage:
        """Return the disk space of one snapshot without its parents."""
        s = api.snapshots
        request = s.UsageRequest(snapshotter=self.name, key=key)
        answer = await self._connection.call(self.SERVICE, "Usage", request, s.UsageResponse)
        return usage_from_wire(answer)

    async def mounts(self, key: str) -> list[Mount]:
        """Return the mounts of a snapshot. Raises NotFound, FailedPrecondition for a committed snapshot."""
        s = api.snapshots
        request = s.MountsRequest(snapshotter=self.name, key=key)
        answer = await self._connection.call(self.SERVICE, "Mounts", request, s.MountsResponse)
        return mounts_from_wire(answer.mounts)

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Make an active snapshot and return its mounts. Raises AlreadyExists, NotFound for the parent."""
        s = api.snapshots
        request = s.PrepareSnapshotRequest(snapshotter=self.name, key=key, parent=parent, labels=dict(labels or {}))
        answer = await self._connection.call(self.SERVICE, "Prepare", request, s.PrepareSnapshotResponse)
        return mounts_from_wire(answer.mounts)

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Make a read-only view and return its mounts. Raises AlreadyExists, NotFound for the parent."""
        s = api.snapshots
        request = s.ViewSnapshotRequest(snapshotter=self.name, key=key, parent=parent, labels=dict(labels or {}))
        answer = await self._connection.call(self.SERVICE, "View", request, s.ViewSnapshotResponse)
        return mounts_from_wire(answer.mounts)

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        """Turn an active snapshot into the committed snapshot `name`. Raises AlreadyExists, NotFound."""
        s = api.snapshots
        request = s.CommitSnapshotRequest(
            snapshotter=self.name, name=name, key=key, labels=dict(labels or {}), parent=parent
        )
        await self._connection.call(self.SERVICE, "Commit", request, api.protobuf.Empty)

    async def remove(self, key: str) -> None:
        """Remove a snapshot. Raises NotFound, FailedPrecondition where it has children."""
        request = api.snapshots.RemoveSnapshotRequest(snapshotter=self.name, key=key)
        await self._connection.call(self.SERVICE, "Remove", request, api.protobuf.Empty)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncGenerator[SnapshotInfo, None]:
        """Yield every snapshot that a filter matches, sorted by key."""
        s = api.snapshots
        request = s.ListSnapshotsRequest(snapshotter=self.name, filters=list(filters))
        stream = self._connection.messages(self.SERVICE, "List", request, s.ListSnapshotsResponse)
        async with aclosing(stream) as messages:
            async for message in messages:
                for info in message.info:
                    yield snapshot_info_from_wire(info)

    async def cleanup(self) -> None:
        """Delete what removed snapshots left. Raises Unimplemented where only garbage collection does that."""
        request = api.snapshots.CleanupRequest(snapshotter=self.name)
        await self._connection.call(self.SERVICE, "Cleanup", request, api.protobuf.Empty)


def _info(message: api.snapshots.Info | None) -> SnapshotInfo:
    if message is None:
        raise Internal("the daemon answered without the snapshot's info")
    return snapshot_info_from_wire(message)
