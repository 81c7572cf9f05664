"""Snapshots whose files are clones of their parents': `[plugins."io.containerd.snapshotter.v1.reflink"]`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from anyio import to_thread

from aiocontainerd.plugin import (
    Kind,
    Layer,
    Mount,
    PluginConfig,
    SnapshotterBase,
    Usage,
    kinds,
    make_directory,
    names_in,
    register,
    remove_tree,
    usage_of_tree,
)
from aiocontainerd_snapshotter_reflink.clone import clone_tree


class Config(PluginConfig, frozen=True):
    """`root_path` is best on a file system that clones files (XFS, btrfs); "" is the plugin's own directory."""

    root_path: str = ""


@register(kinds.SNAPSHOTTER, "reflink", config=Config)
class ReflinkSnapshotter(SnapshotterBase):
    """An active snapshot is a clone of its parent; a view shows its parent's directory read-only."""

    async def make(self, layer: Layer, parents: Sequence[Layer]) -> None:
        if parents and layer.is_active:
            await to_thread.run_sync(clone_tree, self.path(parents[0].id), self.path(layer.id))
        else:
            await make_directory(self.path(layer.id), 0o755)

    async def mounts_of(self, layer: Layer, parents: Sequence[Layer]) -> list[Mount]:
        shown = parents[0] if parents and layer.kind == Kind.VIEW else layer
        return [Mount("bind", self.path(shown.id), options=("rbind", "rw" if layer.is_active else "ro"))]

    async def usage_of(self, layer: Layer) -> Usage:
        return await usage_of_tree(self.path(layer.id))

    async def discard(self, layer_id: str) -> None:
        await remove_tree(self.path(layer_id))

    async def stored(self) -> Iterable[str]:
        return await names_in(self.layers)
