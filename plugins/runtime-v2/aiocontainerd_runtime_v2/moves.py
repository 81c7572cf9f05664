"""The kernel's lock for moving processes between cgroups, made ready before an OCI runtime needs it.

Whoever takes that lock first after a pause waits for a grace period of RCU, 8 to 16 ms on an idle two-core machine;
whoever comes within the next grace period does not (kernel/locking/percpu-rwsem.c, kernel/rcu/sync.c). Every container
and every exec begins with such a move. The daemon takes the lock when it learns that one is to come, so that the
kernel waits while the shim and the OCI runtime start. It does so by moving itself to the cgroup where it is.
"""

from __future__ import annotations

import logging
import os

import anyio

from aiocontainerd.sys import cgroup
from aiocontainerd_runtime_v2.waits import Spawn

log = logging.getLogger(__name__)


class Moves:
    """Takes the lock at most once at a time, and no more after the kernel has refused once."""

    def __init__(self, spawn: Spawn) -> None:
        self._spawn = spawn
        self._busy = False

    def __repr__(self) -> str:
        return f"<Moves{' busy' if self._busy else ''}>"

    def expect(self) -> None:
        """A process is about to be moved; returns at once."""
        if not self._busy:
            self._busy = True
            self._spawn(self._take, name="cgroup moves")

    async def _take(self) -> None:
        try:
            await anyio.to_thread.run_sync(stay)
        except OSError as refused:
            log.debug("the first process of a cgroup will wait for the kernel: %s", refused)
        else:
            self._busy = False


def stay() -> None:
    """Move this process to the cgroup it is in. Raises OSError where that is refused."""
    own = cgroup.locate(os.getpid())
    directory = own.unified or next(iter(own.controllers.values()), "")
    cgroup.add_process(directory, os.getpid())
