"""Tasks and their processes: turns calls of the interface into calls of the task API (facts/runtime 4.1, 4.2)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any as Untyped

import anyio
import anyio.to_thread

from aiocontainerd import identifiers
from aiocontainerd.errors import ContainerdError, InvalidArgument, NotFound
from aiocontainerd.interfaces.runtime import (
    IO,
    CreateOptions,
    ExecOptions,
    Exit,
    ProcessInfo,
    ProcessState,
    ProcessStatus,
)
from aiocontainerd.rpc.ttrpc.client import TtrpcClosed
from aiocontainerd.typeurl import Any
from aiocontainerd.wire.anys import any_from_wire, any_to_wire
from aiocontainerd.wire.mounts import mounts_to_wire
from aiocontainerd.wire.tasks import io_from_wire
from aiocontainerd.wire.times import time_from_wire
from aiocontainerd_runtime_v2 import known
from aiocontainerd_runtime_v2.deadlines import Deadlines
from aiocontainerd_runtime_v2.known import KnownInit
from aiocontainerd_runtime_v2.moves import Moves
from aiocontainerd_runtime_v2.shim import FOREVER_S, Shim
from aiocontainerd_runtime_v2.waits import Spawn, Waits

_NONE: Mapping[str, str] = MappingProxyType({})


class ShimProcess:
    """Init (`exec_id` "") or an exec of a task."""

    def __init__(self, shim: Shim, deadlines: Deadlines, waits: Waits, exec_id: str = "") -> None:
        self.shim = shim
        self._deadlines = deadlines
        self._waits = waits
        self._exec_id = exec_id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id!r} of {self.shim!r}>"

    @property
    def id(self) -> str:
        """The container's id for init, the exec's otherwise."""
        return self._exec_id or self.shim.bundle.id

    async def start(self) -> int:
        """Start it; return its pid."""
        response = await self._call("Start", exec_id=self._exec_id)
        pid: int = response.pid or (await self.state()).pid
        if not self._exec_id:
            self.shim.pid = pid
        return pid

    async def state(self) -> ProcessState:
        """Return its state as the shim sees it. Raises NotFound if the shim is gone."""
        try:
            response = await self.shim.call("State", limit_s=self._deadlines.state_s, exec_id=self._exec_id)
        except TtrpcClosed as closed:
            raise NotFound(f"task {self.shim.bundle.id}: its shim is gone") from closed
        return _state(self.id, response)

    async def kill(self, signal: int, *, all_processes: bool = False) -> None:
        """Send a signal. Raises NotFound if the shim is gone, since the container is gone too."""
        try:
            await self._call("Kill", exec_id=self._exec_id, signal=signal, all=all_processes)
        except TtrpcClosed as closed:
            raise NotFound(f"task {self.shim.bundle.id}: its shim is gone") from closed

    async def resize_pty(self, width: int, height: int) -> None:
        """Set the size of the terminal."""
        await self._call("ResizePty", exec_id=self._exec_id, width=width, height=height)

    async def close_io(self) -> None:
        """Close stdin."""
        await self._call("CloseIO", exec_id=self._exec_id, stdin=True)

    async def wait(self) -> Exit:
        """Wait for the exit. If the shim dies first, wait for what its clean-up records."""
        return await self._waits.wait(self._exec_id)

    async def delete(self) -> Exit:
        """Forget an exec that has exited."""
        response = await self._call("Delete", exec_id=self._exec_id)
        self._waits.forget(self._exec_id)
        return exit_of(response)

    async def _call(self, method: str, **fields: object) -> Untyped:
        return await self.shim.call(method, limit_s=self._deadlines.call_s, **fields)


class ShimTask(ShimProcess):
    """A task behind a shim. `delete_task` ends it, which concerns more than the shim."""

    def __init__(
        self,
        shim: Shim,
        deadlines: Deadlines,
        spawn: Spawn,
        delete_task: Callable[[ShimTask], Awaitable[Exit]],
        moves: Moves,
    ) -> None:
        super().__init__(shim, deadlines, Waits(self._fetch_exit, spawn))
        self._delete_task = delete_task
        self._moves = moves
        self._spawn = spawn
        self._known = KnownInit()
        self._recording = anyio.Lock()
        self._io: IO | None = None

    @property
    def namespace(self) -> str:
        """The namespace it is in."""
        return self.shim.bundle.namespace

    @property
    def bundle(self) -> str:
        """Path of the bundle directory."""
        return str(self.shim.bundle.path)

    @property
    def pid(self) -> int:
        """Pid of init as last told by the shim; 0 before there is one."""
        return self.shim.pid

    async def create(self, options: CreateOptions) -> None:
        """Have the shim create the container."""
        with self._changing() as settle:
            response = await self.shim.call_either(
                "Create",
                limit_s=self._deadlines.call_s,
                bundle=self.bundle,
                rootfs=mounts_to_wire(options.rootfs),
                terminal=options.io.terminal,
                stdin=options.io.stdin,
                stdout=options.io.stdout,
                stderr=options.io.stderr,
                checkpoint=options.checkpoint,
                options=any_to_wire(chosen_options(options)),
            )
            self.shim.pid = response.pid
            self._io = options.io
            settle(self._as(ProcessStatus.CREATED))

    async def start(self) -> int:
        """Run init; return its pid."""
        with self._changing() as settle:
            pid = await super().start()
            if self._io is not None:
                settle(self._as(ProcessStatus.RUNNING))
        self._record()
        return pid

    async def state(self) -> ProcessState:
        """Return the state of init: what the daemon knows for certain, else what the shim says."""
        certain = self._known.state()
        if certain is not None:
            return certain
        generation = self._known.generation
        state = await super().state()
        self.know(state, generation)
        return state

    def know(self, state: ProcessState, generation: int = 0) -> None:
        """Take a state that was certain at a generation of what is known. Only shims at rest are spared questions."""
        if self.shim.launcher.rests and not self.shim.joined:
            self._io = state.io
            self._known.learn(state, generation)

    def process(self, exec_id: str) -> ShimProcess:
        """Return the init for "", or else the exec."""
        if not exec_id:
            return self
        return ShimProcess(self.shim, self._deadlines, self._waits, exec_id)

    async def exec(self, exec_id: str, options: ExecOptions) -> ShimProcess:
        """Add an exec. Raises InvalidArgument for a bad id."""
        try:
            identifiers.validate(exec_id)
        except InvalidArgument as bad:
            raise InvalidArgument(f"invalid exec id {exec_id}: {bad.message}") from bad
        self._moves.expect()
        await self._call(
            "Exec",
            exec_id=exec_id,
            terminal=options.io.terminal,
            stdin=options.io.stdin,
            stdout=options.io.stdout,
            stderr=options.io.stderr,
            spec=any_to_wire(options.spec),
        )
        self._waits.forget(exec_id)
        return self.process(exec_id)

    async def pause(self) -> None:
        """Freeze every process."""
        await self._change("Pause", ProcessStatus.PAUSED)

    async def resume(self) -> None:
        """Thaw every process."""
        await self._change("Resume", ProcessStatus.RUNNING)

    async def _change(self, method: str, status: ProcessStatus) -> None:
        with self._changing() as settle:
            async with self._recording:
                await anyio.to_thread.run_sync(known.remove, self.shim.bundle)
            await self._call(method)
            if self._io is not None:
                settle(self._as(status))
        self._record()

    def _changing(self) -> AbstractContextManager[Callable[[ProcessState], None]]:
        rests = self.shim.launcher.rests and not self.shim.joined
        return self._known.changing() if rests else nullcontext(_ignore)

    def _as(self, status: ProcessStatus) -> ProcessState:
        return ProcessState(id=self.id, pid=self.shim.pid, status=status, io=self._io or IO())

    def _record(self) -> None:
        """Tell the next daemon what is known, while this one goes on."""
        if self._known.state() is not None:
            self._spawn(self._write_record, name=f"record {self.namespace}/{self.id}")

    async def _write_record(self) -> None:
        async with self._recording:
            state = self._known.state()
            if state is not None:
                await anyio.to_thread.run_sync(known.write, self.shim.bundle, state)

    async def pids(self) -> list[ProcessInfo]:
        """Return every process of the container."""
        response = await self._call("Pids")
        return [ProcessInfo(process.pid, any_from_wire(process.info)) for process in response.processes]

    async def checkpoint(self, path: str, options: Any | None) -> None:
        """Write a checkpoint into the directory `path`."""
        await self._call("Checkpoint", path=path, options=any_to_wire(options))

    async def update(self, resources: Any | None, annotations: Mapping[str, str] = _NONE) -> None:
        """Change resource limits."""
        await self._call("Update", resources=any_to_wire(resources), annotations=dict(annotations))

    async def stats(self) -> Any:
        """Return cgroup metrics, without the shim where the launcher can measure. Raises NotFound if there are none."""
        state = self._known.state()
        if state is not None and state.status is not ProcessStatus.STOPPED:
            return await self.shim.launcher.stats(self.shim.bundle.path, state.pid)
        response = await self.shim.call("Stats", limit_s=self._deadlines.stats_s)
        stats = any_from_wire(response.stats)
        if stats is None:
            raise NotFound(f"metrics of task {self.id}")
        return stats

    async def delete(self) -> Exit:
        """End the task, its shim and its bundle."""
        return await self._delete_task(self)

    def close(self) -> None:
        """Give back what the daemon holds of init."""
        self._known.close()

    async def delete_in_shim(self, *, limit_s: float) -> Exit:
        """Have the shim delete the container, and nothing else."""
        return exit_of(await self.shim.call("Delete", limit_s=limit_s))

    async def _fetch_exit(self, exec_id: str) -> Exit:
        try:
            return exit_of(await self.shim.call("Wait", limit_s=FOREVER_S, exec_id=exec_id))
        except TtrpcClosed:
            return await self.shim.recorded_exit()
        except ContainerdError:
            if self.shim.exit is not None and not exec_id:
                return self.shim.exit
            raise


def _ignore(_state: ProcessState) -> None:
    return


def chosen_options(options: CreateOptions) -> Any | None:
    """Return the runtime options of a create: its own, or else the container's."""
    given = options.options
    return given if given is not None and (given.type_url or given.value) else options.runtime_options


def exit_of(response: Untyped) -> Exit:
    """Return the exit that a Wait or Delete response tells."""
    return Exit(
        status=response.exit_status,
        exited_at_ns=time_from_wire(response.exited_at),
        pid=getattr(response, "pid", 0),
    )


def _state(process_id: str, response: Untyped) -> ProcessState:
    number = int(response.status)
    return ProcessState(
        id=process_id,
        pid=response.pid,
        status=ProcessStatus(number) if number in ProcessStatus._value2member_map_ else ProcessStatus.UNKNOWN,
        io=io_from_wire(response),
        exit_status=response.exit_status,
        exited_at_ns=time_from_wire(response.exited_at),
    )
