"""Blobs and ingests."""

from __future__ import annotations

from aiocontainerd import api
from aiocontainerd.interfaces.content import BlobInfo, IngestStatus
from aiocontainerd.wire.times import time_from_wire, time_to_wire


def content_info_from_wire(message: api.content.Info) -> BlobInfo:
    """Return the record of a blob."""
    return BlobInfo(
        digest=message.digest,
        size=message.size,
        created_at_ns=time_from_wire(message.created_at),
        updated_at_ns=time_from_wire(message.updated_at),
        labels=message.labels,
    )


def content_info_to_wire(info: BlobInfo) -> api.content.Info:
    """Return the message of a blob."""
    return api.content.Info(
        digest=info.digest,
        size=info.size,
        created_at=time_to_wire(info.created_at_ns),
        updated_at=time_to_wire(info.updated_at_ns),
        labels=dict(info.labels),
    )


def ingest_status_from_wire(message: api.content.Status) -> IngestStatus:
    """Return the record of an ingest."""
    return IngestStatus(
        ref=message.ref,
        offset=message.offset,
        total=message.total,
        started_at_ns=time_from_wire(message.started_at),
        updated_at_ns=time_from_wire(message.updated_at),
        expected=message.expected,
    )


def ingest_status_to_wire(status: IngestStatus) -> api.content.Status:
    """Return the message of an ingest."""
    return api.content.Status(
        started_at=time_to_wire(status.started_at_ns),
        updated_at=time_to_wire(status.updated_at_ns),
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        expected=status.expected,
    )
