"""Keep the process of an isolated plugin: start it, wait until it serves, start it again when it ends.

The pause before a new start is a second, then two, four, up to `io.containerd.timeout.plugin.retry`. After a process
that ran for a minute it is a second again. `hung` ends a process that answers nothing, after it told where it is;
`stuck` ends one whose calls miss their deadlines. `restart` ends one on request, and the next one starts at once. The
process ends with the daemon, even if the daemon is killed. The end of a process is one line in the log.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread

from aiocontainerd import durations
from aiocontainerd.config.timeouts import PLUGIN_INIT, PLUGIN_RETRY, PLUGIN_STOP
from aiocontainerd.errors import Unavailable, text_of
from aiocontainerd.guard import stacks
from aiocontainerd.sys import cgroup
from aiocontainerd_proxy import cgroups
from aiocontainerd_proxy.backoff import Backoff
from aiocontainerd_proxy.child import Child, LastWords, relay
from aiocontainerd_proxy.limits import Limits
from aiocontainerd_proxy.link import NotReady

HEALTHY_S = 60.0
"""A process that ran for this long is started again after the first pause."""
STOP_PART = 0.8
"""The part of the plugin's `stop` limit between SIGTERM and SIGKILL. The rest is for what comes after SIGKILL."""
LAST_WORDS_S = 0.5
"""How long to read the last output of a process that ended. Its own children may keep the pipes open for longer."""
FATE_S = 2.0
"""How long after its connection was lost the end of a process is waited for."""
STACKS_S = 2.0
"""How long a process has to write its stacks."""
ASKS_FOR_STACKS = signal.SIGUSR2
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)
"""Signals at which a process writes its stacks by itself."""
_POLL_S = 0.02


