"""Read /proc/self/mountinfo: what is mounted where (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
import re

import msgspec

_ESCAPE = re.compile(r"\\([0-7]{3})")


class MountInfo(msgspec.Struct, frozen=True):
    """One mounted file system. `options` belong to the mount, `super_options` to the file system."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    mount_point: str
    options: tuple[str, ...]
    propagation: tuple[str, ...]
    fs_type: str
    source: str
    super_options: tuple[str, ...]


def parse_line(line: str) -> MountInfo:
    """Return the record of one line. Raises ValueError for a line of another form."""
    before, separator, after = line.partition(" - ")
    if not separator:
        raise ValueError(f"no mountinfo line: {line!r}")
    mount_id, parent_id, device, root, point, options, *optional = before.split(" ")
    fs_type, source, super_options = (*after.split(" ", 2), "", "")[:3]
    return MountInfo(
        int(mount_id),
        int(parent_id),
        device,
        _unescaped(root),
        _unescaped(point),
        tuple(options.split(",")),
        tuple(optional),
        fs_type,
        _unescaped(source),
        tuple(_unescaped(option) for option in super_options.split(",")),
    )


def read(path: str = "/proc/self/mountinfo") -> list[MountInfo]:
    """Return every mount of this mount namespace in the kernel's order, parents first."""
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        return [parse_line(line.rstrip("\n")) for line in lines]


def read_everywhere() -> list[MountInfo]:
    """Return the mounts of every mount namespace that a process is in. A process that ends meanwhile is left out."""
    found: list[MountInfo] = []
    seen: set[str] = set()
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                namespace = os.readlink(f"/proc/{entry}/ns/mnt")
                if namespace not in seen:
                    found += read(f"/proc/{entry}/mountinfo")
                    seen.add(namespace)
            except OSError:
                continue
    return found


def is_below(path: str, root: str) -> bool:
    """Return True when `path` is `root` or lies below it. Both must be absolute and normalised."""
    return path == root or path.startswith(root.rstrip("/") + "/")


def mounts_under(root: str, path: str = "/proc/self/mountinfo") -> list[MountInfo]:
    """Return the mounts at `root` and below it in the kernel's order. The last of a mount point is the one on top.

    Symbolic links in the directory of `root` are resolved, since the kernel lists real paths.
    """
    parent, name = os.path.split(os.path.abspath(root))
    real = os.path.join(os.path.realpath(parent), name) if name else "/"
    return [info for info in read(path) if is_below(info.mount_point, real)]


def _unescaped(field: str) -> str:
    if "\\" not in field:
        return field
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), field)
