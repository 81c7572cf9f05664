"""Keep snapshots as directories of changes, `<root>/snapshots/<id>/fs`, and `work` for active ones (facts/core 6)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import anyio.to_thread
import msgspec

from aiocontainerd.interfaces.snapshotter import Usage
from aiocontainerd.snapshots.base import SnapshotterBase
from aiocontainerd.snapshots.disk import make_directory_now, names_in, remove_tree, usage_of_tree
from aiocontainerd.snapshots.layer import Layer
from aiocontainerd.sys import idmap
from aiocontainerd.sys.mount import Mount

UID_MAPPING_LABEL = "containerd.io/snapshot/uidmapping"
GID_MAPPING_LABEL = "containerd.io/snapshot/gidmapping"
UPPER_LABEL = "containerd.io/snapshot/overlay.upperdir"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How an OverlaySnapshotter behaves; what the kernel allows is decided before.

    `overlay_options` end every overlay mount. With `id_mapped` the id mapping labels of a snapshot become mount
    options. `upper_label` shows the directory of changes as a label.
    """

    overlay_options: tuple[str, ...] = ()
    id_mapped: bool = False
    upper_label: bool = False
    sync_remove: bool = False
    rebase: bool = True


class OverlaySnapshotter(SnapshotterBase):
    """A committed snapshot costs no copy; a removed one keeps its files until `cleanup`, unless `sync_remove`."""

    def __init__(self, root: str | os.PathLike[str], settings: Settings | None = None) -> None:
        super().__init__(root)
        self.settings = settings or Settings()
        self.can_rebase = self.settings.rebase
        self.removes_at_once = self.settings.sync_remove

    async def make(self, layer: Layer, parents: Sequence[Layer]) -> None:
        await anyio.to_thread.run_sync(self._make_directories, layer, parents)

    def _make_directories(self, layer: Layer, parents: Sequence[Layer]) -> None:
        upper = self.upper(layer)
        make_directory_now(self.path(layer.id), 0o700)
        make_directory_now(upper, 0o755)
        owner = _mapped_root(layer.labels)
        if owner is None and parents:
            status = os.stat(self.upper(parents[0]))
            owner = (status.st_uid, status.st_gid)
        if owner is not None:
            os.chown(upper, *owner)
        if layer.is_active:
            make_directory_now(self.path(layer.id, "work"), 0o711)

    async def mounts_of(self, layer: Layer, parents: Sequence[Layer]) -> list[Mount]:
        mapping = self._mapping_options(layer)
        if not parents:
            return [_bind(self.upper(layer), mapping, "rw" if layer.is_active else "ro")]
        if len(parents) == 1 and not layer.is_active:
            return [_bind(self.upper(parents[0]), mapping, "ro")]
        changes = (f"workdir={self.path(layer.id, 'work')}", f"upperdir={self.upper(layer)}") if layer.is_active else ()
        lower = "lowerdir=" + ":".join(self.upper(parent) for parent in parents)
        options = (*mapping, *changes, lower, *self.settings.overlay_options)
        return [Mount("overlay", "overlay", options=options)]

    async def usage_of(self, layer: Layer) -> Usage:
        return await usage_of_tree(self.upper(layer))

    async def discard(self, layer_id: str) -> None:
        await remove_tree(self.path(layer_id))

    async def stored(self) -> Iterable[str]:
        return await names_in(self.layers)

    def labels_of(self, layer: Layer) -> Mapping[str, str]:
        return {UPPER_LABEL: self.upper(layer)} if self.settings.upper_label else {}

    def upper(self, layer: Layer) -> str:
        """Return the directory of what a layer changes."""
        return self.path(layer.id, "fs")

    def _mapping_options(self, layer: Layer) -> tuple[str, ...]:
        uids, gids = layer.labels.get(UID_MAPPING_LABEL), layer.labels.get(GID_MAPPING_LABEL)
        if not (self.settings.id_mapped and uids and gids):
            return ()
        return f"uidmap={uids}", f"gidmap={gids}"


def _bind(source: str, mapping: tuple[str, ...], access: str) -> Mount:
    return Mount("bind", source, options=(*mapping, access, "rbind"))


def _mapped_root(labels: Mapping[str, str]) -> tuple[int, int] | None:
    uids, gids = labels.get(UID_MAPPING_LABEL, ""), labels.get(GID_MAPPING_LABEL, "")
    return idmap.root_pair(uids, gids) if uids and gids else None
