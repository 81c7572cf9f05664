"""Decides which OCI runtime to use, crun or runc, and in which version it gets the spec.

The one that the options name wins, then the configured one, then the first candidate that works on this host and takes
the spec. To find out whether a candidate works, it has to create a container whose program does not exist. A runtime
that gets as far as looking for the program has mounted, made cgroups and namespaces. crun, for instance, refuses a host
whose cgroups are in hybrid mode, and only trying tells that. The tries run once per process; a fork server hands its
findings to its shims.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from aiocontainerd.errors import FailedPrecondition, text_of
from aiocontainerd.sys.cgroup import remove_empty
from aiocontainerd_shim.oci import spec, tries, versions

CANDIDATES = ("crun", "runc")
CONFIGURED_ENV = "AIOCONTAINERD_OCI_RUNTIME"

_complaints: dict[str, str] = {}
"""Why a candidate does not work here; an empty string where it works."""


class Choice(msgspec.Struct, frozen=True):
    """The program to run, and the spec for it where that is not the client's own."""

    binary: str
    config: bytes = b""


class Findings(msgspec.Struct, frozen=True):
    """The runtime for containers that name none, or why there is none; the highest version each candidate takes."""

    chosen: str = ""
    complaint: str = ""
    highest: dict[str, str] = {}


def choose(binary_name: str, env: Mapping[str, str], config: bytes = b"") -> Choice:
    """Return the program to run for a spec, and the spec in a version that it takes.

    Raises FailedPrecondition if no candidate works, or if none takes what the spec uses. If this process has inherited
    no finding, the first call tries. The loop stands still then, for some 50 ms: before its first container a shim has
    nothing else to do, and its reaper must not take the exit of a try.
    """
    named = binary_name or env.get(CONFIGURED_ENV, "")
    version = spec.version_of(config)
    if not spec.is_later(version, spec.BASE):
        return Choice(named or find())
    refusals = []
    for name in [named] if named else _working():
        highest = versions.highest(name)
        if not spec.is_later(version, highest):
            return Choice(name)
        later = spec.first_later(config, highest)
        if not later:
            return Choice(name, spec.in_version(config, highest))
        refusals.append(f"{name} takes ociVersion {highest} at most, and this spec of {version} uses {later}")
    raise FailedPrecondition("; ".join(refusals) or _nothing_works())


def find() -> str:
    """Return the first candidate that works here. Raises FailedPrecondition with what was wrong with each."""
    for name in _working():
        return name
    raise FailedPrecondition(_nothing_works())


def findings() -> Findings:
    """Return what is known of the candidates after trying them. Processes that are forked later know it, too."""
    highest = {name: versions.highest(name, keep=False) for name in _installed()}
    try:
        return Findings(chosen=find(), highest=highest)
    except FailedPrecondition as failure:
        return Findings(complaint=failure.message, highest=highest)


def _working() -> Iterator[str]:
    """Yield the candidates that work here. One that has no rival is not tried. Raises FailedPrecondition for none."""
    installed = _installed()
    if not installed:
        looked_for = " nor ".join(CANDIDATES)
        raise FailedPrecondition(
            f'exec: "{CANDIDATES[-1]}": executable file not found in $PATH: neither {looked_for} is in '
            f"{os.environ.get('PATH', '')}; install one, such as Debian's package crun or runc, or name one in "
            "Options.binary_name"
        )
    for name in installed:
        if len(installed) > 1 and name not in _complaints:
            _complaints[name] = probe(name)
        if not _complaints.get(name):
            yield name


def _installed() -> list[str]:
    return [name for name in CANDIDATES if shutil.which(name)]


def _nothing_works() -> str:
    told = "; ".join(f"{name}: {complaint}" for name, complaint in _complaints.items())
    return f"no OCI runtime works on this host: {told}"


def probe(binary: str) -> str:
    """Return why `binary` cannot create containers here; an empty string if it can."""
    name = f"{tries.PREFIX}{os.getpid()}"
    place = tries.place()
    if place is not None:
        tries.remove_stale(place)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=place) as directory:
        bundle = Path(directory)
        for mount_point in ("proc", "dev"):
            (bundle / "rootfs" / mount_point).mkdir(parents=True)
        (bundle / "config.json").write_bytes(msgspec.json.encode(_probe_spec(name)))
        command = [binary, "--root", str(bundle / "state")]
        try:
            done = tries.run([*command, "create", "--bundle", directory, name])
            tries.run([*command, "delete", "--force", name])
        except (OSError, subprocess.TimeoutExpired) as failure:
            return text_of(failure)
        finally:
            remove_empty(name)
    return "" if tries.MISSING_PROGRAM in done.stdout else done.stdout.strip() or f"exit status {done.returncode}"


def _probe_spec(name: str) -> dict[str, object]:
    namespaces = ("pid", "mount", "ipc", "uts")
    return {
        "ociVersion": spec.BASE,
        "process": {"user": {"uid": 0, "gid": 0}, "args": [f"/{tries.MISSING_PROGRAM}"], "cwd": "/", "env": []},
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"cgroupsPath": f"/{name}", "namespaces": [{"type": kind} for kind in namespaces]},
    }
