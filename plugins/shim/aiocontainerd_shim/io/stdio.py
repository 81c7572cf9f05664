"""Standard streams without a terminal: the container gets the client's pipe, the file or the logger's pipe itself.

No byte passes through the shim. The shim holds the other ends, so that a client may come and go. The processes of the
container are the only writers, so the client meets the end when they have gone (facts/runtime 5). Between the container
and the client's pipe for stderr is a relay (`relay.py`), since the OCI runtime writes its own errors there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from aiocontainerd.errors import ContainerdError, Unknown, os_text
from aiocontainerd_shim.io import uri as uris
from aiocontainerd_shim.io.fifos import InputFifo, OutputFifo, is_fifo, open_path, path_text
from aiocontainerd_shim.io.logger import Logger, start_logger
from aiocontainerd_shim.io.relay import Relay, regular_files, take_back

_STDERR = 2
_CLIENT_CHECK_S = 0.05


class Stdio(msgspec.Struct, frozen=True):
    """Where the streams of a process go: paths or URIs. Empty means that there is no such stream."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False

    @property
    def is_null(self) -> bool:
        """Whether no stream is wanted at all."""
        return not (self.stdin or self.stdout or self.stderr)

    @property
    def scheme(self) -> str:
        """The scheme of the stdout URI, which decides for all streams; `fifo` for a plain path. Raises Unknown."""
        with saying("unable to parse stdout uri"):
            return uris.parse(self.stdout).scheme or "fifo"

    @property
    def stdout_path(self) -> str:
        """The path that stdout names, freed of a `fifo` or `file` scheme."""
        return _uri_path(self.stdout)

    @property
    def stderr_path(self) -> str:
        """The path that stderr names, freed of a `fifo` or `file` scheme."""
        return _uri_path(self.stderr)


class HeldFds(msgspec.Struct, frozen=True):
    """Descriptors that the shim holds for a running process: stdin, outputs with their paths, a logger's pid and pidfd.

    `relayed` is the path of the output that gets its bytes from a relay, and `relay` has the relay's two ends while it
    has not carried anything. -1, None and an empty path mean that there is none.
    """

    stdin: int = -1
    outputs: list[tuple[str, int]] = []
    logger: tuple[int, int] | None = None
    relay: tuple[int, int] | None = None
    relayed: str = ""


def _uri_path(uri: str) -> str:
    scheme = uri.partition(":")[0]
    if scheme.lower() not in ("fifo", "file"):
        return uri
    return uris.parse(uri).path


def open_log_file(path: str) -> int:
    """Open the file of a `file` URI for appending with mode 0644; make its parents with mode 0755.

    Raises Unknown in containerd's words. A URI with a relative path names no file: its path is empty.
    """
    _make_parents(os.path.dirname(path))
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except (OSError, ValueError) as error:
        raise Unknown(path_text(error, path, "open")) from error


