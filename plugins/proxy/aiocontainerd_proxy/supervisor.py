"""Keep the process of an isolated plugin: start it, wait until it serves, start it again when it ends.

The pause before a new start is a second, then two, four, up to `io.containerd.timeout.plugin.retry`. After a process
that ran for a minute it is a second again. The process ends with the daemon, even if the daemon is killed.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import anyio.to_thread

from aiocontainerd import durations
from aiocontainerd.config.timeouts import PLUGIN_INIT, PLUGIN_RETRY, PLUGIN_STOP
from aiocontainerd.sys import cgroup
from aiocontainerd_proxy import cgroups
from aiocontainerd_proxy.backoff import Backoff
from aiocontainerd_proxy.child import Child, relay
from aiocontainerd_proxy.limits import Limits
from aiocontainerd_proxy.link import NotReady

HEALTHY_S = 60.0
"""A process that ran for this long is started again after the first pause."""
STOP_PART = 0.8
"""The part of the plugin's `stop` limit between SIGTERM and SIGKILL. The rest is for what comes after SIGKILL."""
LAST_WORDS_S = 0.5
"""How long to read the last output of a process that ended. Its own children may keep the pipes open for longer."""


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
        self._settled = anyio.Event()
        self._serves = False

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

    async def keep(self) -> None:
        """Run the process again and again, until cancelled."""
        try:
            while True:
                await self._keep_one()
        finally:
            self._settle(serves=False, reason="has been stopped")

    async def _keep_one(self) -> None:
        """Run the process once, then wait until it may be started again."""
        began = anyio.current_time()
        ending = await self._run_once()
        if anyio.current_time() - began >= HEALTHY_S:
            self._backoff.reset()
        pause = self._backoff.take()
        self._settle(serves=False, reason=f"{ending}; started again in {durations.render(pause)}")
        self._log.error("the process of plugin %s %s", self.child.uri, self.reason)
        await anyio.sleep(pause)
        self.reason, self._settled = "", anyio.Event()
        self._changed()

    def _settle(self, *, serves: bool, reason: str = "") -> None:
        self._serves, self.reason = serves, reason
        self._settled.set()
        self._changed()

    async def _run_once(self) -> str:
        """Start the process and wait for its end; return how it ended."""
        try:
            read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            return f"cannot be started: {error}"
        try:
            try:
                process = await self._open(write)
            except OSError as error:
                return f"cannot be started: {error}"
            finally:
                os.close(write)
            async with self._in_cgroup(process.pid):
                return await self._attend(process, read)
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
        self.pid = process.pid
        self.starts += 1
        self._log.info("the process of plugin %s is started", child.uri, extra={"fields": {"pid": process.pid}})
        return process

    async def _attend(self, process: anyio.abc.Process, ready: int) -> str:
        """Log what the process prints until it has ended, its output after SIGTERM included; return how it ended."""
        output = {"stdout": process.stdout, "stderr": process.stderr}
        scopes = [anyio.CancelScope(shield=True) for _ in output]
        try:
            async with anyio.create_task_group() as group:
                for scope, (name, stream) in zip(scopes, output.items(), strict=True):
                    if stream is not None:
                        group.start_soon(self._relay, stream, name, scope, name=f"{self.child.uri}:{name}")
                group.start_soon(self._await_ready, process, ready, name=f"{self.child.uri}:start")
                try:
                    status = await process.wait()
                finally:
                    with anyio.CancelScope(shield=True):
                        await _end(process, STOP_PART * self._limits(PLUGIN_STOP))
                    for scope in scopes:
                        scope.deadline = anyio.current_time() + LAST_WORDS_S
                    group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await process.aclose()
            self.pid = 0
        return _how(status)

    async def _relay(self, stream: anyio.abc.ByteReceiveStream, name: str, scope: anyio.CancelScope) -> None:
        with scope:
            await relay(stream, self._log, plugin=self.child.uri, stream=name)

    async def _await_ready(self, process: anyio.abc.Process, ready: int) -> None:
        """Wait until the process says that it serves. Kill it if that takes too long."""
        limit_s = self._limits(PLUGIN_INIT)
        with anyio.move_on_after(limit_s):
            await anyio.wait_readable(ready)
            if os.read(ready, 1):
                self._settle(serves=True)
            return
        self._log.error(
            "the process of plugin %s does not serve within %s; ended", self.child.uri, durations.render(limit_s)
        )
        process.kill()

    @asynccontextmanager
    async def _in_cgroup(self, pid: int) -> AsyncIterator[None]:
        name = cgroups.name_of(self.child.uri, self.child.state)
        with anyio.CancelScope(shield=True):
            directories, refused = await anyio.to_thread.run_sync(cgroups.join, name, pid)
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
