"""Puts processes of ours into cgroups: a shim under `shim_cgroup`, the fork server beside the daemon."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from aiocontainerd.sys import cgroup

_REMOVED = (errno.ENOENT, errno.ENODEV)
_WEIGHTS = {"cpu.shares": 8192, "cpu.weight": 800}
"""Eight times the usual weight, for versions 1 and 2."""
_ATTEMPTS = 5
"""Whoever leaves a cgroup may remove it just before the next one joins it."""


def join(path: str, pid: int) -> list[OSError]:
    """Make the cgroup `path` in every hierarchy, counted from the top, and move `pid` there.

    Return the refusals, for the log. A hierarchy that is not delegated keeps the process where it was. A new cpuset
    of version 1 has no processors to give.
    """
    refused = []
    for mount_point in cgroup.hierarchies():
        directory = _directory(mount_point, path)
        try:
            _join(directory, pid)
        except OSError as refusal:
            refused.append(refusal)
    return refused


def _join(directory: str, pid: int) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        os.makedirs(directory, mode=0o755, exist_ok=True)
        try:
            cgroup.add_process(directory, pid)
        except OSError as refusal:
            if refusal.errno not in _REMOVED or attempt == _ATTEMPTS:
                raise
        else:
            return


def leave(path: str, pid: int) -> None:
    """Move `pid` from the cgroup `path` to the top of every hierarchy, and remove the cgroup if nobody is in it.

    The top takes processes even where it hands controllers down. If the top of a namespace refuses, process and
    cgroup stay.
    """
    for mount_point in cgroup.hierarchies():
        directory = _directory(mount_point, path)
        members = (cgroup.read_text(f"{directory}/cgroup.procs") or "").split()
        with suppress(OSError):
            if str(pid) in members:
                cgroup.add_process(mount_point, pid)
            os.rmdir(directory)


def prefer(path: str) -> None:
    """Give the cgroup `path` more of the processors than others get while all are busy.

    Shims and OCI runtimes work little, and whoever starts a container waits for them. Containers are elsewhere. A
    hierarchy that has no weights, or refuses, is left as it is.
    """
    for mount_point in cgroup.hierarchies():
        for name, weight in _WEIGHTS.items():
            with suppress(OSError):
                cgroup.write_text(f"{_directory(mount_point, path)}/{name}", str(weight))


def _directory(mount_point: str, path: str) -> str:
    return f"{mount_point}/{path.strip('/')}"
