"""Exits: on disk first, then told to waiters, then published (facts/runtime 4.4).

The init's exit is the last of its container. Where the container has no pid namespace of its own, what is left in it is
killed first. Then the exits of the execs come, then the init's.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from aiocontainerd import api
from aiocontainerd.wire.times import time_to_wire
from aiocontainerd_shim.task.init import InitProcess
from aiocontainerd_shim.task.process import ExecProcess, Process
from aiocontainerd_shim.task.states import State

if TYPE_CHECKING:
    import betterproto2

    from aiocontainerd_shim.children.reaper import Exit, Reaper


class Surroundings(msgspec.Struct, frozen=True):
    """The means that a shim gives its containers: exits of children, a way out for events, tasks of its own."""

    reaper: Reaper
    publish: Callable[[str, betterproto2.Message], None]
    spawn: Callable[[Coroutine[object, object, None]], object]


class Exits:
    """Takes the exits of one container's processes."""

    def __init__(
        self,
        init: InitProcess,
        execs: Mapping[str, ExecProcess],
        around: Surroundings,
        on_exit: Callable[[Exit], None],
    ) -> None:
        """`on_exit` is called as soon as an exit is known, before it is recorded."""
        self.init_over = init.exited.is_set()
        """Whether the init has exited, recorded or not."""
        self._init = init
        self._execs = execs
        self._around = around
        self._on_exit = on_exit

    def watch(self, process: Process) -> None:
        """Take the exit of a running process when it comes."""
        self._around.reaper.watch(process.pid, lambda exited: self._exited(process, exited))

    def _exited(self, process: Process, exited: Exit) -> None:
        self._on_exit(exited)
        if process is self._init:
            self.init_over = True
            self._around.spawn(self._end_of_init(exited))
        else:
            self._around.spawn(self._record_and_publish(process, exited))

    async def _end_of_init(self, exited: Exit) -> None:
        init = self._init
        if not has_private_pid_namespace(init.site.bundle):
            await init.kill_all()
        if init.state == State.PAUSED:
            await init.thaw()
        for process in list(self._execs.values()):
            async with process.lock:  # once the lock is free, an exec that is starting now runs or has failed
                running = process.state == State.RUNNING
            if running:
                await process.exited.wait()
        await self._record_and_publish(init, exited)

    async def _record_and_publish(self, process: Process, exited: Exit) -> None:
        """Write the exit status to the bundle and release the waiters, then publish the exit event."""
        async with process.lock:
            process.finished(exited)
        event = api.event_types.TaskExit(
            container_id=process.site.id,
            id=process.exec_id or process.site.id,
            pid=process.pid,
            exit_status=exited.status,
            exited_at=time_to_wire(exited.exited_at_ns),
        )
        self._around.publish("/tasks/exit", event)


class _Namespace(msgspec.Struct):
    type: str = ""
    path: str = ""


class _Linux(msgspec.Struct):
    namespaces: list[_Namespace] = []


class _Spec(msgspec.Struct):
    linux: _Linux | None = None


def has_private_pid_namespace(bundle: Path) -> bool:
    """Return whether the spec asks for a pid namespace of the container's own; False for an unreadable spec."""
    try:
        spec = msgspec.json.decode((bundle / "config.json").read_bytes(), type=_Spec)
    except (OSError, msgspec.MsgspecError):
        return False
    namespaces = spec.linux.namespaces if spec.linux else []
    return any(namespace.type == "pid" and not namespace.path for namespace in namespaces)
