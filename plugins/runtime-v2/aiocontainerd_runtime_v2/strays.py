"""Shims that nothing on disk leads to: what a `start` that was cut short may leave running.

A shim's working directory is its bundle (facts/runtime 3.4), so it is found by that.
"""

from __future__ import annotations

import logging
import os
import signal

from aiocontainerd_runtime_v2.bundle import Bundle

log = logging.getLogger(__name__)


def processes_in(bundle: Bundle) -> list[int]:
    """Pids of the processes whose working directory is the bundle. Blocking."""
    wanted = os.path.realpath(bundle.path)
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _directory_of(name) == wanted]


def kill(bundle: Bundle) -> None:
    """Kill the processes whose working directory is a bundle that has no connected shim. Blocking."""
    for pid in processes_in(bundle):
        log.warning("killing stray shim %d of task %s/%s", pid, bundle.namespace, bundle.id)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _directory_of(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""
