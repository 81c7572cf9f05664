"""Terminals: the socket over which the OCI runtime sends the master of a pty, and the pump between pty and pipes.

The pump is two `Flow`s with one chunk in hand each. A flow reads nothing more before it has written what it read. So a
slow client slows the container down, and nobody's memory grows (facts/runtime 5.3).
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import socket
import stat
import struct
import termios

from aiocontainerd.errors import Unknown, os_text
from aiocontainerd_shim.io.fifos import InputFifo, OutputFifo, close_fd, is_fifo, open_path
from aiocontainerd_shim.io.flow import Flow
from aiocontainerd_shim.io.logger import Logger, start_logger
from aiocontainerd_shim.io.stdio import Stdio, open_log_file, saying

RECEIVE_TIMEOUT_S = 2.0
"""For a socket that the OCI runtime has connected to before it ended, if it was going to."""
_NAME_MAX_BYTES = 4096
_CLIENT_CHECK_S = 0.05
_SIZE = 0xFFFF


class ConsoleSocket:
    """A listening socket `pty*/pty.sock`. The OCI runtime gets its path as `--console-socket`."""

    def __init__(self) -> None:
        """Make the directory and listen. Raises OSError."""
        self._dir = _make_socket_dir()
        self.path = os.path.join(self._dir, "pty.sock")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(self.path)
            self._socket.listen(1)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<ConsoleSocket {self.path}>"

    async def receive(self, timeout_s: float = RECEIVE_TIMEOUT_S) -> int:
        """Return the fd of the pty's master, which the caller owns. Raises Unknown if none comes in time."""
        try:
            async with asyncio.timeout(timeout_s):
                connection, _ = await asyncio.get_running_loop().sock_accept(self._socket)
                with connection:
                    await _readable(connection.fileno())
                    return _take_fd(connection)
        except TimeoutError as error:
            raise Unknown(f"no console came on {self.path} within {timeout_s:g} s") from error

    def close(self) -> None:
        """Stop listening and remove the directory. May be called again."""
        self._socket.close()
        for remove, path in ((os.unlink, self.path), (os.rmdir, self._dir)):
            try:
                remove(path)
            except FileNotFoundError:
                pass


def _make_socket_dir() -> str:
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR")
    parent = runtime_dir or os.environ.get("TMPDIR") or "/tmp"
    while True:
        path = os.path.join(parent, f"pty{os.urandom(5).hex()}")
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            continue
        if runtime_dir:
            os.chmod(path, 0o755 | stat.S_ISVTX)  # noqa: S103 - sticky, so that cleaners of that directory pass it by
        return path


async def _readable(fd: int) -> None:
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(fd)


def _take_fd(connection: socket.socket) -> int:
    fds = array.array("i")
    room = socket.CMSG_SPACE(2 * fds.itemsize)
    _, ancillary, _, _ = connection.recvmsg(_NAME_MAX_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if len(fds) != 1:
        for fd in fds:
            os.close(fd)
        raise Unknown(f"the console socket carried {len(fds)} file descriptors instead of 1")
    return fds[0]


class Console:
    """The master of a pty, which this object owns, and its pump."""

    def __init__(self, master: int) -> None:
        """Take the master over; it becomes non-blocking."""
        os.set_blocking(master, False)
        self._master = master
        self._stdin: InputFifo | None = None
        self._fifo: OutputFifo | None = None
        self._logger: Logger | None = None
        self._target = -1
        self._input: Flow | None = None
        self._output: Flow | None = None

    def __repr__(self) -> str:
        ended = self._output is not None and self._output.ended.is_set()
        return f"<Console fd={self._master} output {'ended' if ended else 'open'}>"

    def resize(self, width: int, height: int) -> None:
        """Tell the pty its size in character cells: the low 16 bits of each, as the kernel takes it. Raises OSError."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height & _SIZE, width & _SIZE, 0, 0))

    async def attach(self, stdio: Stdio, *, namespace: str = "", container_id: str = "") -> None:
        """Open the client's ends and start to pump. Output that nobody wants is thrown away.

        Raises Unknown and DeadlineExceeded as `open_io` does; the console must be closed then.
        """
        with saying("failed to start console copy"):
            self._target = await self._open_target(stdio, namespace, container_id)
        if stdio.stdin:
            self._stdin = InputFifo(stdio.stdin)
            self._input = Flow(self._stdin.reader, self._master)
        self._output = Flow(self._master, self._target, self._on_output_end)

    async def close_stdin(self) -> None:
        """Let the input end once the client has closed its end too (CloseIO)."""
        if self._stdin is not None:
            self._stdin.close_writer()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until all output is in the client's pipe, or nobody reads the pipe. Return False on timeout.

        If a logger takes the output, wait until it has ended.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while self._output is not None and not self._output.ended.is_set():
                    await self._wait_for_output(self._output)
                if self._logger is not None:
                    await self._logger.exited()
        except TimeoutError:
            return False
        return True

    async def aclose(self) -> None:
        """Stop the pump, close every descriptor, end the logger. May be called again."""
        for flow in (self._input, self._output):
            if flow is not None:
                flow.stop()
        self._master = close_fd(self._master)
        self._target = close_fd(self._target)
        if self._stdin is not None:
            self._stdin.close()
        if self._fifo is not None:
            self._fifo.close()
        if self._logger is not None:
            await self._logger.aclose()

    async def _wait_for_output(self, output: Flow) -> None:
        try:
            async with asyncio.timeout(_CLIENT_CHECK_S):
                await output.ended.wait()
        except TimeoutError:
            if output.is_blocked and self._fifo is not None and not self._fifo.has_client():
                output.stop()

    def _on_output_end(self) -> None:
        self._target = close_fd(self._target)  # the client meets the end
        if self._fifo is not None:
            self._fifo.let_clients_in()

    async def _open_target(self, stdio: Stdio, namespace: str, container_id: str) -> int:
        scheme, path = stdio.scheme, stdio.stdout_path
        if scheme == "file":
            return open_log_file(path)
        if scheme in ("binary", "binary-v2"):
            return await self._open_logger(stdio.stdout, namespace, container_id)
        if scheme != "fifo":
            raise Unknown(f"unknown STDIO scheme {scheme}")
        if not is_fifo(path):
            return _open_no_fifo(path or os.devnull)
        self._fifo = OutputFifo(path)
        return self._fifo.open_writer(nonblocking=True)

    async def _open_logger(self, uri: str, namespace: str, container_id: str) -> int:
        self._logger = logger = await start_logger(
            uri, namespace=namespace, container_id=container_id, what="logging binary"
        )
        target, logger.stdout = logger.stdout, -1
        logger.close_writers()
        os.set_blocking(target, False)
        return target


def _open_no_fifo(path: str) -> int:
    """Open an output that is no named pipe. Go looks for the file before it opens it."""
    try:
        return open_path(path, os.O_WRONLY | os.O_APPEND, "file")
    except Unknown as refused:
        missing = refused.__cause__
        if isinstance(missing, FileNotFoundError):
            raise Unknown(os_text(missing, "stat")) from missing
        raise
