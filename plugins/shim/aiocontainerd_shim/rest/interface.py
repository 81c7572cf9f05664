"""The interface between the shim's program and rest.

`Rest` says how a shim spends the time in which nobody wants anything of it. `awake.py` is the shim that never rests,
`worker.py` the one that hands over to a resting process.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from aiocontainerd.rpc.ttrpc.server import TtrpcServer
from aiocontainerd_shim.children.reaper import Reaper
from aiocontainerd_shim.task.background import Background
from aiocontainerd_shim.task.publisher import Publisher
from aiocontainerd_shim.task.service import TaskService


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a running shim. It is idle when all of them are."""

    server: TtrpcServer
    service: TaskService
    publisher: Publisher
    reaper: Reaper
    background: Background

    @property
    def idle(self) -> bool:
        """Whether nothing goes on beside the calls, and every container is only watched for its end."""
        if self.background or self.reaper.claimed or not self.publisher.idle:
            return False
        return self.service.idle


class Rest(Protocol):
    """How a shim serves while it is awake, and whether it may ever stop to."""

    @property
    def shim_pid(self) -> int:
        """The process that stands for the shim towards its clients."""
        ...

    async def begin(self, parts: Parts) -> None:
        """Go on with what was remembered, if anything was, and accept connections."""
        ...

    async def hand_over_when_idle(self) -> None:
        """Hand over and end this process once the shim has been idle for a while; return at once if it never will."""
        ...

    def refuse_connections(self) -> None:
        """Accept no more connections, for the shim ends."""
        ...
