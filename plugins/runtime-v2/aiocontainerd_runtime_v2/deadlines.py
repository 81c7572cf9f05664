"""How long anything here may take: the `[timeouts]` entries that concern shims (facts/runtime 9)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import msgspec

PREFIX = "io.containerd.timeout."


class Deadlines(msgspec.Struct, kw_only=True):
    """Limits in seconds, infinite where the config says 0. They change when the config is read again (`take`).

    `start_s` is for executing a shim's `start`, `call_s` for every call that changes a task, `state_s` for looking at
    one, `stats_s` for its metrics, `load_s` for finding one bundle's shim after a restart, `cleanup_s` for the
    `delete` action and each step of undoing a failed create, `shutdown_s` for the Shutdown after a delete.
    """

    start_s: float = 30.0
    call_s: float = 120.0
    state_s: float = 2.0
    stats_s: float = 2.0
    load_s: float = 5.0
    cleanup_s: float = 5.0
    shutdown_s: float = 3.0

    @classmethod
    def from_timeouts(cls, timeout_s: Callable[[str], float]) -> Self:
        """The limits that `[timeouts]` says; `timeout_s` gives the seconds of a full key."""
        made = cls()
        made.take(timeout_s)
        return made

    def take(self, timeout_s: Callable[[str], float]) -> None:
        """Use other limits from the next call on."""

        def limit(name: str) -> float:
            return timeout_s(PREFIX + name) or math.inf

        self.start_s = limit("shim.start")
        self.call_s = limit("shim.create")
        self.state_s = limit("task.state")
        self.stats_s = limit("metrics.shimstats")
        self.load_s = limit("shim.load")
        self.cleanup_s = limit("shim.cleanup")
        self.shutdown_s = limit("shim.shutdown")
