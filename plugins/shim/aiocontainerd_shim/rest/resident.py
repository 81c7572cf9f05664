"""The process that is a shim for as long as its containers live, and does nothing but wait.

Whatever a Python process executes, it pays for with memory of its own, since every reference count it touches copies
a page it shared with the fork server. So the resident only waits: for a connection, a request, a hang-up, an exit.
Then it forks a worker, gives it every descriptor, and waits for it. The worker is the whole shim until nothing has
happened for a moment; then it hands back descriptors and a record of what it knows, and ends, and its memory with it.

The resident is the subreaper, so that it, which stays, becomes the parent of what the OCI runtime leaves behind. It
tells a worker of exits as they come; those the worker has not taken when it ends are for the next one. A worker that
ends without a hand-over ends the shim: well after Shutdown, as a crash otherwise.
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
from aiocontainerd_shim.rest.descriptors import NEVER, READABLE
from aiocontainerd_shim.rest.memory import LINGER_S, Duty, next_linger_s, pack_exit, take_hand_over, unpack_hand_over
from aiocontainerd_shim.task.reaper import Exit

log = logging.getLogger(__name__)

_FORK_AGAIN_S = 0.1
_DEFAULT_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)


class Resident:
    """A shim at rest, with a worker now and then."""

    def __init__(self, listener: socket.socket, work: Callable[[Duty], None]) -> None:
        """`work` is the worker's life, in its own process; it raises where it fails."""
        self._work = work
        self._fds = [listener.detach()]
        self._masks = [READABLE]
        self._shim = b""
        self._watched: list[int] = []
        self._exits: list[Exit] = []
        self._worker = 0
        self._worker_status = 0
        self._linger_s = LINGER_S
        self._ending = False
        self._wake_in, self._wake_out = socket.socketpair()

    def __repr__(self) -> str:
        return f"<Resident {f'worker={self._worker}' if self._worker else 'resting'} watched={self._watched}>"

    def run(self) -> int:
        """Be the shim; returns the exit status. The first worker is there before the first request."""
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
        """Wait until there is work; False when told to end."""
        poll = select.poll()
        poll.register(self._wake_in, select.POLLIN)
        for fd, mask in zip(self._fds, self._masks, strict=True):
            if mask != NEVER:
                poll.register(fd, mask)
        while not self._ending and not self._exits:
            if any(fd != self._wake_in.fileno() for fd, _ in poll.poll()):
                break
            self._exits = [exited for exited in self._reap() if exited.pid in self._watched]
        return not self._ending

    def _let_work(self) -> bool:
        """Have a worker until it hands over; False where it ends without."""
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
            self._work(Duty(os.getppid(), self._shim, self._fds, self._exits, channel, self._linger_s))
            status = 0
        finally:
            os._exit(status)

    def _attend(self, channel: socket.socket) -> bool:
        """Tell the worker of exits until it hands over or ends."""
        poll = select.poll()
        poll.register(self._wake_in, select.POLLIN)
        poll.register(channel, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            for exited in self._reap():
                self._exits.append(exited)
                with suppress(OSError):  # a worker that has ended has left it to the next one
                    channel.send(pack_exit(exited))
            if channel.fileno() in ready:
                return self._take_over(channel)

    def _take_over(self, channel: socket.socket) -> bool:
        record, fds = take_hand_over(channel)
        if not record:
            return False
        left = unpack_hand_over(record)
        self._fds, self._masks, self._shim, self._watched = fds, left.masks, left.shim, left.watched
        self._exits = [exited for exited in self._exits[left.exits_taken :] if exited.pid in left.watched]
        return True

    def _reap(self) -> list[Exit]:
        """Every exit there is, but the worker's."""
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


def fork_as_soon_as_possible() -> int:
    """Fork, again and again while there are too many processes or no memory: no container is to end for that."""
    told = False
    while True:
        try:
            return os.fork()
        except OSError as refusal:
            if not told:
                log.warning("the shim waits for a process: %s", refusal)
            told = True
            time.sleep(_FORK_AGAIN_S)
