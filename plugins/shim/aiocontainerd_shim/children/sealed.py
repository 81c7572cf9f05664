"""Sealed copies of OCI runtimes in memory, executed in place of the files they are copies of.

crun must not be executed from a file that a container could write to through /proc/self/exe (CVE-2019-5736). Started
from an ordinary file it makes a read-only copy of it and executes itself anew, on every command; started from a sealed
memory file it goes on, 1.3 ms earlier. A fork server makes the copies once and its shims inherit them.

A file that has been replaced since, say by an upgrade, is executed itself.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable

import msgspec

LARGEST_BYTES = 2 << 20
"""Go programs are larger; those do not copy themselves before they have read their arguments."""
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_ELF = b"\x7fELF"
_RELATIVE_TO_FILE = b"$ORIGIN"

_Version = tuple[int, int, int, int]


class SealedProgram(msgspec.Struct, frozen=True):
    """A copy: of which file, in which state of it, and the descriptor."""

    path: str
    version: _Version
    fd: int


_kept: dict[str, SealedProgram] = {}


def keep(names: Iterable[str]) -> None:
    """Copy the programs of these names that are in PATH, as far as a copy does what the file does."""
    for name in names:
        path = shutil.which(name)
        program = _copy(path) if path else None
        if program is not None:
            _kept[name] = _kept[program.path] = program


def descriptors() -> set[int]:
    """The descriptors of the copies, which a forked process must leave open."""
    return {program.fd for program in _kept.values()}


def executable(name: str) -> str:
    """What to execute for a program's name or path: its copy, else what was given."""
    program = _kept.get(name)
    if program is None or _version(program.path) != program.version:
        return name
    return f"/proc/self/fd/{program.fd}"


def _copy(path: str) -> SealedProgram | None:
    version = _version(path)
    if version is None:
        return None
    with open(path, "rb") as file:
        content = file.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES or not content.startswith(_ELF) or _RELATIVE_TO_FILE in content:
        return None
    fd = os.memfd_create(os.path.basename(path), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as copy:
        copy.write(content)
    os.fchmod(fd, 0o755)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return SealedProgram(path, version, fd)


def _version(path: str) -> _Version | None:
    """What changes when the file does; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns
