"""Find the directory behind a list of mounts, if writing there is the same as writing through the mounts."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from aiocontainerd.sys import mount_options
from aiocontainerd.sys.mount import Mount

_ID_MAPPED = ("uidmap=", "gidmap=")
_IDENTITY = ["0", "0", "4294967295"]


class Target(msgspec.Struct, frozen=True):
    """A directory to write to. With `overlay` it is an upper directory over `lowers`, topmost first."""

    path: str
    overlay: bool = False
    lowers: tuple[str, ...] = ()


def direct_target(mounts: Sequence[Mount]) -> Target | None:
    """Return the directory to write to without mounting anything; None if the mounts must be mounted.

    Only the lower directories of an overlay are mapped to other owners. Its upper directory holds those of the layer.
    """
    if len(mounts) != 1 or mounts[0].target:
        return None
    (mount,) = mounts
    if mount.type == "overlay":
        return _overlay_target(mount)
    mapped = any(option.startswith(_ID_MAPPED) for option in mount.options)
    writable = not mapped and "ro" not in mount.options and os.path.isdir(mount.source)
    return Target(mount.source) if mount.type in ("bind", "rbind") and writable else None


def _overlay_target(mount: Mount) -> Target | None:
    upper = mount_options.value_of(mount.options, "upperdir")
    if not upper or "userxattr" in mount.options or "ro" in mount.options or in_user_namespace():
        return None
    lowers = mount_options.split_layers(mount_options.value_of(mount.options, "lowerdir") or "")
    return Target(upper, overlay=True, lowers=tuple(layer.replace("\\:", ":") for layer in lowers if layer))


def overlay_guide(lower: Sequence[Mount], upper: Sequence[Mount]) -> str:
    """Return the upper directory of `upper` if that is an overlay over exactly what `lower` shows; else ""."""
    if len(lower) != 1 or len(upper) != 1 or upper[0].type != "overlay":
        return ""
    below = mount_options.value_of(upper[0].options, "lowerdir")
    same = below and below == (
        mount_options.value_of(lower[0].options, "lowerdir") if lower[0].type == "overlay" else lower[0].source
    )
    is_view = mount_options.value_of(lower[0].options, "upperdir") is None
    return (mount_options.value_of(upper[0].options, "upperdir") or "") if same and is_view else ""


def in_user_namespace() -> bool:
    """Return whether this process is in a user namespace that maps ids."""
    with open("/proc/self/uid_map") as file:
        return file.readline().split() != _IDENTITY
