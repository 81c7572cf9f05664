"""The garbage collection scheduler (kind `io.containerd.gc.v1`, id `scheduler`; facts/core 10)."""

from __future__ import annotations

from typing import Protocol

from aiocontainerd.interfaces.metadata import Collected
from aiocontainerd.interfaces.rules import LONG, deadline


class GCScheduler(Protocol):
    """Decides when to collect."""

    @deadline(LONG)
    async def schedule_and_wait(self) -> Collected:
        """Collect soon, and return when that collection is done. Deletions with `sync` wait for it."""
        ...
