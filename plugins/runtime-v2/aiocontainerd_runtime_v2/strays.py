"""Stray shims: processes that a `start` may leave when it is cut short, and to which nothing on disk leads.

The working directory of a shim is its bundle (facts/runtime 3.4). So a stray is found by its working directory.
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

from aiocontainerd_runtime_v2.bundle import Bundle

log = logging.getLogger(__name__)

_TERMINAL = 4
"""Index of `tty_nr` among the fields of /proc/PID/stat that follow the name of the program (proc_pid_stat(5))."""


def processes_in(bundle: Bundle) -> list[int]:
    """Return the pids of shims whose working directory is the bundle, or was until its removal began. Blocking."""
    whole = os.path.realpath(bundle.path)
    wanted = (whole, os.path.join(os.path.dirname(whole), f".{bundle.id}"))
    pids = [name for name in os.listdir("/proc") if name.isdigit() and _directory_of(name) in wanted]
    return [int(name) for name in pids if not _has_terminal(name)]


def bundle_elsewhere(bundle: Bundle) -> str:
    """Return the bundle of this task in another directory of state, where its shim works; "" without one. Blocking."""
    mine, ending = os.path.realpath(bundle.path), f"/{bundle.namespace}/{bundle.id}"
    found = (_directory_of(name) for name in os.listdir("/proc") if name.isdigit())
    return next((path for path in found if path.endswith(ending) and path != mine and os.path.isdir(path)), "")


def kill(bundle: Bundle) -> None:
    """Kill the processes in a bundle that has no connected shim. Blocking."""
    for pid in processes_in(bundle):
        log.warning("killing process %d, a stray shim of task %s/%s", pid, bundle.namespace, bundle.id)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _has_terminal(pid: str) -> bool:
    """Return whether a process has a controlling terminal: no shim has one, but an operator's shell may be here too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[_TERMINAL] != "0"
    except OSError:
        return True


def _directory_of(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)")
    except OSError:
        return ""
