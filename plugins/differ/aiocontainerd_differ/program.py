"""Run programs as stream processors: the tables of `[stream_processors]` (facts/core 8).

The program reads the layer from standard input and writes the result to standard output. Its environment has the media
type of the input in `STREAM_PROCESSOR_MEDIATYPE`. If the call has a payload, descriptor 3 has it, a serialised
`google.protobuf.Any`. A program that fails makes the layer fail, with what it wrote to standard error.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import msgspec

from aiocontainerd import typeurl
from aiocontainerd.errors import Unknown
from aiocontainerd.plugin import PluginError
from aiocontainerd.wire.anys import any_to_wire

if TYPE_CHECKING:
    from aiocontainerd.config.records import StreamProgram as Settings
    from aiocontainerd.host.life import PluginTasks

MEDIA_TYPE = "STREAM_PROCESSOR_MEDIATYPE"
_PAYLOAD_FD = 3
_CHUNK = 1 << 20
_COMPLAINT_BYTES = 4096
_CLEANUP_S = 10.0
_LAST_WORDS_S = 1.0
"""How long to read the standard error of a failed program: a child in another process group may keep it open."""
_RESTORED = [signal.SIGPIPE, signal.SIGXFSZ]
"""Signals that the interpreter ignores. The program gets their default action back."""


class Program(msgspec.Struct, frozen=True):
    """What to execute: a name or path with its arguments, and what to add to the daemon's environment."""

    id: str
    argv: Sequence[str]
    env: Mapping[str, str]


class ProgramProcessor:
    """A StreamProcessor that runs a program for each layer. `tasks` starts the tasks that write to it and read it."""

    def __init__(self, program: Program, accepts: Sequence[str], returns: str, tasks: PluginTasks) -> None:
        self.accepts, self.returns = tuple(accepts), returns
        self._program = program
        self._tasks = tasks
        self._running = 0

    def __repr__(self) -> str:
        return f"<ProgramProcessor {self._program.argv[0]} {self.statistics()}>"

    def statistics(self) -> dict[str, int]:
        """Return how many layers it works on."""
        return {"running": self._running}

    async def process(
        self, media_type: str, stream: AsyncIterator[bytes], payload: typeurl.Any | None
    ) -> AsyncGenerator[bytes, None]:
        """Yield what the program makes of `stream`.

        Raise Unknown with its exit status and standard error, and whatever the stream raises.
        """
        run = Run(self._program)
        self._running += 1
        try:
            await anyio.to_thread.run_sync(run.start, media_type, payload)
            run.attend(stream, self._tasks)
            while data := await run.output():
                yield data
            await run.check()
        finally:
            with anyio.move_on_after(_CLEANUP_S, shield=True):
                await run.end()
            run.close()
            self._running -= 1


def processor(name: str, settings: Settings, tasks: PluginTasks) -> ProgramProcessor:
    """Return the processor of a table of `[stream_processors]`. Raise PluginError naming a key that cannot be used."""
    for key in ("accepts", "returns", "path"):
        if not getattr(settings, key):
            raise PluginError(f'stream_processors."{name}".{key} is missing')
    env = {}
    for entry in settings.env:
        variable, equals, value = entry.partition("=")
        if not (variable and equals):
            raise PluginError(f'stream_processors."{name}".env has "{entry}", which is not NAME=value')
        env[variable] = value
    program = Program(name, (settings.path, *settings.args), env)
    return ProgramProcessor(program, settings.accepts, settings.returns, tasks)


