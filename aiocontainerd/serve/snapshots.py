"""The Snapshots service (facts/core 6)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import ClassVar

from aiocontainerd import api
from aiocontainerd.interfaces.services import SnapshotsService
from aiocontainerd.interfaces.snapshotter import Kind, SnapshotInfo
from aiocontainerd.serve.requests import LIST_BATCH, required, unconverted
from aiocontainerd.wire.masks import mask_from_wire
from aiocontainerd.wire.mounts import mounts_to_wire
from aiocontainerd.wire.snapshots import snapshot_info_to_wire, usage_to_wire


class SnapshotsGrpc:
    """`containerd.services.snapshots.v1.Snapshots`."""

    service_name: ClassVar[str] = "containerd.services.snapshots.v1.Snapshots"

    def __init__(self, snapshots: SnapshotsService) -> None:
        self._snapshots = snapshots

    async def prepare(self, request: api.snapshots.PrepareSnapshotRequest) -> api.snapshots.PrepareSnapshotResponse:
        """Make an active snapshot."""
        backend = self._snapshots.snapshotter(request.snapshotter)
        mounts = await backend.prepare(request.key, request.parent, request.labels)
        return api.snapshots.PrepareSnapshotResponse(mounts=mounts_to_wire(mounts))

    async def view(self, request: api.snapshots.ViewSnapshotRequest) -> api.snapshots.ViewSnapshotResponse:
        """Make a view."""
        backend = self._snapshots.snapshotter(request.snapshotter)
        mounts = await backend.view(request.key, request.parent, request.labels)
        return api.snapshots.ViewSnapshotResponse(mounts=mounts_to_wire(mounts))

    async def mounts(self, request: api.snapshots.MountsRequest) -> api.snapshots.MountsResponse:
        """Return what to mount to see an active snapshot or a view."""
        mounts = await self._snapshots.snapshotter(request.snapshotter).mounts(request.key)
        return api.snapshots.MountsResponse(mounts=mounts_to_wire(mounts))

    async def commit(self, request: api.snapshots.CommitSnapshotRequest) -> api.protobuf.Empty:
        """Turn an active snapshot into a committed one."""
        backend = self._snapshots.snapshotter(request.snapshotter)
        await backend.commit(request.name, request.key, request.labels, request.parent)
        return api.protobuf.Empty()

    async def remove(self, request: api.snapshots.RemoveSnapshotRequest) -> api.protobuf.Empty:
        """Remove a snapshot without children. The next garbage collection removes the backend's files."""
        await self._snapshots.snapshotter(request.snapshotter).remove(request.key)
        return api.protobuf.Empty()

    async def stat(self, request: api.snapshots.StatSnapshotRequest) -> api.snapshots.StatSnapshotResponse:
        """Return what is known of a snapshot."""
        info = await self._snapshots.snapshotter(request.snapshotter).stat(request.key)
        return api.snapshots.StatSnapshotResponse(info=snapshot_info_to_wire(info))

    async def update(self, request: api.snapshots.UpdateSnapshotRequest) -> api.snapshots.UpdateSnapshotResponse:
        """Change labels."""
        backend = self._snapshots.snapshotter(request.snapshotter)
        given = required(request.info, "info")
        info = SnapshotInfo(kind=Kind.UNKNOWN, name=given.name, labels=given.labels)
        updated = await backend.update(info, mask_from_wire(request.update_mask))
        return api.snapshots.UpdateSnapshotResponse(info=snapshot_info_to_wire(updated))

    async def list(
        self, request: api.snapshots.ListSnapshotsRequest
    ) -> AsyncIterator[api.snapshots.ListSnapshotsResponse]:
        """Send snapshots sorted by key, a hundred in each message. Errors of the walk are UNKNOWN (facts/core 0)."""
        backend = self._snapshots.snapshotter(request.snapshotter)
        batch: list[api.snapshots.Info] = []
        with unconverted():
            async for info in backend.walk(request.filters):
                batch.append(snapshot_info_to_wire(info))
                if len(batch) == LIST_BATCH:
                    yield api.snapshots.ListSnapshotsResponse(info=batch)
                    batch = []
        if batch:
            yield api.snapshots.ListSnapshotsResponse(info=batch)

    async def usage(self, request: api.snapshots.UsageRequest) -> api.snapshots.UsageResponse:
        """Return the disk space of one snapshot without its parents."""
        return usage_to_wire(await self._snapshots.snapshotter(request.snapshotter).usage(request.key))

    async def cleanup(self, request: api.snapshots.CleanupRequest) -> api.protobuf.Empty:
        """Delete what removed snapshots left behind. A daemon leaves that to garbage collection (facts/core 6)."""
        await self._snapshots.snapshotter(request.snapshotter).cleanup()
        return api.protobuf.Empty()
