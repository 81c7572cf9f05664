"""The Diff service (facts/core 8)."""

from __future__ import annotations

from typing import ClassVar

from aiocontainerd import api, timestamps, typeurl
from aiocontainerd.interfaces.differ import ApplyOptions, CompareOptions, Differ
from aiocontainerd.serve.requests import required
from aiocontainerd.wire.convert import descriptor_from_wire, descriptor_to_wire, mounts_from_wire


class DiffGrpc:
    """`containerd.services.diff.v1.Diff`."""

    service_name: ClassVar[str] = "containerd.services.diff.v1.Diff"

    def __init__(self, differ: Differ) -> None:
        self._differ = differ

    async def apply(self, request: api.diff.ApplyRequest) -> api.diff.ApplyResponse:
        """Unpacks a layer onto mounts and describes the uncompressed tar."""
        layer = descriptor_from_wire(required(request.diff, "diff"))
        payloads = {key: typeurl.Any(value.type_url, value.value) for key, value in request.payloads.items()}
        options = ApplyOptions(payloads=payloads, sync_fs=request.sync_fs)
        applied = await self._differ.apply(layer, mounts_from_wire(request.mounts), options)
        return api.diff.ApplyResponse(applied=descriptor_to_wire(applied))

    async def diff(self, request: api.diff.DiffRequest) -> api.diff.DiffResponse:
        """Writes the difference of two trees to the content store."""
        epoch = request.source_date_epoch
        options = CompareOptions(
            media_type=request.media_type,
            reference=request.ref,
            labels=request.labels,
            source_date_epoch_ns=None if epoch is None else timestamps.from_wire(epoch),
        )
        made = await self._differ.compare(mounts_from_wire(request.left), mounts_from_wire(request.right), options)
        return api.diff.DiffResponse(diff=descriptor_to_wire(made))
