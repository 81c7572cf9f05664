"""Keep snapshots as plain directories, `<root>/snapshots/<id>`, made as copies of their parents (facts/core 6)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from aiocontainerd.interfaces.snapshotter import Kind, Usage
from aiocontainerd.snapshots.base import SnapshotterBase
from aiocontainerd.snapshots.disk import make_directory, names_in, remove_tree, usage_of_tree
from aiocontainerd.snapshots.layer import Layer
from aiocontainerd.sys import programs
from aiocontainerd.sys.mount import Mount

_COPY = ("cp", "--archive", "--reflink=auto")


class NativeSnapshotter(SnapshotterBase):
    """Copies keep owner, mode, times, extended attributes, hard links, devices and holes, and share blocks if possible.

    A view makes no copy: it shows its parent's directory read-only.
    """

    async def make(self, layer: Layer, parents: Sequence[Layer]) -> None:
        directory = self.path(layer.id)
        await make_directory(directory, 0o755)
        if parents and layer.is_active:
            await copy_tree(self.path(parents[0].id), directory)

    async def mounts_of(self, layer: Layer, parents: Sequence[Layer]) -> list[Mount]:
        shown = parents[0] if parents and layer.kind == Kind.VIEW else layer
        return [Mount("bind", self.path(shown.id), options=("rbind", "rw" if layer.is_active else "ro"))]

    async def usage_of(self, layer: Layer) -> Usage:
        return await usage_of_tree(self.path(layer.id))

    async def discard(self, layer_id: str) -> None:
        await remove_tree(self.path(layer_id))

    async def stored(self) -> Iterable[str]:
        return await names_in(self.layers)


async def copy_tree(source: str, target: str) -> None:
    """Make the directory `target` a copy of `source`, in a child process. Raise OSError with what it printed.

    The deadline is that of the call to the snapshotter: the daemon cancels it, and the child is killed.
    """
    done = await programs.run((*_COPY, "--", f"{source}/.", target), timeout_s=math.inf)
    if done.status != 0:
        raise OSError(f"cannot copy {source} to {target}: {done.text()}")
