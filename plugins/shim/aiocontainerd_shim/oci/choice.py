"""Decides which OCI runtime to use, crun or runc.

The one that the options name wins, then the configured one, then the first candidate that works on this host. To find
out whether a candidate works, it has to create a container whose program does not exist. A runtime that gets as far as
looking for the program has mounted, made cgroups and namespaces. crun, for instance, refuses a host whose cgroups are
in hybrid mode, and only trying tells that. The probe runs once per process; a fork server hands its finding to its
shims.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from aiocontainerd.errors import FailedPrecondition
from aiocontainerd.sys.cgroup import remove_empty

CANDIDATES = ("crun", "runc")
CONFIGURED_ENV = "AIOCONTAINERD_OCI_RUNTIME"
_MISSING_PROGRAM = "aiocontainerd-probe-program"
PROBE_LIMIT_ENV = "AIOCONTAINERD_OCI_PROBE_LIMIT_S"
"""Variable with the seconds that a candidate has to create a container; `inf` means no limit."""
_PROBE_LIMIT_S = 10.0

_PREFIX = "aiocontainerd-probe-"

_found: list[str] = []
_places: list[Path] = []


def probe_in(directory: Path) -> None:
    """Let this process, and those it forks, probe in a directory that will be removed as a whole one day.

    Without this call they probe in the directory for temporary files. Leftovers of killed probes are removed there
    first.
    """
    _places[:] = [directory]


def choose(binary_name: str, env: Mapping[str, str]) -> str:
    """Return the program to run. Raises FailedPrecondition if no candidate works.

    If this process has inherited no finding, the first call probes. The loop stands still then, for some 50 ms:
    before its first container a shim has nothing else to do, and its reaper must not take the exit of the probe.
    """
    return binary_name or env.get(CONFIGURED_ENV) or find()


def find() -> str:
    """Return the first candidate that works here, and remember it.

    Raises FailedPrecondition with what was wrong with each.
    """
    if not _found:
        _found.append(_first_working())
    return _found[0]


def _first_working() -> str:
    installed = [name for name in CANDIDATES if shutil.which(name)]
    if len(installed) == 1:
        return installed[0]
    if not installed:
        looked_for = " or ".join(CANDIDATES)
        raise FailedPrecondition(
            f"no OCI runtime: neither {looked_for} is in PATH ({os.environ.get('PATH', '')}); "
            "install one, such as Debian's package crun or runc, or name one in Options.binary_name"
        )
    complaints = []
    for name in installed:
        complaint = probe(name)
        if not complaint:
            return name
        complaints.append(f"{name}: {complaint}")
    raise FailedPrecondition(f"no OCI runtime works on this host: {'; '.join(complaints)}")


def probe(binary: str) -> str:
    """Return why `binary` cannot create containers here; an empty string if it can."""
    name = f"{_PREFIX}{os.getpid()}"
    place = next((place for place in _places if place.is_dir()), None)
    if place is not None:
        _remove_stale(place)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=place) as directory:
        bundle = Path(directory)
        for mount_point in ("proc", "dev"):
            (bundle / "rootfs" / mount_point).mkdir(parents=True)
        (bundle / "config.json").write_bytes(msgspec.json.encode(_probe_spec(name)))
        command = [binary, "--root", str(bundle / "state")]
        try:
            done = _run([*command, "create", "--bundle", directory, name])
            _run([*command, "delete", "--force", name])
        except (OSError, subprocess.TimeoutExpired) as failure:
            return str(failure)
        finally:
            remove_empty(name)
    return "" if _MISSING_PROGRAM in done.stdout else done.stdout.strip() or f"exit status {done.returncode}"


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=probe_limit_s(),
        check=False,
    )


def probe_limit_s() -> float | None:
    """Return the seconds that a candidate has, from the environment; None means no limit."""
    try:
        limit_s = float(os.environ.get(PROBE_LIMIT_ENV, _PROBE_LIMIT_S))
    except ValueError:
        return _PROBE_LIMIT_S
    return None if math.isinf(limit_s) else limit_s


def _probe_spec(name: str) -> dict[str, object]:
    namespaces = ("pid", "mount", "ipc", "uts")
    return {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": [f"/{_MISSING_PROGRAM}"], "cwd": "/", "env": []},
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"cgroupsPath": f"/{name}", "namespaces": [{"type": kind} for kind in namespaces]},
    }


def _remove_stale(place: Path) -> None:
    """Remove what the probes of ended processes have left."""
    for directory in place.glob(f"{_PREFIX}*"):
        pid = directory.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
            remove_empty(f"{_PREFIX}{pid}")
            shutil.rmtree(directory, ignore_errors=True)
