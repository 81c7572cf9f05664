"""Where processes of ours live among the cgroups: a shim under `shim_cgroup`, the fork server beside the daemon."""

from __future__ import annotations

import os
from contextlib import suppress

from aiocontainerd.sys import cgroup, mountinfo


def join(path: str, pid: int) -> list[OSError]:
    """Make the cgroup `path`, counted from the top of every hierarchy, and move `pid` there.

    Gives the refusals, for the log: a hierarchy that is not delegated keeps the process where it was, and a new
    version 1 cpuset has no processors to give.
    """
    refused = []
    for mount_point in _hierarchies():
        directory = _directory(mount_point, path)
        try:
            os.makedirs(directory, mode=0o755, exist_ok=True)
            cgroup.add_process(directory, pid)
        except OSError as refusal:
            refused.append(refusal)
    return refused


def leave(path: str, pid: int) -> None:
    """Move `pid` from the cgroup `path` to the top of every hierarchy, and remove the cgroup where nobody is in it.

    The top takes processes even where it hands controllers down. A namespace's top that refuses keeps the process and
    the cgroup.
    """
    for mount_point in _hierarchies():
        directory = _directory(mount_point, path)
        members = (cgroup.read_text(f"{directory}/cgroup.procs") or "").split()
        with suppress(OSError):
            if str(pid) in members:
                cgroup.add_process(mount_point, pid)
            os.rmdir(directory)


def _directory(mount_point: str, path: str) -> str:
    return f"{mount_point}/{path.strip('/')}"


def _hierarchies() -> list[str]:
    mounts = mountinfo.read()
    return [mount.mount_point for mount in mounts if mount.fs_type in ("cgroup", "cgroup2")]
