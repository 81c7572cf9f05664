"""Field masks: which fields of a record an update changes."""

from __future__ import annotations

from collections.abc import Sequence

from aiocontainerd import api


def mask_to_wire(paths: Sequence[str]) -> api.protobuf.FieldMask | None:
    """Return the mask of field paths; no paths leave the field out."""
    return api.protobuf.FieldMask(paths=list(paths)) if paths else None


def mask_from_wire(mask: api.protobuf.FieldMask | None) -> Sequence[str]:
    """Return the field paths of a mask; none where the field is absent."""
    return () if mask is None else tuple(mask.paths)
