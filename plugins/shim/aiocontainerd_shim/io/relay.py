"""The stderr of a process that writes into a client's pipe: a pipe of the shim's own, until the process says something.

An OCI runtime hands its own streams on to the container, and its error messages go to its stderr. They are no output of
the container: whoever asked for it is told of the failure anyway. So the runtime gets a pipe, and only once it has
created the process what comes out of the pipe is for the client. `cat` carries it over from the first byte on, whatever
becomes of the shim. A process that never says anything has no `cat`.

A file that takes the output gets no relay: it would confuse the order of lines from stdout and stderr. The words of a
runtime that failed are taken back from its end.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import signal
import stat
import termios
from collections.abc import Iterable

from aiocontainerd_shim.io.fifos import close_fd
from aiocontainerd_shim.io.flow import Flow

PROGRAM = "cat"
_LARGEST_BYTES = 1 << 16


class Relay:
    """A pipe whose content goes to `target`, the writing end of a client's pipe, which this object owns."""

    def __init__(self, target: int, reader: int = -1) -> None:
        """Make a pipe, or go on with its reading end. The pipe has a `writer` then, which is to be given away."""
        self.writer = -1
        self._target = target
        self._reader = reader
        self._watched = False
        self._flow: Flow | None = None
        if reader < 0:
            self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self._reader, False)

    def __repr__(self) -> str:
        return f"<Relay {'handed over' if self._reader < 0 else 'silent'}>"

    @property
    def held(self) -> tuple[int, int] | None:
        """The reading end and the target while nothing has been said yet, else None."""
        return (self._reader, self._target) if self._watched else None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do until something is said, or at all."""
        return self._watched or self._reader < 0

    def said(self) -> bytes:
        """Take what is in the pipe. Only for use before `watch`."""
        try:
            return os.read(self._reader, _LARGEST_BYTES)
        except BlockingIOError:
            return b""

    def watch(self) -> None:
        """Carry over what is said from now on."""
        self._watched = True
        asyncio.get_running_loop().add_reader(self._reader, self._on_readable)

    def close(self) -> None:
        """Close everything. What `cat` carries over goes on. May be called again."""
        self._unwatch()
        if self._flow is not None:
            self._flow.stop()
        self._close_ends()

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            asyncio.get_running_loop().remove_reader(self._reader)

    def _close_ends(self) -> None:
        self._reader, self.writer, self._target = map(close_fd, (self._reader, self.writer, self._target))

    def _on_readable(self) -> None:
        self._unwatch()
        if _bytes_in(self._reader):
            try:
                _carry(self._reader, self._target)
            except OSError:  # there is no such program, or no process can be made
                self._carry_here()
                return
        self._close_ends()

    def _carry_here(self) -> None:
        for fd in (self._reader, self._target):
            os.set_blocking(fd, False)
        self._flow = Flow(self._reader, self._target, self._close_ends)


def take_back(fds: Iterable[tuple[int, int]]) -> bytes:
    """Take the words of a failed runtime back from the ends of files, and return them.

    Each descriptor comes with the size that its file had. Only what nobody else has open is shortened: another
    container may write into the same file.
    """
    return b"".join(_take_back(fd, size) for fd, size in fds)


def regular_files(fds: Iterable[int]) -> list[tuple[int, int]]:
    """Return those of some descriptors that are files, with their sizes."""
    found = [(fd, os.fstat(fd)) for fd in dict.fromkeys(fds)]
    return [(fd, status.st_size) for fd, status in found if stat.S_ISREG(status.st_mode)]


def _take_back(fd: int, size: int) -> bytes:
    with open(f"/proc/self/fd/{fd}", "rb") as file:
        file.seek(size)
        words = file.read(_LARGEST_BYTES)
    if words:
        _shorten(fd, size)
    return words


def _shorten(fd: int, size: int) -> None:
    """Shorten a file, unless another process has it open, which a lease tells (fcntl(2), F_SETLEASE)."""
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # of somebody who opens it this instant; SIGIO would end the shim
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _bytes_in(pipe: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


def _carry(source: int, target: int) -> None:
    for fd in (source, target):
        os.set_blocking(fd, True)
    actions = [
        (os.POSIX_SPAWN_DUP2, source, 0),
        (os.POSIX_SPAWN_DUP2, target, 1),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    catchable = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    os.posix_spawnp(PROGRAM, [PROGRAM], os.environ, file_actions=actions, setsigmask=(), setsigdef=catchable)
