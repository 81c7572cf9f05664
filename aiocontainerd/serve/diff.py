"""The Diff service (facts/core 8)."""

from __future__ import annotations

from typing import ClassVar

from aiocontainerd import api
from aiocontainerd.interfaces.differ import Differ
from aiocontainerd.serve.requests import required
from aiocontainerd.wire.descriptors import descriptor_from_wire, descriptor_to_wire
from aiocontainerd.wire.diff import apply_options_from_wire, compare_options_from_wire
from aiocontainerd.wire.mounts import mounts_from_wire


class DiffGrpc:
    """`containerd.services.diff.v1.Diff`."""

    service_name: ClassVar[str] = "containerd.services.diff.v1.Diff"

    def __init__(self, differ: Differ) -> None:
        self._differ = differ

    async def apply(self, request: api.diff.ApplyRequest) -> api.diff.ApplyResponse:
        """Unpack a layer onto mounts and return the descriptor of the uncompressed tar."""
        layer = descriptor_from_wire(required(request.diff, "diff"))
        mounts, options = mounts_from_wire(request.mounts), apply_options_from_wire(request)
        applied = await self._differ.apply(layer, mounts, options)
        return api.diff.ApplyResponse(applied=descriptor_to_wire(applied))

    async def diff(self, request: api.diff.DiffRequest) -> api.diff.DiffResponse:
        """Write the difference of two trees to the content store."""
        lower, upper = mounts_from_wire(request.left), mounts_from_wire(request.right)
        made = await self._differ.compare(lower, upper, compare_options_from_wire(request))
        return api.diff.DiffResponse(diff=descriptor_to_wire(made))
