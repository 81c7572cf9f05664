"""Make a cgroup for the process of a plugin, below the daemon's own: in each version 1 hierarchy or the version 2 tree.

What the kernel refuses is logged, and the process stays in the daemon's cgroup there.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from aiocontainerd.sys import cgroup

EMPTY_WITHIN_S = 1.0
"""How long killed processes have to leave the cgroup."""
_PAUSE_S = 0.01


def name_of(uri: str, state: Path) -> str:
    """Return the cgroup's name, made of the plugin's URI and a hash of the daemon's state directory."""
    return f"aiocontainerd-{hashlib.sha256(str(state).encode()).hexdigest()[:8]}-{uri}"


def join(name: str, pid: int) -> tuple[list[str], list[OSError]]:
    """Make the cgroup below that of this process and move `pid` there. Return its directories, and what was refused."""
    made: list[str] = []
    refused: list[OSError] = []
    for parent in _own_directories():
        directory = f"{parent}/{name}"
        try:
            os.makedirs(directory, mode=0o755, exist_ok=True)
            made.append(directory)
            cgroup.add_process(directory, pid)
        except OSError as refusal:
            refused.append(refusal)
    return made, refused


def oom_kills(directories: Iterable[str]) -> int:
    """Return how many processes of the cgroup the kernel has killed because memory ran out; 0 where it does not count.

    Version 1 counts them in `memory.oom_control`, version 2 in `memory.events`.
    """
    files = [f"{directory}/{name}" for directory in directories for name in ("memory.oom_control", "memory.events")]
    fields = (line.split() for file in files for line in (cgroup.read_text(file) or "").splitlines())
    return sum(int(field[1]) for field in fields if field[0] == "oom_kill")


def remove(directories: Iterable[str]) -> list[OSError]:
    """Remove the cgroup. Wait a while until its last process has gone. Return what was refused."""
    until = time.monotonic() + EMPTY_WITHIN_S
    refused = []
    for directory in directories:
        while (refusal := _refusal(directory)) is not None and time.monotonic() < until:
            time.sleep(_PAUSE_S)
        if refusal is not None:
            refused.append(refusal)
    return refused


def _refusal(directory: str) -> OSError | None:
    """Try to remove a cgroup. Return the kernel's error, None if the cgroup is gone."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return None
    except OSError as refusal:
        return refusal
    return None


def _own_directories() -> list[str]:
    """Return the daemon's directory in each hierarchy that has a controller; service managers use the others."""
    paths = cgroup.locate(os.getpid())
    controllers = (path for name, path in paths.controllers.items() if not name.startswith("name="))
    found = [paths.unified] if paths.is_unified else controllers
    return sorted({directory for directory in found if os.path.isdir(directory)})