def _make_parents(directory: str) -> None:
    """Make a directory and its parents. What is in the way is named as Go names it: the path that is no directory."""
    try:
        os.makedirs(directory or ".", mode=0o755, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        while not os.path.lexists(directory):
            directory = os.path.dirname(directory)
        raise Unknown(f"mkdir {directory}: not a directory") from error
    except (OSError, ValueError) as error:
        raise Unknown(path_text(error, directory, "mkdir")) from error


class ProcessIO:
    """The streams of one process without a terminal, made by `open_io`."""

    def __init__(self) -> None:
        self._child = [-1, -1, -1]
        self._stdin: InputFifo | None = None
        self._outputs: list[OutputFifo] = []
        self._relay: Relay | None = None
        self._relayed = ""
        self._files: list[tuple[int, int]] = []
        self._logger: Logger | None = None

    def __repr__(self) -> str:
        started = "started" if self._child == [-1, -1, -1] else "waiting for the child"
        return f"<ProcessIO {started} outputs={len(self._outputs)} logger={self._logger}>"

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do until the writers have gone."""
        if self._child != [-1, -1, -1] or (self._relay is not None and not self._relay.idle):
            return False
        return all(output.idle for output in self._outputs)

    @property
    def held(self) -> HeldFds:
        """The descriptors that are held while the process runs."""
        stdin = self._stdin.held if self._stdin is not None else -1
        outputs = [(output.path, output.held) for output in self._outputs]
        logger = self._logger
        running = logger is not None and logger.pidfd >= 0
        relay = self._relay.held if self._relay is not None else None
        told = (logger.pid, logger.pidfd) if logger and running else None
        return HeldFds(stdin, outputs, told, relay, self._relayed)

    @classmethod
    def holding(cls, held: HeldFds) -> ProcessIO:
        """Return the streams of a process that runs already, from the descriptors held for it."""
        streams = cls()
        streams._relayed = held.relayed
        if held.stdin >= 0:
            streams._stdin = InputFifo("", held.stdin)
        for path, fd in held.outputs:
            output = OutputFifo(path, fd)
            streams._outputs.append(output)
            output.watch()
        if held.logger is not None:
            pid, pidfd = held.logger
            streams._logger = Logger(pid, pidfd, -1, -1)
        if held.relay is not None:
            reader, target = held.relay
            streams._relay = Relay(target, reader)
            streams._relay.watch()
        return streams

    def child_fds(self) -> tuple[int, int, int]:
        """Return the fds for the OCI runtime's 0, 1 and 2. This object still owns them."""
        stdin, stdout, stderr = self._child
        return stdin, stdout, stderr

    def child_started(self) -> None:
        """Close the child's ends in this process. Call it once the runtime has them, whether or not it worked."""
        for fd in {fd for fd in self._child if fd >= 0}:
            os.close(fd)
        self._child = [-1, -1, -1]

    def runtime_said(self) -> bytes:
        """Return what an OCI runtime wrote that failed, and keep it from the client."""
        relayed = self._relay.said() if self._relay is not None else b""
        return relayed + take_back(self._files)

    def process_runs(self) -> None:
        """Let the client have what is written from now on."""
        self._files = []
        if self._relay is not None:
            self._relay.watch()

    async def close_stdin(self) -> None:
        """Let stdin end for the container once the client has closed it too (CloseIO)."""
        if self._stdin is not None:
            self._stdin.close_writer()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until no process writes and a logger has taken all. Return False if `timeout_s` passed first.

        What a relay carries to a pipe that nobody reads is not waited for.
        """
        try:
            async with asyncio.timeout(timeout_s):
                for output in self._outputs:
                    await (self._taken(output) if output.path == self._relayed else output.ended())
                if self._logger is not None:
                    await self._logger.exited()
        except TimeoutError:
            return False
        return True

    async def _taken(self, output: OutputFifo) -> None:
        while True:
            try:
                async with asyncio.timeout(_CLIENT_CHECK_S):
                    return await output.ended()
            except TimeoutError:
                if not output.has_client():
                    return None

    async def aclose(self) -> None:
        """Close everything and end the logger. Output that no client has taken is lost then. May be called again."""
        self.child_started()
        if self._relay is not None:
            self._relay.close()
        if self._stdin is not None:
            self._stdin.close()
        for output in self._outputs:
            output.close()
        if self._logger is not None:
            await self._logger.aclose()

    def _open_stdin(self, path: str, io_uid: int, io_gid: int) -> None:
        self._stdin = stdin = InputFifo(path)
        os.set_blocking(stdin.reader, True)
        _chown(stdin.reader, io_uid, io_gid)
        self._child[0], stdin.reader = stdin.reader, -1

    def _open_fifo(self, number: int, path: str, out_path: str, io_uid: int, io_gid: int) -> None:
        output = OutputFifo(path)
        self._outputs.append(output)
        self._child[number] = writer = output.open_writer()
        _chown(writer, io_uid, io_gid)
        if number == _STDERR and path != out_path:
            self._relay, self._relayed = Relay(writer), path
            self._child[number], self._relay.writer = self._relay.writer, -1
            _chown(self._child[number], io_uid, io_gid)
        output.watch()

    def _open_output(self, number: int, path: str, out_path: str, io_uid: int, io_gid: int) -> None:
        if is_fifo(path):
            self._open_fifo(number, path, out_path, io_uid, io_gid)
        else:
            self._child[number] = open_path(path, os.O_WRONLY | os.O_APPEND, "file")

    def _open_outputs(self, stdio: Stdio, io_uid: int, io_gid: int) -> None:
        stdout, stderr = stdio.stdout_path, stdio.stderr_path
        if stdout:
            self._open_output(1, stdout, stdout, io_uid, io_gid)
        if stderr and stderr == stdout and not self._outputs:
            self._child[2] = self._child[1]
        elif stderr:
            self._open_output(_STDERR, stderr, stdout, io_uid, io_gid)

    def _adopt(self, stdio: Stdio) -> None:
        if stdio.stdin and is_fifo(stdio.stdin):
            self._stdin = InputFifo(stdio.stdin)
            self._stdin.close_reader()
        if stdio.scheme != "fifo":
            return
        for path in (stdio.stdout_path, stdio.stderr_path):
            if path and is_fifo(path):
                output = OutputFifo(path)
                self._outputs.append(output)
                output.watch()

    def _fill_with_null(self) -> None:
        for number, fd in enumerate(self._child):
            if fd < 0:
                self._child[number] = os.open(os.devnull, (os.O_WRONLY if number else os.O_RDONLY) | os.O_CLOEXEC)

    async def _open(self, stdio: Stdio, namespace: str, container_id: str, io_uid: int, io_gid: int) -> None:
        with saying("failed to create init process I/O"):
            scheme = stdio.scheme
        if scheme == "fifo":
            with saying("failed to start io pipe copy: unable to copy pipes"):
                self._open_outputs(stdio, io_uid, io_gid)
        else:
            with saying("failed to create init process I/O"):
                await self._open_other_outputs(stdio, namespace, container_id, io_uid, io_gid)
        if stdio.stdin:
            self._open_stdin(stdio.stdin, io_uid, io_gid)

    async def _open_other_outputs(
        self, stdio: Stdio, namespace: str, container_id: str, io_uid: int, io_gid: int
    ) -> None:
        scheme = stdio.scheme
        if scheme == "file":
            self._child[1] = self._child[2] = open_log_file(stdio.stdout_path)
        elif scheme in ("binary", "binary-v2"):
            self._logger = logger = await start_logger(
                stdio.stdout, namespace=namespace, container_id=container_id, io_uid=io_uid, io_gid=io_gid
            )
            self._child[1:] = logger.stdout, logger.stderr
            logger.stdout = logger.stderr = -1
        else:
            raise Unknown(f"unknown STDIO scheme {scheme}")


@contextmanager
def saying(what: str) -> Iterator[None]:
    """Put `what` before the text of an error from inside, as containerd does."""
    try:
        yield
    except ContainerdError as error:
        raise type(error)(f"{what}: {error.message}") from error
    except OSError as error:
        raise Unknown(f"{what}: {os_text(error)}") from error


async def open_io(stdio: Stdio, *, namespace: str, container_id: str, io_uid: int = 0, io_gid: int = 0) -> ProcessIO:
    """Open the streams of a process that has no terminal. The only wait is for a logger to be ready.

    The pipes of the client and of a logger are given to `io_uid` and `io_gid`, unless both are 0. Raises Unknown if
    a path cannot be opened, a logger cannot be run or the scheme is unknown. Raises DeadlineExceeded if a logger is
    too slow.
    """
    streams = ProcessIO()
    try:
        if not stdio.is_null:
            await streams._open(stdio, namespace, container_id, io_uid, io_gid)
        streams._fill_with_null()
        streams._files = regular_files(streams._child[1:])
    except BaseException:
        await asyncio.shield(streams.aclose())
        raise
    return streams


async def adopt_io(stdio: Stdio) -> ProcessIO:
    """Hold the pipes of a process that runs already, for a shim that takes over from a dead one.

    Files and loggers need no holding. A pipe that has been removed meanwhile is left alone.
    """
    streams = ProcessIO()
    try:
        streams._adopt(stdio)
    except BaseException:
        await asyncio.shield(streams.aclose())
        raise
    return streams


def _chown(fd: int, uid: int, gid: int) -> None:
    if uid or gid:
        os.fchown(fd, uid, gid)
