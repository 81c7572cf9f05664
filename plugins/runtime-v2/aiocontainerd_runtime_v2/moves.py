"""Makes the kernel's lock for moving processes between cgroups ready before an OCI runtime needs it.

The first process that takes this lock after a pause waits for a grace period of RCU: 8 to 16 ms on an idle two-core
machine. A process that takes it within the next grace period does not wait (kernel/locking/percpu-rwsem.c,
kernel/rcu/sync.c). Every container and every exec begins with such a move. So the daemon takes the lock as soon as it
learns that a move will come, and the kernel waits while the shim and the OCI runtime start. To take the lock, the
daemon moves itself to the cgroup where it is.
"""

from __future__ import annotations

import logging
import os
from queue import SimpleQueue

import anyio

from aiocontainerd.sys import cgroup
from aiocontainerd_runtime_v2.waits import Spawn

log = logging.getLogger(__name__)


class Moves:
    """Takes the lock in a thread that does nothing else."""

    def __init__(self, spawn: Spawn) -> None:
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._own = OwnCgroup()
        spawn(self._run, name="cgroup moves")

    def __repr__(self) -> str:
        return f"<Moves {self._own!r}>"

    def expect(self) -> None:
        """Announce that a process is about to be moved. Returns at once."""
        self._wanted.put(True)

    async def _run(self) -> None:
        try:
            await anyio.to_thread.run_sync(self._serve, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
        finally:
            self._wanted.put(False)

    def _serve(self) -> None:
        """Make one move for all announcements so far. After the kernel has refused a move, make no more."""
        refused = False
        while self._wanted.get():
            if refused or not self._wanted.empty():
                continue
            try:
                self._own.stay()
            except OSError as refusal:
                log.debug(
                    "containers start a little later, as the daemon may not take the cgroup lock ahead: %s", refusal
                )
                refused = True


class OwnCgroup:
    """The cgroup of this process. It is looked up anew whenever it has changed."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._membership = b""
        self._procs = ""

    def __repr__(self) -> str:
        return f"<OwnCgroup {self._procs}>"

    def stay(self) -> None:
        """Move this process to the cgroup where it is. Raises OSError if that is refused."""
        membership = _read(f"{self._proc}/self/cgroup")
        if membership != self._membership:
            own = cgroup.locate(os.getpid())
            self._procs = f"{own.unified or next(iter(own.controllers.values()), '')}/cgroup.procs"
            self._membership = membership
        cgroup.write_text(self._procs, "0")


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)
