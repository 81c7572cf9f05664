"""A process's streams as fifos, and copying between them and this program's own (facts/runtime 5.1, 5.3)."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import anyio.to_thread
import msgspec

from aiocontainerd.errors import DeadlineExceeded
from aiocontainerd.interfaces.runtime import IO

FIFO_DIR = "/run/containerd/fifo"
CHUNK_BYTES = 64 << 10
OPEN_S = 10.0
"""How long a shim may take to open its end of stdin once the process was created."""
OPEN_PAUSE_S = 0.005


class Streams(msgspec.Struct, frozen=True, kw_only=True):
    """Descriptors of this program to copy from and to; -1 leaves a stream out."""

    stdin: int = 0
    stdout: int = 1
    stderr: int = 2


@contextmanager
def fifos(name: str, *, terminal: bool, stdin: bool = True, directory: str = FIFO_DIR) -> Iterator[IO]:
    """Make the fifos of one process in a directory of their own; remove it at the end. A terminal has no stderr."""
    os.makedirs(directory, mode=0o711, exist_ok=True)
    own = tempfile.mkdtemp(dir=directory)
    try:
        io = IO(
            stdin=f"{own}/{name}-stdin" if stdin else "",
            stdout=f"{own}/{name}-stdout",
            stderr="" if terminal else f"{own}/{name}-stderr",
            terminal=terminal,
        )
        for path in (io.stdin, io.stdout, io.stderr):
            if path:
                os.mkfifo(path, 0o700)
        yield io
    finally:
        shutil.rmtree(own, ignore_errors=True)


class Copier:
    """Copies the streams of one process. Opened before the process is created, `run` after."""

    def __init__(self, io: IO, streams: Streams) -> None:
        self._io = io
        self._streams = streams
        self._outputs: list[tuple[int, int]] = []

    def __repr__(self) -> str:
        return f"<Copier {self._io.stdout} {len(self._outputs)} outputs open>"

    def open(self) -> None:
        """Open the reading ends, which waits for no writer. Raises OSError naming the fifo."""
        for path, target in ((self._io.stdout, self._streams.stdout), (self._io.stderr, self._streams.stderr)):
            if path and target >= 0:
                self._outputs.append((os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), target))

    def close(self) -> None:
        """Close what is open. May be called twice."""
        while self._outputs:
            os.close(self._outputs.pop()[0])

    async def outputs(self) -> None:
        """Copy stdout and stderr until the shim has closed both. Raises BrokenPipeError where a reader has gone."""
        async with anyio.create_task_group() as group:
            for source, target in self._outputs:
                group.start_soon(_copy_output, source, target)

    async def drop_outputs(self) -> None:
        """Read stdout and stderr and drop them, until the shim has closed both: a process that is full never ends."""
        async with anyio.create_task_group() as group:
            for source, _ in self._outputs:
                group.start_soon(_drop_output, source)

    async def input(self) -> None:
        """Copy stdin until it ends, then close the fifo. Returns at once where there is none."""
        if not self._io.stdin:
            return
        fifo = await _open_writer(self._io.stdin)
        try:
            if self._streams.stdin >= 0:
                await _copy_input(self._streams.stdin, fifo)
        finally:
            os.close(fifo)


async def _copy_output(source: int, target: int) -> None:
    while data := await _read_output(source):
        await anyio.to_thread.run_sync(_write_all, target, data, abandon_on_cancel=True)


async def _drop_output(source: int) -> None:
    while await _read_output(source):
        pass


async def _read_output(source: int) -> bytes:
    while True:
        await anyio.wait_readable(source)
        try:
            return os.read(source, CHUNK_BYTES)
        except BlockingIOError:
            continue


def _write_all(target: int, data: bytes) -> None:
    """Write everything. Raises BrokenPipeError where the reader has gone."""
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


async def _copy_input(source: int, fifo: int) -> None:
    while data := await _read(source):
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(fifo, view) :]
            except BlockingIOError:
                await anyio.wait_writable(fifo)
            except BrokenPipeError:
                return


async def _read(source: int) -> bytes:
    """Return the next bytes of a terminal, pipe or file, b"" at the end. Files are read in a thread."""
    try:
        await anyio.wait_readable(source)
    except PermissionError:
        return await anyio.to_thread.run_sync(os.read, source, CHUNK_BYTES)
    try:
        return os.read(source, CHUNK_BYTES)
    except OSError as error:
        if error.errno == errno.EIO:  # a terminal that hung up
            return b""
        raise


async def _open_writer(path: str) -> int:
    until = anyio.current_time() + OPEN_S
    while True:
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        if anyio.current_time() > until:
            raise DeadlineExceeded(f"nobody opened {path} for reading within {OPEN_S:g} s")
        await anyio.sleep(OPEN_PAUSE_S)
