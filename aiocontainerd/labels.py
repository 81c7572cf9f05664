"""Names of the labels that the daemon itself reads, and the rules for all labels (facts/core 1, 10)."""

from __future__ import annotations

from collections.abc import Mapping

from aiocontainerd.errors import InvalidArgument

MAX_SIZE_BYTES = 4096
_SHOWN_KEY = 64

DEFAULT_RUNTIME = "containerd.io/defaults/runtime"
DEFAULT_SNAPSHOTTER = "containerd.io/defaults/snapshotter"
NAMESPACE_SHAREABLE = "containerd.io/namespace.shareable"
UNCOMPRESSED = "containerd.io/uncompressed"
DISTRIBUTION_SOURCE = "containerd.io/distribution.source"
SNAPSHOT_REF = "containerd.io/snapshot.ref"
SNAPSHOT_PREFIX = "containerd.io/snapshot/"
GC_ROOT = "containerd.io/gc.root"
GC_EXPIRE = "containerd.io/gc.expire"
GC_FLAT = "containerd.io/gc.flat"
GC_REF_CONTENT = "containerd.io/gc.ref.content"
GC_REF_SNAPSHOT = "containerd.io/gc.ref.snapshot"
GC_REF_IMAGE = "containerd.io/gc.ref.image"
GC_BACK_REF = "containerd.io/gc.bref"
GC_COND_SNAPSHOT = "containerd.io/gc.cond.snapshot"


def validate(labels: Mapping[str, str], where: str) -> None:
    """Raise InvalidArgument prefixed with `where` (such as `image.Labels`) if a label is larger than 4096 bytes."""
    for key, value in labels.items():
        total = len(key.encode()) + len(value.encode())
        if total > MAX_SIZE_BYTES:
            raise InvalidArgument(
                f"{where}: label key and value length ({total} bytes) greater than maximum size "
                f"({MAX_SIZE_BYTES} bytes), key: {key[:_SHOWN_KEY]}"
            )


def without_empty(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels that have a value. An empty value deletes a label on update and is dropped on create."""
    return {key: value for key, value in labels.items() if value}


def update(current: Mapping[str, str], given: Mapping[str, str], paths: list[str]) -> dict[str, str]:
    """Return `current` after an update. A mask path `labels` replaces all, `labels.<key>` sets or deletes one."""
    result = dict(current)
    for path in paths:
        if path == "labels":
            result = dict(given)
        elif path.startswith("labels."):
            key = path.removeprefix("labels.")
            result[key] = given.get(key, "")
    return without_empty(result)
