"""Ends of the named pipes between a client and a container (facts/runtime 5.1).

A client may come, go and come back while the container lives. To keep the pipe whole meanwhile, the shim holds an end
that it never uses: a read end of an output, a write end of the input.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import stat

from aiocontainerd.errors import Unknown, os_text
from aiocontainerd.gotext import quoted

_KICK_FIRST_S = 0.01
_KICK_MAX_S = 1.0


def is_fifo(path: str) -> bool:
    """Return whether `path` is a named pipe; False if it is missing. Raises Unknown if that cannot be known."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise Unknown(path_text(error, path, "stat")) from error


def open_path(path: str, flags: int, what: str, mode: int = 0o777) -> int:
    """Open `path` close-on-exec.

    Raises Unknown with containerd's text about `what` (`file`, `r/o fifo`, `w/o fifo`).
    """
    try:
        return os.open(path, flags | os.O_CLOEXEC, mode)
    except (OSError, ValueError) as error:
        told = path_text(error, path, "open")
        raise Unknown(f"containerd-shim: opening {what} {quoted(path)} failed: {told}") from error


def path_text(error: OSError | ValueError, path: str, verb: str) -> str:
    """Return why `path` could not be used, in Go's words. Python refuses a path with a NUL by itself."""
    return os_text(error, verb) if isinstance(error, OSError) else f"{verb} {path}: invalid argument"


def close_fd(fd: int) -> int:
    """Close `fd` unless it is -1. Return -1: with `fd = close_fd(fd)` the owner forgets the number as it closes it."""
    if fd >= 0:
        os.close(fd)
    return -1


def probe_writer(path: str) -> int:
    """Open a non-blocking write end. Return -1 if nobody reads the pipe.

    A process that still waits in open(2) to read it counts as a reader.
    """
    try:
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT):
            return -1
        raise Unknown(f"containerd-shim: opening w/o fifo {quoted(path)} failed: {os_text(error, 'open')}") from error


def _again(fd: int) -> str:
    """Return a path that opens the pipe of `fd` anew, even after the client has removed its name."""
    return f"/proc/self/fd/{fd}"


class OutputFifo:
    """An output pipe that the shim holds open for reading and never reads.

    A client may open the pipe only after the last writer has gone. It would wait in open(2) for ever, although the
    container's last words are in the pipe. So after the last writer has gone, the shim opens the pipe for writing
    again and again, at growing intervals. Each time lets such a client in.
    """

    def __init__(self, path: str, hold: int = -1) -> None:
        """Open the shim's end, or go on with `hold`. Raises Unknown where the pipe can't be opened."""
        self.path = path
        self._hold = hold
        self._epoll: select.epoll | None = None
        self._kick: asyncio.TimerHandle | None = None
        self._ended = asyncio.Event()
        self._first_writer = -1
        if hold >= 0:
            return
        # Kept until the real writer is there. Otherwise a client that it lets in would meet the end at once.
        self._first_writer = probe_writer(path)
        try:
            self._hold = open_path(path, os.O_RDONLY | os.O_NONBLOCK, "r/o fifo")
        except BaseException:
            self.close()
            raise

    @property
    def held(self) -> int:
        """The shim's own end, -1 once it is shut."""
        return self._hold

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do until the last writer hangs up."""
        return self._epoll is not None and self._kick is None

    def open_writer(self, *, nonblocking: bool = False) -> int:
        """Return a new write end. This never waits, since the shim itself is a reader."""
        writer = self._first_writer
        self._first_writer = -1
        if writer < 0:
            writer = open_path(_again(self._hold), os.O_WRONLY | os.O_NONBLOCK, "w/o fifo")
        os.set_blocking(writer, not nonblocking)
        return writer

    def watch(self) -> None:
        """Notice from now on when the last writer goes. If it has gone already, notice that too."""
        close_fd(probe_writer(_again(self._hold)))  # without a writer before it, the kernel reports no hang-up
        self._first_writer = close_fd(self._first_writer)
        self._epoll = select.epoll()
        self._epoll.register(self._hold, 0)  # mask 0: only the hang-up is reported
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._on_hangup)

    async def ended(self) -> None:
        """Wait until no process has the pipe open for writing. Needs `watch`."""
        await self._ended.wait()

    def has_client(self) -> bool:
        """Return whether another process reads. Only for use when no container process writes any more.

        The shim's own end is a reader too. So it is closed for an instant, while a write end keeps the bytes.
        """
        keeper = open_path(_again(self._hold), os.O_WRONLY | os.O_NONBLOCK, "w/o fifo")
        try:
            self._hold = close_fd(self._hold)
            probe = probe_writer(_again(keeper))
            self._hold = open_path(_again(keeper), os.O_RDONLY | os.O_NONBLOCK, "r/o fifo")
        finally:
            os.close(keeper)
        close_fd(probe)
        return probe >= 0

    def let_clients_in(self) -> None:
        """Let in clients that wait in open(2), now and until `close`."""
        if self._kick is None and self._hold >= 0:
            self._let_in(_KICK_FIRST_S)

    def close(self) -> None:
        """Close the shim's ends. Bytes that no client has taken are lost then."""
        self._unwatch()
        if self._kick is not None:
            self._kick.cancel()
        self._hold = close_fd(self._hold)
        self._first_writer = close_fd(self._first_writer)
        self._ended.set()

    def _on_hangup(self) -> None:
        self._unwatch()
        self._ended.set()
        self.let_clients_in()

    def _unwatch(self) -> None:
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _let_in(self, delay_s: float) -> None:
        close_fd(probe_writer(_again(self._hold)))
        again_s = min(delay_s * 2, _KICK_MAX_S)
        self._kick = asyncio.get_running_loop().call_later(delay_s, self._let_in, again_s)


class InputFifo:
    """The stdin pipe: an end to read from, and the shim's write end, which keeps the pipe open until CloseIO.

    If the path is no named pipe, it is read as it is, and there is no write end.
    """

    def __init__(self, path: str, hold: int = -1) -> None:
        """Open both ends, the reading one non-blocking, or go on with a write end `hold` alone.

        Raises Unknown where the path can't be opened.
        """
        self.reader = -1
        self._hold = hold
        if hold >= 0:
            return
        try:
            self.reader = open_path(path, os.O_RDONLY | os.O_NONBLOCK, "stdin")
        except Unknown as refused:
            error = refused.__cause__
            assert isinstance(error, OSError | ValueError)
            verb = "stat" if isinstance(error, FileNotFoundError) else "open"  # Go looks for the file first
            raise Unknown(f"failed to open stdin fifo {path}: {path_text(error, path, verb)}") from error
        if stat.S_ISFIFO(os.fstat(self.reader).st_mode):
            try:
                self._hold = open_path(path, os.O_WRONLY | os.O_NONBLOCK, "w/o fifo")
            except BaseException:
                self.close()
                raise

    @property
    def held(self) -> int:
        """The shim's write end, -1 once it is shut."""
        return self._hold

    def close_writer(self) -> None:
        """Close the write end (CloseIO): the reader meets the end once every client has closed too."""
        self._hold = close_fd(self._hold)

    def close_reader(self) -> None:
        """Close the reading end in this process."""
        self.reader = close_fd(self.reader)

    def close(self) -> None:
        """Shut both ends."""
        self.close_reader()
        self.close_writer()
