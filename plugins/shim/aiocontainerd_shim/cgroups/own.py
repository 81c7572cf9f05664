"""Measure a container from outside its shim, for a daemon that lets shims rest."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from threading import Lock

import msgspec

from aiocontainerd import typeurl
from aiocontainerd.sys.cgroup import CgroupPaths, mounts
from aiocontainerd.sys.mountinfo import MountInfo
from aiocontainerd_shim.cgroups.cgroup import Cgroup, find

_REMEMBERED = 4096
"""Containers whose cgroup is not looked for again."""
_reading = Lock()


class _Linux(msgspec.Struct, frozen=True):
    cgroups_path: str = msgspec.field(default="", name="cgroupsPath")


class _Spec(msgspec.Struct, frozen=True):
    linux: _Linux = _Linux()


def measure(bundle: Path, pid: int) -> typeurl.Any:
    """Return the metrics of the container in `bundle`, whose init is `pid`. Raises NotFound. Blocking."""
    return _cgroup(bundle, pid).stats()


@lru_cache(maxsize=_REMEMBERED)
def _cgroup(bundle: Path, pid: int) -> Cgroup:
    paths, name = find(pid, mounts=_mounts()).paths, _name(bundle)
    controllers = {key: _own(path, name) for key, path in paths.controllers.items()}
    return Cgroup(CgroupPaths(_own(paths.unified, name), controllers))


def _mounts() -> list[MountInfo]:
    """Return the mounts of the cgroup trees, which a host makes when it boots. A daemon has a mount per container.

    They are read once, also if many threads ask for them at first.
    """
    with _reading:
        return _read_mounts()


@cache
def _read_mounts() -> list[MountInfo]:
    return mounts()


def _name(bundle: Path) -> str:
    """Return the last component of the container's cgroup, as its spec names it; "" if the spec leaves it open.

    A path `slice:prefix:name` is systemd's `prefix-name.scope` (facts/runtime 6.4).
    """
    try:
        path = msgspec.json.decode((bundle / "config.json").read_bytes(), type=_Spec).linux.cgroups_path
    except (OSError, msgspec.MsgspecError):
        return ""
    _, colon, rest = path.partition(":")
    if colon:
        prefix, _, name = rest.partition(":")
        return f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    return Path(path).name


def _own(directory: str, name: str) -> str:
    """Return the container's own cgroup: its init may be in one below, made inside the container."""
    above, found, _below = f"{directory}/".rpartition(f"/{name}/") if name else ("", "", "")
    return f"{above}/{name}" if found else directory
