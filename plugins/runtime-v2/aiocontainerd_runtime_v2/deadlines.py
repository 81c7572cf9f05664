"""The limits of calls to shims: keys of `[timeouts]` (facts/runtime 9)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import msgspec

from aiocontainerd.plugin import Timeout

_PREFIX = "io.containerd.timeout."

SHIM_START = Timeout(f"{_PREFIX}shim.start", "30s", "Running the `start` of a shim's program.")
SHIM_CREATE = Timeout(f"{_PREFIX}shim.create", "2m0s", "A call to a shim that changes a task, such as create or kill.")
SHIM_LOAD = Timeout(f"{_PREFIX}shim.load", "5s", "Connecting to a shim, and finding it again after a restart.")
SHIM_CLEANUP = Timeout(f"{_PREFIX}shim.cleanup", "5s", "A shim's `delete`, and each step of undoing a failed create.")
SHIM_SHUTDOWN = Timeout(f"{_PREFIX}shim.shutdown", "3s", "Shutting a shim down after its task is deleted.")
SHIM_STATS = Timeout(f"{_PREFIX}metrics.shimstats", "2s", "Asking a shim for the metrics of a task.")
TASK_STATE = Timeout(f"{_PREFIX}task.state", "2s", "Asking a shim for the state of a task.")

TIMEOUTS = (SHIM_START, SHIM_CREATE, SHIM_LOAD, SHIM_CLEANUP, SHIM_SHUTDOWN, SHIM_STATS, TASK_STATE)


class Deadlines(msgspec.Struct, kw_only=True):
    """Limits in seconds, infinite where the config says 0. They change when the config is read again (`take`).

    `start_s` is for a shim's `start`, `call_s` for every call that changes a task, `state_s` for its state, `stats_s`
    for its metrics, `load_s` for connecting to a shim and finding it again after a restart, `cleanup_s` for `delete`
    and each step of undoing a failed create, `shutdown_s` for the Shutdown after a delete.
    """

    start_s: float = 30.0
    call_s: float = 120.0
    state_s: float = 2.0
    stats_s: float = 2.0
    load_s: float = 5.0
    cleanup_s: float = 5.0
    shutdown_s: float = 3.0

    @classmethod
    def from_timeouts(cls, timeout_s: Callable[[Timeout], float]) -> Self:
        """Return the limits that `[timeouts]` sets; `timeout_s` is that of the plugin's context."""
        made = cls()
        made.take(timeout_s)
        return made

    def take(self, timeout_s: Callable[[Timeout], float]) -> None:
        """Use other limits from the next call on."""

        def limit(timeout: Timeout) -> float:
            return timeout_s(timeout) or math.inf

        self.start_s = limit(SHIM_START)
        self.call_s = limit(SHIM_CREATE)
        self.state_s = limit(TASK_STATE)
        self.stats_s = limit(SHIM_STATS)
        self.load_s = limit(SHIM_LOAD)
        self.cleanup_s = limit(SHIM_CLEANUP)
        self.shutdown_s = limit(SHIM_SHUTDOWN)
