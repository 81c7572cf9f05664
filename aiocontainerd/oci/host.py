"""Facts about the host and the calling process that go into runtime specs (facts/runtime 7.2)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any

import msgspec

from aiocontainerd.oci.spec_defaults import ALL_CAPABILITIES

_STATUS = "/proc/self/status"
_DEVICES = "/dev"
_SKIPPED_DIRECTORIES = frozenset({"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"})
_SKIPPED_FILES = frozenset({"console"})
_TYPES = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The name of the host, the capabilities of the calling process, and device nodes as specs have them."""

    name: str = ""
    capabilities: tuple[str, ...] = ()
    devices: tuple[dict[str, Any], ...] = ()


def look() -> HostFacts:
    """Return the facts of this host. Raises OSError where /proc or /dev cannot be read."""
    return HostFacts(name=os.uname().nodename, capabilities=capabilities(), devices=tuple(devices()))


def capabilities(status: str = _STATUS) -> tuple[str, ...]:
    """Return the effective capabilities of a process, of this one by default, in the order of their numbers."""
    with open(status, encoding="utf-8", errors="replace") as lines:
        mask = next(int(line.split(":")[1], 16) for line in lines if line.startswith("CapEff:"))
    return tuple(name for number, name in enumerate(ALL_CAPABILITIES) if mask >> number & 1)


def devices(directory: str = _DEVICES) -> Iterator[dict[str, Any]]:
    """Yield the device nodes at and below a directory, sorted by name. Links and pipes are left out."""
    with os.scandir(directory) as found:
        entries = sorted(found, key=lambda entry: os.fsencode(entry.name))
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in _SKIPPED_DIRECTORIES:
                yield from devices(entry.path)
        elif entry.name not in _SKIPPED_FILES:
            yield from _device(entry.path)


def _device(path: str) -> Iterator[dict[str, Any]]:
    try:
        info = os.lstat(path)
    except FileNotFoundError:  # it went meanwhile
        return
    kind = _TYPES.get(stat.S_IFMT(info.st_mode))
    if kind is not None:
        yield {
            "path": path, "type": kind, "major": os.major(info.st_rdev), "minor": os.minor(info.st_rdev),
            "fileMode": stat.S_IMODE(info.st_mode), "uid": info.st_uid, "gid": info.st_gid,
        }  # fmt: skip
