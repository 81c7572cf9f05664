"""The process that is a shim for as long as its containers live, and does nothing but wait.

A Python process pays for whatever it executes: each reference count that it touches copies a page it shared with the
fork server. So the resident only waits: for a connection, a request, a hang-up, an exit. Then it forks a worker, gives
it every descriptor, and waits for the worker. The worker is the whole shim until nothing has happened for a while. Then
it hands back descriptors and records, and ends, and its memory is free again.

The resident is the subreaper: it stays, so it becomes the parent of what the OCI runtime leaves behind. It tells the
worker of exits as they come. Exits that the worker has not taken are for the next worker. A worker that ends without a
hand-over ends the shim: after Shutdown that is its normal end, otherwise a crash.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from aiocontainerd.sys import prctl
from aiocontainerd.sys.pidfd import wait_status_to_exit_status
from aiocontainerd_shim.children.reaper import Exit
from aiocontainerd_shim.rest.channel import Duty, pack_exit, take_hand_over, unpack_hand_over, unpack_taken
from aiocontainerd_shim.rest.descriptors import NEVER, READABLE
from aiocontainerd_shim.rest.interface import Rest
from aiocontainerd_shim.rest.worker import Worker

log = logging.getLogger(__name__)

LINGER_S = 0.3
"""How long the shim must be idle before the first worker hands over."""
LONGEST_LINGER_S = 4.0
_MISSED_WITHIN = 3
_FORK_AGAIN_S = 0.1
_DEFAULT_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)


class Resident:
    """A shim at rest, with a worker now and then."""

    def __init__(self, listener: socket.socket, work: Callable[[Rest], object]) -> None:
        """`work` serves in a worker's process until the shim ends. An exception from it ends the shim too."""
        self._work = work
        self._fds = [listener.detach()]
        self._masks = [READABLE]
        self._shim = b""
        self._watched: list[int] = []
        self._exits: list[Exit] = []
        self._exits_dropped = 0
        """How many exits before those the worker has taken."""
        self._worker = 0
        self._worker_status = 0
        self._linger_s = LINGER_S
        self._ending = False
        self._wake_in, self._wake_out = socket.socketpair()

    def __repr__(self) -> str:
        return f"<Resident {f'worker={self._worker}' if self._worker else 'resting'} watched={self._watched}>"

    def run(self) -> int:
        """Be the shim; return the exit status. The first worker comes before the first request."""
        self._take_signals()
        while self._let_work():
            began_s = time.monotonic()
            if not self._rest():
                return 0
            self._linger_s = next_linger_s(self._linger_s, time.monotonic() - began_s)
        return self._worker_status

    def _take_signals(self) -> None:
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        signal.set_wakeup_fd(self._wake_out.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)

    def _end(self, *_: object) -> None:
        self._ending = True
        if self._worker:
            os.kill(self._worker, signal.SIGTERM)

    def _rest(self) -> bool:
        """Wait for work; return False if told to end."""
        poll = select.poll()
        poll.register(self._wake_in, select.POLLIN)
        for fd, mask in zip(self._fds, self._masks, strict=True):
            if mask != NEVER:
                poll.register(fd, mask)
        while not self._ending and not self._exits:
            if self._woken(poll):
                break
            self._exits = [exited for exited in self._reap() if exited.pid in self._watched]
        return not self._ending

    def _woken(self, poll: select.poll) -> bool:
        """Wait for something; return whether it is work. Connections that end are left to the next worker."""
        woken = False
        for fd, events in poll.poll():
            if events & select.POLLRDHUP and not _has_bytes(fd):
                poll.unregister(fd)
            elif fd != self._wake_in.fileno():
                woken = True
        return woken

    def _let_work(self) -> bool:
        """Fork a worker and wait until it hands over; return False if it ends without."""
        channel, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._worker = fork_as_soon_as_possible()
        if not self._worker:
            channel.close()
            self._be_worker(its_end)
        its_end.close()
        for fd in self._fds:
            os.close(fd)
        with channel:
            handed_over = self._attend(channel)
        if not handed_over and self._worker:
            self._worker_status = wait_status_to_exit_status(os.waitpid(self._worker, 0)[1])
        self._worker = 0
        return handed_over

    def _be_worker(self, channel: socket.socket) -> None:
        status = 1
        try:
            prctl.set_parent_death_signal(signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            for number in _DEFAULT_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            self._wake_in.close()
            self._wake_out.close()
            self._work(Worker(Duty(os.getppid(), self._shim, self._fds, self._exits, channel, self._linger_s)))
            status = 0
        finally:
            os._exit(status)

    def _attend(self, channel: socket.socket) -> bool:
        """Tell the worker of exits until it hands over or ends; return whether it handed over."""
        poll = select.poll()
        poll.register(self._wake_in, select.POLLIN)
        poll.register(channel, select.POLLIN)
        self._exits_dropped = 0
        while True:
            ready = [fd for fd, _ in poll.poll()]
            for exited in self._reap():
                self._exits.append(exited)
                with suppress(OSError):  # the worker has ended: the exit is for the next one
                    channel.send(pack_exit(exited))
            if channel.fileno() in ready:
                packet, fds = take_hand_over(channel)
                taken = unpack_taken(packet)
                if taken is None:
                    return self._take_over(packet, fds)
                self._drop_exits(taken)

    def _drop_exits(self, taken: int) -> None:
        """Forget all but those after the first `taken` of this worker."""
        del self._exits[: taken - self._exits_dropped]
        self._exits_dropped = taken

    def _take_over(self, record: bytes, fds: list[int]) -> bool:
        if not record:
            return False
        left = unpack_hand_over(record)
        self._drop_exits(left.exits_taken)
        self._fds, self._masks, self._shim, self._watched = fds, left.masks, left.shim, left.watched
        self._exits = [exited for exited in self._exits if exited.pid in left.watched]
        return True

    def _reap(self) -> list[Exit]:
        """Take every exit; return all but the worker's."""
        with suppress(BlockingIOError):
            self._wake_in.recv(4096)
        exits = []
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                exited = Exit(pid, wait_status_to_exit_status(status), time.time_ns())
                if pid == self._worker:
                    self._worker, self._worker_status = 0, exited.status
                else:
                    exits.append(exited)
        return exits


def _has_bytes(fd: int) -> bool:
    """Return whether a connection has bytes that nobody has read."""
    connection = socket.socket(fileno=fd)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False
    finally:
        connection.detach()


def next_linger_s(linger_s: float, rested_s: float) -> float:
    """Return how long the next worker lingers: twice as long if there was work again soon after the last one left."""
    missed = rested_s < linger_s * _MISSED_WITHIN
    return min(linger_s * 2, LONGEST_LINGER_S) if missed else LINGER_S


def fork_as_soon_as_possible() -> int:
    """Fork. Try again while the host has too many processes or no memory: no container may end for that."""
    told = False
    while True:
        try:
            return os.fork()
        except OSError as refusal:
            if not told:
                log.warning("the shim cannot fork a worker and tries again: %s", refusal)
            told = True
            time.sleep(_FORK_AGAIN_S)
