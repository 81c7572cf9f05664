"""A cgroup for one plugin's process, below the daemon's own: in every version 1 hierarchy, or in the version 2 tree.

What the kernel or the host's setup refuses is for the log: the process then stays beside the daemon.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from aiocontainerd.sys import cgroup

EMPTY_WITHIN_S = 1.0
"""What processes that were killed have to leave."""
_PAUSE_S = 0.01


def name_of(uri: str, state: Path) -> str:
    """Return the cgroup's name: that of the plugin, and of the daemon that keeps it."""
    return f"aiocontainerd-{hashlib.sha256(str(state).encode()).hexdigest()[:8]}-{uri}"


def join(name: str, pid: int) -> tuple[list[str], list[OSError]]:
    """Make the cgroup below that of this process and move `pid` there; its directories, and the refusals."""
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


def remove(directories: Iterable[str]) -> list[OSError]:
    """Remove the cgroup, waiting a while for the last of its processes to be gone; the refusals."""
    until = time.monotonic() + EMPTY_WITHIN_S
    refused = []
    for directory in directories:
        while (refusal := _refusal(directory)) is not None and time.monotonic() < until:
            time.sleep(_PAUSE_S)
        if refusal is not None:
            refused.append(refusal)
    return refused


def _refusal(directory: str) -> OSError | None:
    """Try to remove the cgroup. Returns the kernel's refusal, or None when the cgroup is gone."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return None
    except OSError as refusal:
        return refusal
    return None


def _own_directories() -> list[str]:
    """Hierarchies without a controller are how a service manager keeps track of the daemon, and stay as they are."""
    paths = cgroup.locate(os.getpid())
    controllers = (path for name, path in paths.controllers.items() if not name.startswith("name="))
    found = [paths.unified] if paths.is_unified else controllers
    return sorted({directory for directory in found if os.path.isdir(directory)})
