"""Logger programs: they take a container's output on their fds 3 and 4 (facts/runtime 5.2)."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal

import msgspec

from aiocontainerd.errors import DeadlineExceeded, Unknown, os_text
from aiocontainerd_shim.io import uri as uris
from aiocontainerd_shim.io.fifos import close_fd

READY_TIMEOUT_S = 10.0
TERM_TIMEOUT_S = 12.0
_KILL_TIMEOUT_S = 5.0
_FIRST_FREE_FD = 16
_NOT_READY = "logging binary did not call ready (it may have crashed or exited prematurely)"


class LoggerCommand(msgspec.Struct, frozen=True):
    """The command that a `binary` or `binary-v2` URI asks for."""

    argv: tuple[str, ...]
    must_call_ready: bool


def parse_uri(uri: str) -> LoggerCommand:
    """Return the command of `binary://PATH?KEY=VALUE...`. Every key, followed by its first value, is an argument."""
    from urllib.parse import parse_qs

    parts = uris.parse(uri)
    argv = [parts.path]
    for key, values in parse_qs(parts.query, keep_blank_values=True).items():
        argv += (key, values[0])
    return LoggerCommand(tuple(argv), must_call_ready=parts.scheme == "binary-v2")


class Logger:
    """A running logger. `stdout` and `stderr` are the write ends of its pipes, to be given away and closed."""

    def __init__(self, pid: int, pidfd: int, stdout: int, stderr: int) -> None:
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr
        self._pidfd = pidfd
        self._exited = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, self._reap)

    def __repr__(self) -> str:
        return f"<Logger pid={self.pid} {'exited' if self._exited.is_set() else 'running'}>"

    @property
    def pidfd(self) -> int:
        """The descriptor of the running logger, -1 once it has ended."""
        return self._pidfd

    async def exited(self) -> None:
        """Wait until the logger has ended. It ends when its pipes do."""
        await self._exited.wait()

    def close_writers(self) -> None:
        """Close the shim's copies of the write ends, so that the logger meets the end with the container."""
        self.stdout = close_fd(self.stdout)
        self.stderr = close_fd(self.stderr)

    async def aclose(self) -> None:
        """End the logger: SIGTERM, and SIGKILL after 12 s."""
        self.close_writers()
        try:
            await self._stop(signal.SIGTERM, TERM_TIMEOUT_S)
            await self._stop(signal.SIGKILL, _KILL_TIMEOUT_S)
        finally:
            if not self._exited.is_set():
                self._signal(signal.SIGKILL)
                self._forget()

    async def _stop(self, number: signal.Signals, timeout_s: float) -> None:
        if self._exited.is_set():
            return
        self._signal(number)
        try:
            async with asyncio.timeout(timeout_s):
                await self._exited.wait()
        except TimeoutError:
            return

    def _signal(self, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return

    def _reap(self) -> None:
        try:
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            pass  # the shim's reaper was quicker
        self._forget()
        self._exited.set()

    def _forget(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            self._pidfd = close_fd(self._pidfd)


async def start_logger(
    uri: str,
    *,
    namespace: str,
    container_id: str,
    io_uid: int = 0,
    io_gid: int = 0,
    timeout_s: float = READY_TIMEOUT_S,
    what: str = "binary",
) -> Logger:
    """Run the logger of `uri` and wait until it is ready. `what` names it in errors, as containerd does.

    Raises Unknown if it cannot be run, or if a `binary-v2` logger ends without calling ready. Raises
    DeadlineExceeded if it is not ready within `timeout_s` seconds.
    """
    command = parse_uri(uri)
    env = {"CONTAINER_ID": container_id, "CONTAINER_NAMESPACE": namespace}
    try:
        logger, ready = _spawn(command, env, io_uid, io_gid)
    except Unknown as refused:
        raise Unknown(f"failed to start {what} process: {refused.message}") from refused
    try:
        called = await _read_ready(ready, command.argv[0], timeout_s)
        if command.must_call_ready and not called:
            raise Unknown(_NOT_READY)
    except BaseException:
        await asyncio.shield(logger.aclose())
        raise
    finally:
        os.close(ready)
    return logger


async def _read_ready(fd: int, program: str, timeout_s: float) -> bool:
    """Return whether a byte came before the end of the ready pipe."""
    os.set_blocking(fd, False)
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, readable.set)
    try:
        async with asyncio.timeout(timeout_s):
            await readable.wait()
    except TimeoutError as error:
        raise DeadlineExceeded(f"logging binary {program} was not ready within {timeout_s:g} s") from error
    finally:
        loop.remove_reader(fd)
    return os.read(fd, 1) != b""


def _spawn(command: LoggerCommand, env: dict[str, str], io_uid: int, io_gid: int) -> tuple[Logger, int]:
    fds: list[int] = []
    try:
        for _ in range(3):
            fds += _high_pipe()
        out_r, out_w, err_r, err_w, ready_r, ready_w = fds
        if io_uid or io_gid:
            os.fchown(out_w, io_uid, io_gid)
            os.fchown(err_w, io_uid, io_gid)
        pid, pidfd = _execute(command.argv, env, (out_r, err_r, ready_w))
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    for fd in (out_r, err_r, ready_w):
        os.close(fd)
    return Logger(pid, pidfd, out_w, err_w), ready_r


def _execute(argv: tuple[str, ...], env: dict[str, str], fds: tuple[int, int, int]) -> tuple[int, int]:
    """Start the program with null stdio and `fds` as its 3, 4 and 5. Return its pid and a pidfd."""
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        *((os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds, 3)),
    ]
    if refused := _refused(argv[0]):
        raise Unknown(refused)
    catchable = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    try:
        pid = os.posix_spawn(argv[0], argv, env, file_actions=actions, setsigmask=(), setsigdef=catchable)
    except OSError as error:
        raise Unknown(os_text(error, "fork/exec")) from error
    return pid, os.pidfd_open(pid)


def _refused(program: str) -> str:
    """Return why Go does not even try to run a program; an empty string if it does."""
    if not program:
        return "exec: no command"
    if program == "/":
        return 'exec: "/": is a directory'
    return f"fork/exec {program}: invalid argument" if "\0" in program else ""


def _high_pipe() -> tuple[int, int]:
    """Return a pipe whose ends have high numbers, so that they are none of the logger's 3, 4 and 5."""
    ends = os.pipe2(os.O_CLOEXEC)
    try:
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD) for fd in ends]
    finally:
        for fd in ends:
            os.close(fd)
    return high[0], high[1]