class Supervisor:
    """One process and its successors. `keep` runs as a task. Calls `changed` when one serves or ends."""

    def __init__(self, child: Child, log: logging.Logger, limits: Limits, changed: Callable[[], None]) -> None:
        self.child = child
        self.pid = 0
        self.starts = 0
        self.reason = ""
        """Why no process runs, and when one is started again; empty while one starts or runs."""
        self._log = log
        self._changed = changed
        self._limits = limits
        self._backoff = Backoff(lambda: limits(PLUGIN_RETRY))
        self._settled, self._over, self._again = anyio.Event(), anyio.Event(), anyio.Event()
        self._renewed = anyio.Event()
        self._serves = False
        self._process: anyio.abc.Process | None = None
        self._why = ""
        """Why the running process is being ended by the supervisor itself."""
        self._asked = False
        """Whether an operator asked for the next start."""
        self._pause_until = 0.0
        self._cgroup: list[str] = []
        self._oom_kills = 0
        """What the cgroup counted before the process was in it."""

    def __repr__(self) -> str:
        state = self.reason or ("serving" if self._serves else "starting")
        return f"<Supervisor of {self.child.uri} pid={self.pid} starts={self.starts}: {state}>"

    def statistics(self) -> dict[str, int]:
        """Return the number of starts, and the id of the process (0 for none)."""
        return {"starts": self.starts, "pid": self.pid}

    def rss_bytes(self) -> int | None:
        """Return the resident memory of the process, None if there is none."""
        sizes = (cgroup.read_text(f"/proc/{self.pid}/statm") or "").split()
        return int(sizes[1]) * os.sysconf("SC_PAGE_SIZE") if self.pid and sizes else None

    async def serving(self) -> None:
        """Wait until the process serves. Raise NotReady if it has ended, with how and when it is started again."""
        await self._settled.wait()
        if not self._serves:
            raise NotReady(self.reason)

    async def fate(self) -> str:
        """Wait for the end of a process whose connection was lost. Return how it ended, "" if it runs on."""
        with anyio.move_on_after(FATE_S):
            await self._over.wait()
        return self.reason if self._over.is_set() else ""

    async def restart(self) -> int:
        """End the process, start another one at once, and return its id when it serves. Raises Unavailable."""
        process, renewed = self._process, self._renewed
        if process is not None or self.reason:  # else one is being started
            self._asked, self._why = True, "was ended by request"
            self._again.set()
            if process is not None and process.returncode is None:
                with anyio.CancelScope(shield=True):
                    await _end(process, STOP_PART * self._limits(PLUGIN_STOP))
            await renewed.wait()
        try:
            await self.serving()
        except NotReady as error:
            raise Unavailable(f"plugin {self.child.uri}: its process {error.message}") from error
        return self.pid

    async def hung(self, silent_s: float) -> None:
        """End a process that answered nothing for `silent_s` seconds, and tell the line that it was in."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        where = stacks.place(await _stacks_of(process.pid, self.child.stacks))
        at = f" at {where}" if where else ""
        self._why = f"answered nothing for {durations.render(silent_s)}{at} and was ended"
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def stuck(self, last_error: str) -> None:
        """End a process in which a method missed its deadline again and again."""
        process = self._process
        if process is not None and process.returncode is None:
            self._why = f"missed one deadline after the other and was ended (the last: {last_error})"
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    async def keep(self) -> None:
        """Run the process again and again, until cancelled."""
        try:
            while True:
                await self._keep_one()
        finally:
            self._settle(serves=False, reason="has been stopped")
            self._over.set()
            self._renewed.set()

    async def _keep_one(self) -> None:
        """Run the process once, then wait until it may be started again."""
        self._again, self._why = anyio.Event(), ""
        try:
            await self._run_once(anyio.current_time())
        except OSError as error:
            self._ended(f"cannot be started: {text_of(error)}", 0.0)
        with anyio.CancelScope(deadline=self._pause_until):
            await self._again.wait()
        self._asked, self.reason = False, ""
        self._settled, self._over = anyio.Event(), anyio.Event()
        self._renewed.set()
        self._renewed = anyio.Event()
        self._changed()

    def _ended(self, ending: str, ran_s: float, words: str = "") -> None:
        """Note and log how the process ended, and when the next one is started. Callers of `fate` go on.

        Its last words are in the log already.
        """
        if self._asked or ran_s >= HEALTHY_S:
            self._backoff.reset()
        pause_s = 0.0 if self._asked else self._backoff.take()
        self._pause_until = anyio.current_time() + pause_s
        again = f"started again {_when(pause_s)}"
        self._settle(serves=False, reason=f"{ending}{f' ({words})' if words else ''}; {again}")
        self._over.set()
        level = logging.INFO if self._asked else logging.ERROR
        self._log.log(level, "the process of plugin %s %s; %s", self.child.uri, ending, again)

    def _settle(self, *, serves: bool, reason: str = "") -> None:
        self._serves, self.reason = serves, reason
        self._settled.set()
        self._changed()

    async def _run_once(self, began: float) -> None:
        """Start the process and wait for its end. Raises OSError if it cannot be started."""
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            try:
                process = await self._open(write)
            finally:
                os.close(write)
            async with self._in_cgroup(process.pid):
                await self._attend(process, read, began)
        finally:
            os.close(read)

    async def _open(self, ready_fd: int) -> anyio.abc.Process:
        child = self.child
        process = await anyio.open_process(
            child.command(ready_fd),
            stdin=subprocess.DEVNULL,
            env=child.environment(),
            cwd="/",
            pass_fds=(ready_fd,),
            start_new_session=True,
        )
        self._process, self.pid = process, process.pid
        self.starts += 1
        self._log.info("the process of plugin %s is started", child.uri, extra={"fields": {"pid": process.pid}})
        return process

    async def _attend(self, process: anyio.abc.Process, ready: int, began: float) -> None:
        """Log what the process prints until it has ended, its output after SIGTERM included; tell how it ended."""
        output = {"stdout": process.stdout, "stderr": process.stderr}
        scopes = [anyio.CancelScope(shield=True) for _ in output]
        words, silent = LastWords(), anyio.Event()
        try:
            async with anyio.create_task_group() as group:
                for scope, (name, stream) in zip(scopes, output.items(), strict=True):
                    if stream is not None:
                        group.start_soon(
                            self._relay, stream, name, scope, words, silent, name=f"{self.child.uri}:{name}"
                        )
                group.start_soon(self._await_ready, process, ready, name=f"{self.child.uri}:start")
                try:
                    status = await process.wait()
                    ran_s = anyio.current_time() - began
                    if status > 0:
                        with anyio.move_on_after(LAST_WORDS_S):
                            await silent.wait()
                    ending = self._why or await self._how(status)
                    self._ended(ending, ran_s, words.text if status > 0 and not self._why else "")
                finally:
                    with anyio.CancelScope(shield=True):
                        await _end(process, STOP_PART * self._limits(PLUGIN_STOP))
                    for scope in scopes:
                        scope.deadline = anyio.current_time() + LAST_WORDS_S
                    group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await process.aclose()
            self._process, self.pid = None, 0

    async def _how(self, status: int) -> str:
        """Return how the process ended, with the line if it crashed, and whether the kernel ran out of memory."""
        how = _how(status)
        if -status == signal.SIGKILL:
            killed = await anyio.to_thread.run_sync(cgroups.oom_kills, self._cgroup)
            return f"{how} because memory ran out" if killed > self._oom_kills else how
        if -status not in CRASHES:
            return how
        where = stacks.place(await anyio.to_thread.run_sync(_text_of, self.child.stacks))
        return f"{how} at {where}" if where else how

    async def _relay(
        self,
        stream: anyio.abc.ByteReceiveStream,
        name: str,
        scope: anyio.CancelScope,
        words: LastWords,
        silent: anyio.Event,
    ) -> None:
        """Log what a stream of the process has. The end of its standard error is `silent`."""
        with scope:
            await relay(stream, self._log, words, plugin=self.child.uri, stream=name)
        if name == "stderr":
            silent.set()

    async def _await_ready(self, process: anyio.abc.Process, ready: int) -> None:
        """Wait until the process says that it serves. Kill it if that takes too long."""
        limit_s = self._limits(PLUGIN_INIT)
        with anyio.move_on_after(limit_s):
            await anyio.wait_readable(ready)
            if os.read(ready, 1):
                self._settle(serves=True)
            return
        self._why = f"did not serve within {durations.render(limit_s)} and was ended"
        process.kill()

    @asynccontextmanager
    async def _in_cgroup(self, pid: int) -> AsyncIterator[None]:
        name = cgroups.name_of(self.child.uri, self.child.state)
        with anyio.CancelScope(shield=True):
            directories, refused = await anyio.to_thread.run_sync(cgroups.join, name, pid)
            self._cgroup = directories
            self._oom_kills = await anyio.to_thread.run_sync(cgroups.oom_kills, directories)
        for refusal in refused:
            self._log.debug("plugin %s has no cgroup of its own: %s", self.child.uri, refusal)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                refused = await anyio.to_thread.run_sync(cgroups.remove, directories)
            for refusal in refused:
                self._log.debug("a cgroup of plugin %s stays: %s", self.child.uri, refusal)


async def _end(process: anyio.abc.Process, grace_s: float) -> None:
    """Send SIGTERM to the process. Send SIGKILL after `grace_s` seconds, and to whatever it leaves running."""
    if process.returncode is None:
        process.terminate()
        with anyio.move_on_after(grace_s):
            await process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    named = {one.value: one.name for one in signal.Signals}  # most of the real-time signals have no name
    return f"was ended by {named.get(-status, f'signal {-status}')}"


def _when(pause_s: float) -> str:
    return f"in {durations.render(pause_s)}" if pause_s else "at once"


async def _stacks_of(pid: int, file: Path) -> str:
    """Have a process write its stacks, and return them; "" if it writes none in time."""
    before = len(await anyio.to_thread.run_sync(_text_of, file))
    with suppress(ProcessLookupError):
        os.kill(pid, ASKS_FOR_STACKS)
    seen = written = ""
    with anyio.move_on_after(STACKS_S):
        while not written or written != seen:
            await anyio.sleep(_POLL_S)
            seen, written = written, (await anyio.to_thread.run_sync(_text_of, file))[before:]
    return written


def _text_of(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except FileNotFoundError:
        return ""
