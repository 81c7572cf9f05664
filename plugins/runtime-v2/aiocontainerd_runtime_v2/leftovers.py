"""Processes of a container to which no usable bundle leads: found by the cgroup that the container's spec names.

A bundle may be damaged or gone while its container runs: a full disk, a host that lost power, a hand that removed it.
Nobody could ever stop such a container through the daemon, so its processes are ended. Everything here is blocking.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator

import msgspec

from aiocontainerd.sys import cgroup

log = logging.getLogger(__name__)

_TRIES = 100
_PAUSE_S = 0.01
_SYSTEMD_PARTS = 3


class _LinuxPart(msgspec.Struct, frozen=True):
    path: str = msgspec.field(default="", name="cgroupsPath")


class _SpecPart(msgspec.Struct, frozen=True):
    linux: _LinuxPart | None = None


def cgroup_of(namespace: str, container_id: str, *specs: bytes) -> str:
    """Return the cgroup that the first readable spec names, from the top of a hierarchy.

    Without a spec it is `/<namespace>/<id>`, where clients of containerd put containers. `slice:prefix:name` is
    systemd's form (facts/runtime 6.4). The result is "" if the spec leaves the cgroup to the OCI runtime.
    """
    for spec in specs:
        try:
            linux = msgspec.json.decode(spec, type=_SpecPart).linux
        except msgspec.MsgspecError:
            continue
        return _expanded(linux.path) if linux is not None else ""
    return f"/{namespace}/{container_id}"


def _expanded(path: str) -> str:
    parts = path.split(":")
    if len(parts) != _SYSTEMD_PARTS:
        path = os.path.normpath(f"/{path.lstrip('/')}")
        return "" if path == "/" else path
    name = f"{parts[1]}-{parts[2]}.scope" if parts[1] else f"{parts[2]}.scope"
    words = parts[0].removesuffix(".slice").split("-")
    slices = [f"{'-'.join(words[: count + 1])}.slice" for count in range(len(words))]
    return "/" + "/".join([*(slices if parts[0] else ["system.slice"]), name])


def processes(path: str) -> set[int]:
    """Return the processes in a cgroup of any hierarchy, and in those below it."""
    return {pid for mount_point in cgroup.hierarchies() for pid in _below(f"{mount_point}{path}")}


def _below(directory: str) -> Iterator[int]:
    for found, _, _ in os.walk(directory):
        yield from (int(line) for line in (cgroup.read_text(f"{found}/cgroup.procs") or "").split())


def kill(path: str) -> int:
    """Kill every process of a container's cgroup and wait until it is empty; return how many there were.

    A cgroup with this process in it is no container's, and is left alone.
    """
    killed: set[int] = set()
    for _ in range(_TRIES if path else 0):
        left = processes(path)
        if not left or os.getpid() in left:
            break
        for pid in left:
            _kill(pid)
        killed |= left
        time.sleep(_PAUSE_S)
    return len(killed)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
