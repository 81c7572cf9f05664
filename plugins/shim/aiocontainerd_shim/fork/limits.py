"""The limits of the fork server and of its start: keys of `[timeouts]`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import msgspec

from aiocontainerd.plugin import Timeout

_PREFIX = "io.containerd.timeout."

START = Timeout(f"{_PREFIX}forkserver.start", "30s", "Starting the fork server, with its try of the OCI runtimes.")
ANSWER = Timeout(f"{_PREFIX}forkserver.answer", "2s", "The fork server's answer to a greeting or to a retirement.")
IDLE = Timeout(
    f"{_PREFIX}forkserver.idle", "5s", "A fork server without daemon and shims: what it waits for the next daemon."
)
PROBE = Timeout(f"{_PREFIX}oci.probe", "10s", "Trying one OCI runtime, to choose between crun and runc.")

TIMEOUTS = (START, ANSWER, IDLE, PROBE)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits in seconds, infinite where the config says 0."""

    start_s: float = 30.0
    answer_s: float = 2.0
    idle_s: float = 5.0
    probe_s: float = 10.0

    @classmethod
    def from_timeouts(cls, timeout_s: Callable[[Timeout], float]) -> Self:
        """Return the limits that `[timeouts]` sets; `timeout_s` is that of the plugin's context."""

        def limit(timeout: Timeout) -> float:
            return timeout_s(timeout) or math.inf

        return cls(start_s=limit(START), answer_s=limit(ANSWER), idle_s=limit(IDLE), probe_s=limit(PROBE))
