"""Find which layers are mounted, from mountinfo: as a bind mount, or as a directory of an overlay."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from aiocontainerd.sys import mountinfo
from aiocontainerd.sys.mountinfo import MountInfo

_OVERLAY_OPTIONS = ("lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir")
_TELLING_PARTS = 5
"""So many last parts of a path that agree make it the same path, where a mount shows a path inside its file system."""


def names_in_use(layers: str, everywhere: bool) -> set[str]:
    """Return the names in the directory `layers` that are mounted here, or in the mount namespace of any process."""
    return names_mounted(layers, mountinfo.read_everywhere() if everywhere else mountinfo.read())


def names_mounted(layers: str, mounts: Iterable[MountInfo]) -> set[str]:
    """Return the names in the directory `layers` that `mounts` show."""
    directories = {os.path.abspath(layers), os.path.realpath(layers)}
    inside = [path.split("/") for path in directories]
    found: set[str] = set()
    for info in mounts:
        for path in (info.mount_point, *_overlaid(info, layers)):
            found.update(name for directory in directories if (name := _name_below(path, directory)))
        found.update(name for parts in inside if (name := _name_in_root(info.root.split("/"), parts)))
    return found


def _overlaid(info: MountInfo, layers: str) -> Iterator[str]:
    """Return the directories of an overlay. A relative one is taken to be in `layers`: that errs on the safe side."""
    if info.fs_type != "overlay":
        return
    for option in info.super_options:
        key, _, value = option.partition("=")
        if key in _OVERLAY_OPTIONS:
            for path in value.split(":"):
                yield os.path.normpath(os.path.join(layers, path))


def _name_below(path: str, directory: str) -> str:
    return path[len(directory) + 1 :].partition("/")[0] if path.startswith(directory + "/") else ""


def _name_in_root(root: list[str], layers: list[str]) -> str:
    """Return the name that a mount's root has in a directory. The root is a path within a file system.

    `/data/x/snapshots` may be `/x/snapshots` there if `/data` is a mount point, or `/@/data/x/snapshots` on btrfs.
    """
    for at in range(1, len(root) - 1):
        if root[at] == layers[-1]:
            shown, wanted = root[1 : at + 1], layers[1:]
            length = min(len(shown), len(wanted), _TELLING_PARTS)
            if length and shown[-length:] == wanted[-length:]:
                return root[at + 1]
    return ""
