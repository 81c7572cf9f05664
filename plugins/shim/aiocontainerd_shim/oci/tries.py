"""Trying an OCI runtime: where, for how long, and what a try may leave behind."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from pathlib import Path

from aiocontainerd.sys.cgroup import remove_empty

PREFIX = "aiocontainerd-probe-"
MISSING_PROGRAM = "aiocontainerd-probe-program"
LIMIT_ENV = "AIOCONTAINERD_OCI_PROBE_LIMIT_S"
"""Variable with the seconds that a runtime has for one command of a try; `inf` means no limit."""
_LIMIT_S = 10.0

_places: list[Path] = []


def happen_in(directory: Path) -> None:
    """Let this process, and those it forks, try in a directory that will be removed as a whole one day.

    Without this call they try in the directory for temporary files.
    """
    _places[:] = [directory]


def place() -> Path | None:
    """Return where to try; None for the directory for temporary files."""
    return next((directory for directory in _places if directory.is_dir()), None)


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of a try; stdout has both outputs. Raises OSError, subprocess.TimeoutExpired."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=limit_s(),
        check=False,
    )


def limit_s() -> float | None:
    """Return the seconds that a command has, from the environment; None means no limit."""
    try:
        seconds = float(os.environ.get(LIMIT_ENV, _LIMIT_S))
    except ValueError:
        return _LIMIT_S
    return None if math.isinf(seconds) else seconds


def remove_stale(directory: Path) -> None:
    """Remove what the tries of ended processes have left in a directory, and their cgroups."""
    for left in directory.glob(f"{PREFIX}*"):
        pid = left.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
            remove_empty(f"{PREFIX}{pid}")
            shutil.rmtree(left, ignore_errors=True)
