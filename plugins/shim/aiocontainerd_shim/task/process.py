"""A process of a container: its state, streams and end. `Process` is the base class, `ExecProcess` the exec.

`lock` serialises the verbs that change a process. An exit waits for the lock too: the event of a start always comes
before the event of the exit, however quickly the process dies.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from aiocontainerd.errors import FailedPrecondition, NotFound, Unknown, os_text
from aiocontainerd.timestamps import ZERO_NS
from aiocontainerd_shim.children.reaper import Exit
from aiocontainerd_shim.io.console import Console, ConsoleSocket
from aiocontainerd_shim.io.stdio import ProcessIO, Stdio, open_io, saying
from aiocontainerd_shim.oci.runtime import NoPid, OciError, OciRuntime, read_pid
from aiocontainerd_shim.task import records, states
from aiocontainerd_shim.task.states import Action, State

if TYPE_CHECKING:
    from aiocontainerd_shim.task.records import RuncOptions

log = logging.getLogger(__name__)

DRAIN_TIMEOUT_S = 10.0

StdioFds = tuple[int, int, int]
Launch = Callable[[str, StdioFds | None], Awaitable[int]]
"""An OCI runtime command that makes a process: takes a console socket path or three descriptors, gives the pid."""


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """The facts that all processes of one container share."""

    namespace: str
    id: str
    bundle: Path
    runtime: OciRuntime
    options: RuncOptions


class Process:
    """One process of a container."""

    is_init = False
    console_owner = "runc"
    """Whose console socket it is, in containerd's words."""

    def __init__(self, site: Site, exec_id: str, stdio: Stdio) -> None:
        self.site = site
        self.exec_id = exec_id
        self.stdio = stdio
        self.state = State.CREATED
        self.pid = 0
        self.exit_status = 0
        self.exited_at_ns = ZERO_NS
        self.exited = asyncio.Event()
        self.lock = asyncio.Lock()
        self.streams: ProcessIO | None = None
        """Of a started process without a terminal, until `close_streams`."""
        self._console: Console | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.exec_id or self.site.id} {self.state} pid={self.pid}>"

    def check(self, action: Action) -> None:
        """Raise the error that `action` meets in the present state."""
        states.check(self.state, action, init=self.is_init)

    def finished(self, exited: Exit) -> None:
        """Put the exit on disk, then release the waiters. Only `exits.py` calls this, and publishes the event after."""
        self.exit_status = exited.status
        self.exited_at_ns = exited.exited_at_ns
        if self.state != State.DELETED:
            self.state = State.STOPPED
        try:
            self.save()
        except OSError as failure:
            log.warning("%r: its exit could not be written to the bundle: %s", self, failure)
        finally:
            self.exited.set()

    def save(self) -> None:
        """Write the record of the process to the bundle."""
        over = self.exited_at_ns != ZERO_NS
        record = records.ProcessRecord(
            exec_id=self.exec_id,
            pid=self.pid,
            start_time=0 if over else records.start_time(self.pid),
            started=self.state not in (State.CREATED, State.RESTORING),
            stdin=self.stdio.stdin,
            stdout=self.stdio.stdout,
            stderr=self.stdio.stderr,
            terminal=self.stdio.terminal,
            exit_status=self.exit_status if over else None,
            exited_at_ns=self.exited_at_ns if over else None,
        )
        records.write_process(self.site.bundle, record)

    @property
    def idle(self) -> bool:
        """Whether nothing goes on with it. A terminal's bytes pass through the shim, so a terminal is never idle."""
        if self.lock.locked() or self._console is not None or self.state == State.RESTORING:
            return False
        return self.streams is None or self.streams.idle

    async def resize(self, width: int, height: int) -> None:
        """Set the size of the terminal in characters. Without a terminal, do nothing."""
        self.check(Action.RESIZE)
        if self._console is not None:
            self._console.resize(width, height)

    async def close_stdin(self) -> None:
        """Let stdin end once the client has closed it too."""
        ends = self._console or self.streams
        if ends is not None:
            await ends.close_stdin()

    async def launch(self, command: Launch) -> int:
        """Run an OCI runtime command that makes this process, with its streams. On failure, leave nothing open."""
        try:
            if self.stdio.terminal:
                return await self._launch_on_terminal(command)
            return await self._launch_on_files(command)
        except BaseException:
            await asyncio.shield(self.close_streams())
            raise

    async def drained(self) -> None:
        """Wait until all output has been taken, at most 10 s."""
        ends = self._console or self.streams
        if ends is not None:
            await ends.drained(DRAIN_TIMEOUT_S)

    async def close_streams(self) -> None:
        """Close the shim's ends of the streams."""
        ends = self._console or self.streams
        self._console = self.streams = None
        if ends is not None:
            await ends.aclose()

    async def _launch_on_terminal(self, command: Launch) -> int:
        with saying(f"failed to create {self.console_owner} console socket"):
            socket = ConsoleSocket()
        try:
            pid = await command(str(socket.path), None)
            with saying("failed to retrieve console master"):
                self._console = Console(await socket.receive())
        finally:
            socket.close()
        site = self.site
        await self._console.attach(self.stdio, namespace=site.namespace, container_id=site.id)
        return pid

    async def _launch_on_files(self, command: Launch) -> int:
        options = self.site.options
        self.streams = await open_io(
            self.stdio,
            namespace=self.site.namespace,
            container_id=self.site.id,
            io_uid=options.io_uid,
            io_gid=options.io_gid,
        )
        try:
            pid = await command("", self.streams.child_fds())
        except OciError as failure:
            failure.add_output(self.streams.runtime_said())
            raise
        finally:
            self.streams.child_started()
        self.streams.process_runs()
        return pid


