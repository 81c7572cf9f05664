"""Stray shims: processes that a `start` may leave when it is cut short, and to which nothing on disk leads.

The working directory of a shim is its bundle (facts/runtime 3.4). So a stray is found by its working directory.
"""

from __future__ import annotations

import logging
import os
import signal

from aiocontainerd_runtime_v2.bundle import Bundle

log = logging.getLogger(__name__)


def processes_in(bundle: Bundle) -> list[int]:
    """Return the pids of processes whose working directory is the bundle. Blocking."""
    wanted = os.path.realpath(bundle.path)
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _directory_of(name) == wanted]


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


def _directory_of(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)")
    except OSError:
        return ""
