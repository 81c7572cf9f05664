"""Sealed copies of OCI runtimes in memory, executed in place of their files.

crun must not be executed from a file that a container could write to through /proc/self/exe (CVE-2019-5736). Started
from an ordinary file, crun makes a read-only copy of it and executes itself anew, on every command. Started from a
sealed memory file, it goes on at once, which saves 1.3 ms. A fork server makes the copies once; its shims inherit them.

If a file has been replaced since, for instance by an upgrade, the file itself is executed.
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

FileVersion = tuple[int, int, int, int]
"""Device, inode, size and time of the last change."""


class SealedProgram(msgspec.Struct, frozen=True):
    """A copy: the path of its file, the version of the file, and the descriptor of the copy."""

    path: str
    version: FileVersion
    fd: int


_kept: dict[str, SealedProgram] = {}


def keep(names: Iterable[str]) -> None:
    """Copy the programs of these names that are in PATH.

    A program whose copy would not do what its file does is left out.
    """
    for name in names:
        path = shutil.which(name)
        program = _copy(path) if path else None
        if program is not None:
            _kept[name] = _kept[program.path] = program


def descriptors() -> set[int]:
    """Return the descriptors of the copies, which a forked process must leave open."""
    return {program.fd for program in _kept.values()}


def executable(name: str) -> str:
    """Return what to execute for the name or path of a program: its copy, or else the argument."""
    program = _kept.get(name)
    if program is None or file_version(program.path) != program.version:
        return name
    return f"/proc/self/fd/{program.fd}"


def _copy(path: str) -> SealedProgram | None:
    version = file_version(path)
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


def file_version(path: str) -> FileVersion | None:
    """Return values that change when the file does; None where there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns
