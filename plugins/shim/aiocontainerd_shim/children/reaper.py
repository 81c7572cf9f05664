"""Children: starts programs, and takes the exits of everything that is or becomes a child of this process.

The shim is a subreaper: when the OCI runtime ends, the init of a container becomes a child of the shim. One
`waitpid(-1)` loop under SIGCHLD takes every exit. Nothing else in the process may wait for children. An exit may arrive
before anybody knows its pid. It is kept while a claim is open, that is, while an OCI runtime command runs that makes
processes.

Programs are started by posix_spawn, which does not copy the page tables. Their output goes to a memory file, not to a
pipe: a large output blocks nobody, and a leaked descriptor keeps nobody waiting.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec

from aiocontainerd.sys.pidfd import wait_status_to_exit_status
from aiocontainerd_shim.children import sealed

_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals Python ignores; a container must not inherit that."""
_OUTPUT_LIMIT_BYTES = 16 << 20


class Exit(msgspec.Struct, frozen=True):
    """The end of a process: exit code or 128 plus the signal, and when the shim learnt of it."""

    pid: int
    status: int
    exited_at_ns: int


class Completed(msgspec.Struct, frozen=True):
    """A program that has ended: its exit status, and what it wrote where it was not given descriptors."""

    status: int
    output: bytes


class Reaper:
    """The children of this process."""

    def __init__(self) -> None:
        self._watchers: dict[int, Callable[[Exit], None]] = {}
        self._early: dict[int, Exit] = {}
        self._claims = 0

    def __repr__(self) -> str:
        return f"<Reaper {self.statistics()}>"

    def statistics(self) -> dict[str, int]:
        """Return counts: pids watched, exits kept for a claim, claims open."""
        return {"watched": len(self._watchers), "early": len(self._early), "claims": self._claims}

    @property
    def watched(self) -> set[int]:
        """The pids whose exits somebody waits for."""
        return set(self._watchers)

    @property
    def claimed(self) -> bool:
        """Whether a command that makes processes runs."""
        return self._claims > 0

    def start(self) -> None:
        """Take SIGCHLD of the running event loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)

    def stop(self) -> None:
        """Give SIGCHLD back."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)

    def reap(self) -> None:
        """Take every exit there is."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self.exited(Exit(pid, wait_status_to_exit_status(status), time.time_ns()))

    def exited(self, exited: Exit) -> None:
        """Take an exit: of a child of this process, or of a child of the resting shim, which tells it."""
        callback = self._watchers.pop(exited.pid, None)
        if callback is not None:
            callback(exited)
        elif self._claims:
            self._early[exited.pid] = exited

    def watch(self, pid: int, callback: Callable[[Exit], None]) -> None:
        """Call `callback` once, from the event loop, when `pid` exits or if it has exited during an open claim."""
        early = self._early.pop(pid, None)
        if early is None:
            self._watchers[pid] = callback
        else:
            asyncio.get_running_loop().call_soon(callback, early)

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Keep exits of unknown pids while the block runs: one of them may turn out to be ours."""
        self._claims += 1
        try:
            yield
        finally:
            self._claims -= 1
            if not self._claims:
                self._early.clear()

    def end(self, pid: int) -> None:
        """Kill a process that was given up inside a claim.

        If it has exited, do nothing: another process may have its pid.
        """
        if pid in self._early:
            return
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: bytes = b"",
        stdio: tuple[int, int, int] | None = None,
    ) -> Completed:
        """Run a program to its end. If cancelled, kill it and await its end.

        The program gets the descriptors `stdio` as its 0, 1 and 2. Without them it reads `stdin`, and its
        output is returned. Raises OSError where the program cannot be started.
        """
        if stdio is not None:
            return Completed((await self._finish(argv, env, stdio)).status, b"")
        output = os.memfd_create("output")
        source = _memory_file(stdin)
        try:
            exited = await self._finish(argv, env, (source, output, output))
            return Completed(exited.status, _content(output))
        finally:
            os.close(source)
            os.close(output)

    async def _finish(self, argv: Sequence[str], env: Mapping[str, str], stdio: tuple[int, int, int]) -> Exit:
        done: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        pid = spawn(argv, env, stdio)
        self.watch(pid, lambda exited: None if done.done() else done.set_result(exited))
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            if not done.done():
                os.kill(pid, signal.SIGKILL)
                await done
            raise


def spawn(argv: Sequence[str], env: Mapping[str, str], stdio: tuple[int, int, int]) -> int:
    """Start a program found by PATH with three descriptors; everything else is closed on exec. Return its pid."""
    actions = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in enumerate(_above_stdio(stdio))]
    return os.posix_spawnp(sealed.executable(argv[0]), list(argv), env, file_actions=actions, setsigdef=_RESTORED)


def _above_stdio(stdio: tuple[int, int, int]) -> tuple[int, int, int]:
    if any(source < target for target, source in enumerate(stdio)):
        raise ValueError(f"descriptors {stdio} overlap with 0, 1 and 2")
    return stdio


def _memory_file(content: bytes) -> int:
    if not content:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    source = os.memfd_create("input")
    os.write(source, content)
    os.lseek(source, 0, os.SEEK_SET)
    return source


def _content(output: int) -> bytes:
    return os.pread(output, _OUTPUT_LIMIT_BYTES, 0)
