"""The differs of a daemon, which it asks in turn: `Differ` over the API (facts/core 8)."""

from __future__ import annotations

from collections.abc import Sequence

from aiocontainerd import api
from aiocontainerd.client.connection import Connection
from aiocontainerd.errors import Internal
from aiocontainerd.interfaces.differ import ApplyOptions, CompareOptions
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.sys.mount import Mount
from aiocontainerd.wire.descriptors import descriptor_from_wire
from aiocontainerd.wire.diff import apply_to_wire, compare_to_wire

TIMEOUT_S = 3600.0
"""Deadline of one layer. How long a layer takes grows with its size, so that only a stuck daemon misses this one."""


class Diff:
    """`Differ` over the API. The daemon reads and writes layers in its own content store."""

    SERVICE = "containerd.services.diff.v1.Diff"

    def __init__(self, connection: Connection, *, timeout_s: float = TIMEOUT_S) -> None:
        self._connection = connection
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"<Diff {self._connection!r}>"

    async def apply(self, layer: Descriptor, mounts: Sequence[Mount], options: ApplyOptions) -> Descriptor:
        """Unpack a layer and return the descriptor of its uncompressed tar. Raises the errors of the differs."""
        request = apply_to_wire(layer, mounts, options)
        answer = await self._connection.call(
            self.SERVICE, "Apply", request, api.diff.ApplyResponse, timeout_s=self._timeout_s
        )
        if answer.applied is None:
            raise Internal(f"the differ applied {layer.digest} without telling what")
        return descriptor_from_wire(answer.applied)

    async def compare(self, lower: Sequence[Mount], upper: Sequence[Mount], options: CompareOptions) -> Descriptor:
        """Write the difference of two trees to the content store. Raises the errors of the differs."""
        request = compare_to_wire(lower, upper, options)
        answer = await self._connection.call(
            self.SERVICE, "Diff", request, api.diff.DiffResponse, timeout_s=self._timeout_s
        )
        if answer.diff is None:
            raise Internal("the differ compared two trees without telling the result")
        return descriptor_from_wire(answer.diff)
