"""Control groups (cgroups(7)): find the cgroup of a process, read and write its files, remove it.

Version 1 has one tree for each controller. Version 2 has one tree for all of them. A hybrid host has both and counts as
version 1 (facts/runtime 6.4). Functions that read return None, 0 or an empty dict for a file that the kernel does not
offer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from aiocontainerd.sys import mountinfo

ROOT = "/sys/fs/cgroup"
UNLIMITED = 2**64 - 1
"""The value of a file that says `max`."""
_BLOCK, _SHORT = 1 << 16, 1024
"""Bytes to ask for at once, and how many at least the kernel gives of a file that goes on: nearly a page."""


class CgroupPaths(msgspec.Struct, frozen=True):
    """The directories of one cgroup: `unified` on version 2, else one directory for each version 1 controller."""

    unified: str = ""
    controllers: dict[str, str] = {}

    @property
    def is_unified(self) -> bool:
        """True on a host that has version 2 only."""
        return bool(self.unified)

    def exists(self) -> bool:
        """Return True while at least one of the directories exists."""
        return any(os.path.isdir(path) for path in (self.unified, *self.controllers.values()) if path)


class _Tree(msgspec.Struct, frozen=True):
    """A mounted hierarchy. `top` is the cgroup at its mount point; inside some containers that is not `/`."""

    mount_point: str
    top: str

    def directory(self, cgroup: str) -> str:
        if mountinfo.is_below(cgroup, self.top):
            cgroup = cgroup[len(self.top.rstrip("/")) :]
        return os.path.normpath(self.mount_point + "/" + cgroup)


def locate(
    pid: int, *, proc: str = "/proc", root: str = ROOT, mounts: Sequence[mountinfo.MountInfo] | None = None
) -> CgroupPaths:
    """Return the cgroup of a process. Raises OSError when the process does not exist.

    A caller that looks for many gives the `mounts` of the cgroup trees, and saves reading all mounts each time.
    """
    memberships = _memberships(f"{proc}/{pid}/cgroup")
    mounts = mountinfo.read(f"{proc}/self/mountinfo") if mounts is None else mounts
    for info in mounts:
        if info.fs_type == "cgroup2" and info.mount_point == root and "" in memberships:
            return CgroupPaths(unified=_Tree(info.mount_point, info.root).directory(memberships[""]))
    trees = _version_1_trees(mounts)
    return CgroupPaths(
        controllers={name: trees[name].directory(path) for name, path in memberships.items() if name in trees}
    )


def _memberships(path: str) -> dict[str, str]:
    """Return the cgroup of each controller. The key of version 2 is ""."""
    found = {}
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            _, names, cgroup = line.rstrip("\n").split(":", 2)
            found.update(dict.fromkeys(names.split(","), cgroup))
    return found


def _version_1_trees(mounts: Sequence[mountinfo.MountInfo]) -> dict[str, _Tree]:
    trees: dict[str, _Tree] = {}
    for info in mounts:
        if info.fs_type == "cgroup":
            for option in info.super_options:
                trees.setdefault(option, _Tree(info.mount_point, info.root))
    return trees


def read_text(path: str) -> str | None:
    """Return the content of a file without surrounding space, or None when the file cannot be read."""
    data = _read(path)
    return None if data is None else data.decode(errors="surrogateescape").strip()


def _read(path: str) -> bytes | None:
    """Read with system calls alone: a file object costs ten times as much, and a measurement reads fifty files."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = block = os.read(fd, _BLOCK)
        while len(block) >= _SHORT:
            block = os.read(fd, _BLOCK)
            data += block
    except OSError:  # a file may exist and still refuse to be read, such as a kmem limit
        return None
    finally:
        os.close(fd)
    return data


def to_int(text: str) -> int:
    """Return the number in `text`. `max` means UNLIMITED; anything that is no number counts as 0."""
    if text == "max":
        return UNLIMITED
    try:
        return max(int(text), 0)
    except ValueError:
        return 0


def read_int(path: str) -> int:
    """Return the number in a file that holds one number, or 0 when the file cannot be read."""
    return to_int(read_text(path) or "")


def read_flat(path: str) -> dict[str, int]:
    """Return the content of a file whose lines are `KEY VALUE`."""
    pairs = (line.split() for line in (read_text(path) or "").splitlines())
    return {pair[0]: to_int(pair[1]) for pair in pairs if len(pair) == 2}


def read_nested(path: str) -> dict[str, dict[str, str]]:
    """Return the content of a file whose lines are `NAME KEY=VALUE KEY=VALUE...`."""
    found = {}
    for line in (read_text(path) or "").splitlines():
        name, *pairs = line.split()
        found[name] = {key: value for key, _, value in (pair.partition("=") for pair in pairs)}
    return found


def enable_controllers(directory: str, *, root: str = ROOT) -> list[OSError]:
    """Enable every controller of the version 2 root in the parents of `directory`, from the top down.

    Returns the errors of the parents that refused, for the log. A parent that holds processes refuses; its children
    are enabled all the same.
    """
    wanted = " ".join(f"+{name}" for name in (read_text(f"{root}/cgroup.controllers") or "").split())
    refusals = []
    parent = root
    for part in os.path.relpath(directory, root).split("/"):
        try:
            write_text(f"{parent}/cgroup.subtree_control", wanted)
        except OSError as error:
            refusals.append(error)
        parent = f"{parent}/{part}"
    return refusals


def add_process(directory: str, pid: int) -> None:
    """Move a process into the cgroup. Raises OSError."""
    write_text(f"{directory}/cgroup.procs", str(pid))


def write_text(path: str, text: str) -> None:
    """Write a cgroup file in one go. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def mounts() -> list[mountinfo.MountInfo]:
    """Return the mounts of all cgroup trees."""
    return [mount for mount in mountinfo.read() if mount.fs_type in ("cgroup", "cgroup2")]


def hierarchies() -> list[str]:
    """Return the mount points of all cgroup trees: one for each version 1 controller, and one for version 2."""
    return [mount.mount_point for mount in mounts()]


def remove_empty(path: str) -> bool:
    """Remove the cgroup `path` from every hierarchy in which it holds no process and no other cgroup.

    `path` starts at the top of a hierarchy. Returns True when no hierarchy has the cgroup any more.
    """
    gone = True
    for mount_point in hierarchies():
        try:
            os.rmdir(f"{mount_point}/{path.strip('/')}")
        except FileNotFoundError:
            continue
        except OSError:
            gone = False
    return gone