class Run:
    """One process of a program, and the descriptors to it."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._fds = ExitStack()
        self._pid = self._pidfd = self._stdin = self._stdout = self._stderr = -1
        self._complaint = b""
        self._failure: BaseException | None = None
        self._feeding, self._hearing = anyio.CancelScope(), anyio.CancelScope()
        self._fed: anyio.Event | None = None
        self._heard: anyio.Event | None = None
        self._status: int | None = None

    def __repr__(self) -> str:
        return f"<Run of {self._program.id} pid={self._pid} status={self._status}>"

    def start(self, media_type: str, payload: typeurl.Any | None) -> None:
        """Execute the program in a new process group. Raise Unknown if that fails. Blocks."""
        with ExitStack() as theirs:
            stdin, self._stdin = self._pipe(theirs, ours=1)
            stdout, self._stdout = self._pipe(theirs, ours=0)
            stderr, self._stderr = self._pipe(theirs, ours=0)
            given: list[tuple[int, ...]] = [
                (os.POSIX_SPAWN_DUP2, stdin, 0),
                (os.POSIX_SPAWN_DUP2, stdout, 1),
                (os.POSIX_SPAWN_DUP2, stderr, 2),
                (os.POSIX_SPAWN_CLOSE, _PAYLOAD_FD),
            ]
            if payload is not None:
                given[-1] = (os.POSIX_SPAWN_DUP2, _payload_file(theirs, payload), _PAYLOAD_FD)
            env = {**os.environ, **self._program.env, MEDIA_TYPE: media_type}
            try:
                self._pid = os.posix_spawnp(
                    self._program.argv[0], list(self._program.argv), env,
                    file_actions=given,
                    setpgroup=0, setsigmask=(), setsigdef=_RESTORED,
                )  # fmt: skip
            except OSError as error:
                raise self._error(f"cannot run {self._program.argv[0]}: {error.strerror}") from error
        self._pidfd = os.pidfd_open(self._pid)
        self._fds.callback(os.close, self._pidfd)

    def attend(self, stream: AsyncIterator[bytes], tasks: PluginTasks) -> None:
        """Start the tasks that write its standard input and read its standard error."""
        self._fed, self._heard = anyio.Event(), anyio.Event()
        tasks.start_soon(self._feed, stream, self._fed, name="feed")
        tasks.start_soon(self._hear, self._heard, name="hear")

    async def _feed(self, stream: AsyncIterator[bytes], done: anyio.Event) -> None:
        """Write the stream to the program. If the program stops reading, read the stream to its end anyway."""
        try:
            with self._feeding:
                async for data in stream:
                    await self._write(data)
        except Exception as error:  # noqa: BLE001 - the edge of a task: `check` raises it where the output is read
            self._failure = error
        finally:
            self._close_stdin()
            done.set()

    async def _hear(self, done: anyio.Event) -> None:
        """Read standard error and keep the last 4 KiB of it."""
        try:
            with self._hearing:
                while data := await _read(self._stderr):
                    self._complaint = (self._complaint + data)[-_COMPLAINT_BYTES:]
        finally:
            done.set()

    async def output(self) -> bytes:
        """Return the next piece of standard output, b"" at the end."""
        return await _read(self._stdout)

    async def check(self) -> None:
        """Wait until the program has ended. Raise Unknown if it failed, and whatever the stream raised."""
        await self._wait()
        await _done(self._fed)
        if self._failure is not None:
            raise self._failure
        if not self._status:
            return
        with anyio.move_on_after(_LAST_WORDS_S):
            await _done(self._heard)
        ending = f"exit status {self._status}"
        if self._status < 0:
            ending = f"signal: {signal.Signals(-self._status).name}"
        complaint = self._complaint.decode(errors="replace").strip()
        raise self._error(f"{ending}: {complaint}" if complaint else ending)

    async def end(self) -> None:
        """Kill the program if it runs. Wait for it and for the tasks of this run."""
        if self._pidfd >= 0 and self._status is None:
            _kill_group(self._pid)
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            await self._wait()
        self._feeding.cancel()
        self._hearing.cancel()
        await _done(self._fed)
        await _done(self._heard)

    def close(self) -> None:
        """Close every descriptor."""
        self._close_stdin()
        self._fds.close()

    async def _wait(self) -> None:
        if self._status is None:
            await anyio.wait_readable(self._pidfd)
            self._status = _reaped(self._pidfd)

    async def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest and self._stdin >= 0:
            try:
                rest = rest[os.write(self._stdin, rest) :]
            except BlockingIOError:
                await anyio.wait_writable(self._stdin)
            except BrokenPipeError:
                self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1

    def _pipe(self, theirs: ExitStack, *, ours: int) -> tuple[int, int]:
        """Make a pipe. Return the program's end, which `theirs` closes, and our end, which does not block."""
        ends = os.pipe2(os.O_CLOEXEC)
        kept, given = ends[ours], ends[1 - ours]
        theirs.callback(os.close, given)
        os.set_blocking(kept, False)
        if ours == 0:
            self._fds.callback(os.close, kept)
        return given, kept

    def _error(self, what: str) -> Unknown:
        return Unknown(f"stream processor {self._program.id}: {what}")


async def _done(event: anyio.Event | None) -> None:
    if event is not None:
        await event.wait()


def _reaped(pidfd: int) -> int:
    """Return the exit status of a child that has ended, or minus the number of the signal that ended it.

    Kill what a failed program left running. That is safe before it is reaped: until then nobody else gets its group.
    """
    found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    assert found is not None
    if found.si_status:
        _kill_group(found.si_pid)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it made another group its own


async def _read(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, _CHUNK)
        except BlockingIOError:
            await anyio.wait_readable(descriptor)


def _payload_file(theirs: ExitStack, payload: typeurl.Any) -> int:
    from aiocontainerd.wire import codec

    message = any_to_wire(payload)
    assert message is not None
    descriptor = os.memfd_create("payload", os.MFD_CLOEXEC)
    theirs.callback(os.close, descriptor)
    os.pwrite(descriptor, codec.encode(message), 0)
    return descriptor
