"""The highest version of an OCI spec that a runtime takes.

Only trying tells. `<runtime> features` names the version that the runtime was built with, and both runc and later
versions of crun take newer ones all the same. So a runtime is asked to create a container that nobody can create, since
its root directory is missing: once with a spec of the oldest version, then from the newest version down. It takes the
first version that it refuses in the same words as the oldest. Nothing is mounted, no cgroup or namespace is made, and a
try takes 3 to 5 ms.

What was found is kept in memory, which forked processes inherit, and in a file beside the probes, as long as the
program's file is the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import msgspec

from aiocontainerd_shim.children.sealed import FileVersion, file_version
from aiocontainerd_shim.oci import tries
from aiocontainerd_shim.oci.runtime import last_error
from aiocontainerd_shim.oci.spec import BASE, KNOWN

CACHE_FILE = "oci-versions.json"
_LARGEST_BYTES = 1 << 20


class Found(msgspec.Struct, frozen=True):
    """The highest version that a program takes, and which file the program was."""

    file: FileVersion
    highest: str


_known: dict[str, Found] = {}


def highest(name: str, *, keep: bool = True) -> str:
    """Return the highest version that a runtime takes, by the name or path of its program.

    A program that is missing takes all: whoever runs it is told. `keep` lets later processes know, too.
    """
    path = shutil.which(name)
    file = file_version(path) if path else None
    if path is None or file is None:
        return KNOWN[0]
    found = _known.get(path) or _cached().get(path)
    if found is None or found.file != file:
        found = Found(file, _tried(path))
        if keep:
            _cache(path, found)
    _known[path] = found
    return found.highest


def forget() -> None:
    """Remove the file of what was found."""
    place = tries.place()
    if place is not None:
        (place / CACHE_FILE).unlink(missing_ok=True)


def _tried(path: str) -> str:
    oldest = _complaint(path, BASE)
    return next((version for version in KNOWN if _complaint(path, version) == oldest), BASE)


def _complaint(path: str, version: str) -> tuple[int, str]:
    """Return how a runtime ends, and what it says, when it is to create an impossible container."""
    name = f"{tries.PREFIX}{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=tries.place()) as directory:
        (Path(directory) / "config.json").write_bytes(msgspec.json.encode(_impossible_spec(version)))
        log = Path(directory) / "log.json"
        command = [path, "--root", f"{directory}/state", "--log", str(log), "--log-format", "json"]
        try:
            done = tries.run([*command, "create", "--bundle", directory, name])
            if done.returncode == 0:
                tries.run([*command, "delete", "--force", name])
        except (OSError, subprocess.TimeoutExpired) as failure:
            return -1, type(failure).__name__
        said = last_error(log.read_bytes() if log.exists() else b"") or done.stdout
        return done.returncode, said.replace(directory, "")


def _impossible_spec(version: str) -> dict[str, object]:
    return {
        "ociVersion": version,
        "process": {"user": {"uid": 0, "gid": 0}, "args": [f"/{tries.MISSING_PROGRAM}"], "cwd": "/", "env": []},
        "root": {"path": "missing"},
        "linux": {"namespaces": [{"type": "mount"}]},
    }


def _cached() -> dict[str, Found]:
    """Return what earlier processes have found; nothing where there is no file, or another one."""
    place = tries.place()
    try:
        content = (place / CACHE_FILE).read_bytes() if place else b"{}"
        return msgspec.json.decode(content[:_LARGEST_BYTES], type=dict[str, Found])
    except (OSError, msgspec.MsgspecError):
        return {}


def _cache(path: str, found: Found) -> None:
    """Keep a finding for the next process. It is tried anew where that fails."""
    place = tries.place()
    if place is None:
        return
    temporary = place / f".{CACHE_FILE}.{os.getpid()}"
    try:
        temporary.write_bytes(msgspec.json.encode({**_cached(), path: found}))
        temporary.replace(place / CACHE_FILE)
    except OSError:
        temporary.unlink(missing_ok=True)
