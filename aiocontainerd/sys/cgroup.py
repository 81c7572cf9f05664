"""Control groups as files: where a process is, and how their files read (cgroups(7)).

Version 1 has a tree per controller, version 2 one tree; a hybrid host has both and counts as version 1
(facts/runtime 6.4). A file that the kernel doesn't offer reads as None or as empty.
"""

from __future__ import annotations

import os

import msgspec

from aiocontainerd.sys import mountinfo

ROOT = "/sys/fs/cgroup"
UNLIMITED = 2**64 - 1
"""What `max` reads as."""


class CgroupPaths(msgspec.Struct, frozen=True):
    """The directories of a cgroup: of version 2, or one per version 1 controller."""

    unified: str = ""
    controllers: dict[str, str] = {}

    @property
    def is_unified(self) -> bool:
        """Whether this host is of version 2 alone."""
        return bool(self.unified)

    def exists(self) -> bool:
        """Whether any of the directories is there."""
        return any(os.path.isdir(path) for path in (self.unified, *self.controllers.values()) if path)


class _Tree(msgspec.Struct, frozen=True):
    """A mounted hierarchy and the cgroup that is its top, which isn't `/` inside some containers."""

    mount_point: str
    top: str

    def directory(self, cgroup: str) -> str:
        if mountinfo.is_below(cgroup, self.top):
            cgroup = cgroup[len(self.top.rstrip("/")) :]
        return os.path.normpath(self.mount_point + "/" + cgroup)


def locate(pid: int, *, proc: str = "/proc", root: str = ROOT) -> CgroupPaths:
    """The cgroup of a process. Raises OSError where there is no such process."""
    memberships = _memberships(f"{proc}/{pid}/cgroup")
    mounts = mountinfo.read(f"{proc}/self/mountinfo")
    for info in mounts:
        if info.fs_type == "cgroup2" and info.mount_point == root and "" in memberships:
            return CgroupPaths(unified=_Tree(info.mount_point, info.root).directory(memberships[""]))
    trees = _version_1_trees(mounts)
    return CgroupPaths(
        controllers={name: trees[name].directory(path) for name, path in memberships.items() if name in trees}
    )


def _memberships(path: str) -> dict[str, str]:
    """Controller, or "" for version 2, to cgroup."""
    found = {}
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            _, names, cgroup = line.rstrip("\n").split(":", 2)
            found.update(dict.fromkeys(names.split(","), cgroup))
    return found


def _version_1_trees(mounts: list[mountinfo.MountInfo]) -> dict[str, _Tree]:
    trees: dict[str, _Tree] = {}
    for info in mounts:
        if info.fs_type == "cgroup":
            for option in info.super_options:
                trees.setdefault(option, _Tree(info.mount_point, info.root))
    return trees


def read_text(path: str) -> str | None:
    """The content without surrounding space; None where the kernel doesn't offer it."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:  # besides missing ones there are files that can't be read in some states, such as kmem limits
        return None


def to_int(text: str) -> int:
    """A number of a cgroup file; `max` is UNLIMITED, what is none is 0."""
    if text == "max":
        return UNLIMITED
    try:
        return max(int(text), 0)
    except ValueError:
        return 0


def read_int(path: str) -> int:
    """The single number of a file; 0 where it isn't offered."""
    return to_int(read_text(path) or "")


def read_flat(path: str) -> dict[str, int]:
    """A file of `KEY VALUE` lines."""
    pairs = (line.split() for line in (read_text(path) or "").splitlines())
    return {pair[0]: to_int(pair[1]) for pair in pairs if len(pair) == 2}


def read_nested(path: str) -> dict[str, dict[str, str]]:
    """A file of `NAME KEY=VALUE KEY=VALUE...` lines."""
    found = {}
    for line in (read_text(path) or "").splitlines():
        name, *pairs = line.split()
        found[name] = {key: value for key, _, value in (pair.partition("=") for pair in pairs)}
    return found


def enable_controllers(directory: str, *, root: str = ROOT) -> list[OSError]:
    """Enable all controllers of the version 2 root for `directory`, top down. Gives the refusals; a parent that
    holds processes refuses, which is for the log and no reason to stop."""
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


def hierarchies() -> list[str]:
    """Where the trees are mounted: one for each version 1 controller, and that of version 2."""
    return [mount.mount_point for mount in mountinfo.read() if mount.fs_type in ("cgroup", "cgroup2")]


def remove_empty(path: str) -> bool:
    """Remove the cgroup `path`, counted from the top of every hierarchy, where no process and no cgroup is in it.

    Whether it is gone from all of them.
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