class ExecProcess(Process):
    """Another process in a running container."""

    def __init__(self, site: Site, exec_id: str, stdio: Stdio, spec: bytes) -> None:
        super().__init__(site, exec_id, stdio)
        self.spec = spec
        self._pid_file = records.exec_pid_file(site.bundle, exec_id)

    async def start(self) -> None:
        """Start it. If that fails, it stays created, and its waiters are released."""
        self.check(Action.START)
        try:
            self.pid = await self.launch(self._execute)
        except BaseException as failure:
            self.exited.set()
            if isinstance(failure, NoPid):
                raise Unknown(str(failure).replace("container pid", "exec pid", 1)) from failure
            if isinstance(failure, OciError):
                raise Unknown(f"OCI runtime exec failed: {failure}") from failure
            raise
        self.state = State.RUNNING
        self.save()

    def leftover_pid(self) -> int:
        """Return the process that a failed start has made after all; 0 if there is none."""
        try:
            return read_pid(self._pid_file)
        except OciError:
            return 0

    def kill(self, signum: int) -> None:
        """Signal it."""
        self.check(Action.KILL)
        if not self.pid:
            raise FailedPrecondition("process not created")
        if self.exited.is_set():
            raise NotFound("process already finished")
        try:
            os.kill(self.pid, signum)
        except ProcessLookupError:
            raise NotFound("exec kill error: process already finished") from None
        except OSError as bad:
            raise Unknown(f"exec kill error: unknown error after kill: {os_text(bad)}") from bad

    async def delete(self) -> None:
        """Forget it."""
        self.check(Action.DELETE)
        await self.drained()
        await self.close_streams()
        records.remove_process(self.site.bundle, self.exec_id)
        self.state = State.DELETED

    async def _execute(self, console_socket: str, stdio: StdioFds | None) -> int:
        site = self.site
        spec_file = site.bundle / f"{self.exec_id}.process"
        try:
            _forget_file(self._pid_file)  # of an earlier start that failed: another process may have that pid by now
            records.replace_file(spec_file, self.spec)
            return await site.runtime.exec(site.id, spec_file, self._pid_file, console_socket, stdio)
        finally:
            _forget_file(spec_file)


def _forget_file(path: Path) -> None:
    path.unlink(missing_ok=True)
