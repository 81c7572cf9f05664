"""Snapshots."""

from __future__ import annotations

from aiocontainerd import api
from aiocontainerd.interfaces.snapshotter import Kind, SnapshotInfo, Usage
from aiocontainerd.wire.times import time_from_wire, time_to_wire


def snapshot_info_from_wire(message: api.snapshots.Info) -> SnapshotInfo:
    """Return the record of a snapshot."""
    return SnapshotInfo(
        kind=Kind(int(message.kind)),
        name=message.name,
        parent=message.parent,
        labels=message.labels,
        created_at_ns=time_from_wire(message.created_at),
        updated_at_ns=time_from_wire(message.updated_at),
    )


def snapshot_info_to_wire(info: SnapshotInfo) -> api.snapshots.Info:
    """Return the message of a snapshot."""
    return api.snapshots.Info(
        name=info.name,
        parent=info.parent,
        kind=api.snapshots.Kind(info.kind.value),
        created_at=time_to_wire(info.created_at_ns),
        updated_at=time_to_wire(info.updated_at_ns),
        labels=dict(info.labels),
    )


def usage_from_wire(message: api.snapshots.UsageResponse) -> Usage:
    """Return the disk space that a response tells."""
    return Usage(message.size, message.inodes)


def usage_to_wire(usage: Usage) -> api.snapshots.UsageResponse:
    """Return the response that tells disk space."""
    return api.snapshots.UsageResponse(size=usage.size, inodes=usage.inodes)
