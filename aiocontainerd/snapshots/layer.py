"""The record of a snapshot inside its snapshotter, and the fields of a snapshot that filters name."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from aiocontainerd.filters import Adaptor, FieldPath, field
from aiocontainerd.interfaces.snapshotter import Kind, SnapshotInfo, Usage


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot and its place on storage. `id` is a decimal number, never used twice, and the name of the files."""

    id: str
    info: SnapshotInfo
    parent_id: str = ""
    usage: Usage = Usage()

    @property
    def key(self) -> str:
        return self.info.name

    @property
    def kind(self) -> Kind:
        return self.info.kind

    @property
    def labels(self) -> Mapping[str, str]:
        return self.info.labels

    @property
    def is_active(self) -> bool:
        return self.info.kind == Kind.ACTIVE


def fields_of(info: SnapshotInfo) -> Adaptor:
    """Return the fields of a snapshot for filters: `kind`, `name`, `parent`, `labels.*` (facts/core 2)."""

    def value(path: FieldPath) -> str | None:
        if path[0] == "labels":
            return field(info.labels, path[1:]) if len(path) > 1 else None
        if len(path) > 1:
            return None
        return {"kind": info.kind.name.lower(), "name": info.name, "parent": info.parent}.get(path[0])

    return value
