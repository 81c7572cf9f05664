"""Keeps the process of an isolated plugin: starts it, waits until it serves, starts it again when it ends.

A process that ends is started again after a second, then two, four, up to a minute; one that ran for a minute starts
over. It ends with the daemon, whatever ends that.
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
from aiocontainerd.sys import cgroup
from aiocontainerd_proxy import cgroups
from aiocontainerd_proxy.backoff import Backoff
from aiocontainerd_proxy.child import Child, relay
from aiocontainerd_proxy.link import NotReady

START_TIMEOUT_S = 30.0
"""From the start of the process until it serves."""
STOP_TIMEOUT_S = 8.0
"""From SIGTERM to SIGKILL: the calls in flight, and the plugin's own clean-up."""
LAST_WORDS_S = 0.5
"""What a process that ended printed last is read for this long: what it left running may keep its pipes open."""


class Supervisor:
    """One process and its successors. `keep` is its task; `changed` is called whenever it began or ceased to serve."""

    def __init__(self, child: Child, log: logging.Logger, changed: Callable[[], None]) -> None:
        self.child = child
        self.pid = 0
        self.starts = 0
        self.reason = ""
        """Why it does not run now, and when it is started again; empty while it starts or runs."""
        self._log = log
        self._changed = changed
        self._backoff = Backoff()
        self._settled = anyio.Event()
        self._serves = False

    def __repr__(self) -> str:
        state = self.reason or ("serving" if self._serves else "starting")
        return f"<Supervisor of {self.child.uri} pid={self.pid} starts={self.starts}: {state}>"

    def statistics(self) -> dict[str, int]:
        """How often it was started, and the process there is now (0 for none)."""
        return {"starts": self.starts, "pid": self.pid}

    def rss_bytes(self) -> int | None:
        """Memory of the process, None where there is none."""
        sizes = (cgroup.read_text(f"/proc/{self.pid}/statm") or "").split()
        return int(sizes[1]) * os.sysconf("SC_PAGE_SIZE") if self.pid and sizes else None

    async def serving(self) -> None:
        """Wait while the process starts. Raises NotReady where it has ended, saying how and when it is tried again."""
        await self._settled.wait()
        if not self._serves:
            raise NotReady(self.reason)

    async def keep(self) -> None:
        """Run the process, again and again, until cancelled."""
        try:
            while True:
                await self._keep_one()
        finally:
            self._settle(serves=False, reason="has been stopped")

    async def _keep_one(self) -> None:
        """Run the process once, and wait until it may be started again."""
        began = anyio.current_time()
        ending = await self._run_once()
        pause = self._backoff.after(anyio.current_time() - began)
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
        """Start the process and wait for its end; how it ended."""
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
        """Relay what the process prints until it has ended; a process that is to end may say why, and what it left."""
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
                        await _end(process)
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
        """Until the process says that it serves; one that takes too long is ended."""
        with anyio.move_on_after(START_TIMEOUT_S):
            await anyio.wait_readable(ready)
            if os.read(ready, 1):
                self._settle(serves=True)
            return
        limit = durations.render(START_TIMEOUT_S)
        self._log.error("the process of plugin %s does not serve within %s; ended", self.child.uri, limit)
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


async def _end(process: anyio.abc.Process) -> None:
    """End the process and what it started, by SIGTERM and if need be by SIGKILL."""
    if process.returncode is None:
        process.terminate()
        with anyio.move_on_after(STOP_TIMEOUT_S):
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
