"""What the daemon knows of a task's init, so that a shim at rest is not woken to tell its state.

The daemon knows the status, since every change of it goes through the daemon, and a pidfd tells that the init still
runs. Whatever else happens is asked of the shim: an init that has exited, a change that failed or met another one.

A record in the bundle tells the next daemon the same. It is there only while the init runs or is paused, and names the
process by its pid and the time when it started, which no other process shares.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from aiocontainerd.interfaces.runtime import IO, ProcessState, ProcessStatus
from aiocontainerd.sys import pidfd
from aiocontainerd_runtime_v2 import bundle as bundles
from aiocontainerd_runtime_v2.bundle import Bundle

_ALIVE = (ProcessStatus.CREATED, ProcessStatus.RUNNING, ProcessStatus.PAUSED)
_RECORDED = (ProcessStatus.RUNNING, ProcessStatus.PAUSED)
_FILE = "init.json"
_START_TIME = 19
"""Index of `starttime` among the fields of /proc/PID/stat that follow the name of the program (proc_pid_stat(5))."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """An init on disk: `started` is its start in clock ticks since the host booted."""

    pid: int
    started: int
    status: ProcessStatus
    io: IO


class KnownInit:
    """The state of an init as far as it is certain without its shim."""

    def __init__(self) -> None:
        self.generation = 0
        self._state: ProcessState | None = None
        self._pidfd = -1
        self._changes = 0
        self._mixed = False

    def __repr__(self) -> str:
        return f"<KnownInit {self._state.status.name if self._state else 'unknown'}>"

    def state(self) -> ProcessState | None:
        """Return the state; None if the shim has to be asked."""
        state = self._state
        if state is not None and state.status in _ALIVE and _has_exited(self._pidfd):
            state = self._state = None
        return state

    @contextmanager
    def changing(self) -> Iterator[Callable[[ProcessState], None]]:
        """Forget the state for the time of a change. Give a function that takes the state after it.

        That state is kept if the block succeeds and no other change met this one.
        """
        self.generation += 1
        self._state = None
        self._changes += 1
        self._mixed = self._mixed or self._changes > 1
        after: list[ProcessState] = []
        try:
            yield after.append
        finally:
            self._changes -= 1
            mixed, self._mixed = self._mixed, self._mixed and self._changes > 0
        if after and not mixed:
            self._keep(after[-1])

    def learn(self, state: ProcessState, generation: int) -> None:
        """Keep what the shim has answered, unless a change began since `generation`, when it was asked."""
        if generation == self.generation and not self._changes:
            self._keep(state)

    def close(self) -> None:
        """Forget everything."""
        self.generation += 1
        self._state = None
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd = -1

    def _keep(self, state: ProcessState) -> None:
        self.close()
        if state.status in _ALIVE:
            if state.pid <= 0:
                return
            try:
                self._pidfd = pidfd.open_pid(state.pid)
            except OSError:
                return  # it has exited, or there are no more descriptors: the shim is asked
        if state.status in (*_ALIVE, ProcessStatus.STOPPED):
            self._state = state


def _has_exited(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def write(bundle: Bundle, state: ProcessState) -> None:
    """Write the record of an init that runs or is paused. Do nothing if it or the bundle is gone. Blocking."""
    started = start_ticks(state.pid)
    if started is None or state.status not in _RECORDED:
        return
    record = Record(pid=state.pid, started=started, status=state.status, io=state.io)
    try:
        bundles.write_private(bundle, _FILE, msgspec.json.encode(record))
    except FileNotFoundError:
        return


def remove(bundle: Bundle) -> None:
    """Remove the record, if there is one. Blocking."""
    (bundle.path / _FILE).unlink(missing_ok=True)


def read(bundle: Bundle) -> ProcessState | None:
    """Return the state of an init that was recorded and still runs. Blocking."""
    try:
        record = msgspec.json.decode((bundle.path / _FILE).read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError):
        return None
    if record.status not in _RECORDED or start_ticks(record.pid) != record.started:
        return None
    return ProcessState(id=bundle.id, pid=record.pid, status=record.status, io=record.io)


def start_ticks(pid: int, *, proc: str = "/proc") -> int | None:
    """Return when a process started, in clock ticks since the host booted; None if it does not run."""
    try:
        fields = Path(f"{proc}/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[_START_TIME])
