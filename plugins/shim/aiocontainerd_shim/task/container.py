"""A container in a shim: its init and execs, and the order of their ends (facts/runtime 4.4).

The init's exit is the last of the container. Where the container has no pid namespace of its own, what is left in it is
killed first; then the execs' exits come, then the init's.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from aiocontainerd import api, timestamps
from aiocontainerd.errors import AlreadyExists, FailedPrecondition, NotFound
from aiocontainerd_shim.io.stdio import Stdio
from aiocontainerd_shim.rest.memory import RestedContainer
from aiocontainerd_shim.task import cgroups
from aiocontainerd_shim.task.init import InitProcess
from aiocontainerd_shim.task.oom import OomWatch
from aiocontainerd_shim.task.process import ExecProcess, Process, Site
from aiocontainerd_shim.task.states import Action, State

if TYPE_CHECKING:
    import betterproto2

    from aiocontainerd_shim.rest.descriptors import Descriptors
    from aiocontainerd_shim.rest.memory import RestedProcess
    from aiocontainerd_shim.task.reaper import Exit, Reaper

log = logging.getLogger(__name__)

EXIT_TIMEOUT_S = 5.0
_KILLED = 128 + signal.SIGKILL


class Surroundings(msgspec.Struct, frozen=True):
    """What a container needs of its shim: children's exits, events out, tasks that live as long as the shim."""

    reaper: Reaper
    publish: Callable[[str, betterproto2.Message], None]
    spawn: Callable[[Coroutine[object, object, None]], object]


class Container:
    """One container and its processes."""

    def __init__(self, site: Site, init: InitProcess, around: Surroundings) -> None:
        self.site = site
        self.init = init
        self.execs: dict[str, ExecProcess] = {}
        self.cgroup: cgroups.Cgroup | None = None
        self._around = around
        self._oom: OomWatch | None = None
        self._init_over = False

    def __repr__(self) -> str:
        return f"<Container {self.site.id} {self.init.state} execs={len(self.execs)}>"

    @property
    def can_rest(self) -> bool:
        """Whether nothing is going on in it."""
        return all(process.can_rest for process in (self.init, *self.execs.values()))

    def rested(self, held: Descriptors) -> RestedContainer:
        """What `adopt` needs."""
        return RestedContainer(
            id=self.site.id,
            bundle=str(self.site.bundle),
            binary=self.site.runtime.binary,
            root=self.site.runtime.root,
            options=self.site.options,
            init=self.init.rested(held),
            execs=[process.rested(held) for process in self.execs.values()],
            cgroup=self.cgroup.paths if self.cgroup else None,
            oom=self._oom.rested(held) if self._oom else None,
        )

    def adopt(self, rested: RestedContainer, fds: Sequence[int]) -> None:
        """Go on as the container another worker has left."""
        self._adopt_process(self.init, rested.init, fds)
        self._init_over = self.init.exited.is_set()
        for record in rested.execs:
            process = ExecProcess(self.site, record.exec_id, record.stdio, record.spec)
            self._adopt_process(process, record, fds)
            self.execs[record.exec_id] = process
        if rested.cgroup is not None:
            self.cgroup = cgroups.Cgroup(rested.cgroup)
        if rested.oom is not None and self.cgroup is not None:
            self._oom = OomWatch(self.site.id, self.cgroup, self._on_oom)
            self._oom.adopt(rested.oom, fds)

    def process(self, exec_id: str) -> Process:
        """The init, or an exec by id. Raises NotFound."""
        return self.exec(exec_id) if exec_id else self.init

    def exec(self, exec_id: str) -> ExecProcess:
        """An exec by id. Raises NotFound."""
        try:
            return self.execs[exec_id]
        except KeyError:
            raise NotFound(f"process does not exist {exec_id}") from None

    async def create(self) -> None:
        """Create the container, and learn of its end from here on."""
        with self._around.reaper.claiming():
            await self.init.create()
            if self.init.pid:
                self._watch(self.init)
                self._watch_cgroup()

    async def start(self) -> None:
        """Start the init; its start event is queued before its exit can be."""
        async with self.init.lock:
            restored = self.init.state == State.RESTORING
            with self._around.reaper.claiming():
                await self.init.start()
                if restored:
                    self._watch(self.init)
                    self._watch_cgroup()
            self._publish("/tasks/start", api.event_types.TaskStart(container_id=self.site.id, pid=self.init.pid))

    def add_exec(self, exec_id: str, stdio: Stdio, spec: bytes) -> None:
        """Take another process to start later. Raises AlreadyExists."""
        self.init.check(Action.EXEC)
        if exec_id in self.execs:
            raise AlreadyExists(f"id {exec_id}")
        process = ExecProcess(self.site, exec_id, stdio, spec)
        process.save()
        self.execs[exec_id] = process
        event = api.event_types.TaskExecAdded(container_id=self.site.id, exec_id=exec_id)
        self._publish("/tasks/exec-added", event)

    async def start_exec(self, exec_id: str) -> ExecProcess:
        """Start an exec. Raises FailedPrecondition where the init has exited."""
        process = self.exec(exec_id)
        self._check_init_runs()
        async with process.lock:
            self._check_init_runs()
            with self._around.reaper.claiming():
                await self._start_or_end(process)
                self._watch(process)
            event = api.event_types.TaskExecStarted(container_id=self.site.id, exec_id=exec_id, pid=process.pid)
            self._publish("/tasks/exec-started", event)
        return process

    async def delete_exec(self, exec_id: str) -> ExecProcess:
        """Forget an exec."""
        process = self.exec(exec_id)
        async with process.lock:
            await process.delete()
        self.execs.pop(exec_id, None)
        return process

    async def delete(self) -> None:
        """Remove the container and whatever the shim holds for it."""
        async with self.init.lock:
            await self.init.delete()
        await asyncio.gather(*(process.close_streams() for process in self.execs.values()))
        self._unwatch_cgroup()
        await self._exit_told()
        event = api.event_types.TaskDelete(
            container_id=self.site.id,
            pid=self.init.pid,
            exit_status=self.init.exit_status,
            exited_at=timestamps.to_wire(self.init.exited_at_ns),
            id="",
        )
        self._publish("/tasks/delete", event)

    async def pause(self) -> None:
        """Freeze the container."""
        async with self.init.lock:
            await self.init.pause()
        self._publish("/tasks/paused", api.event_types.TaskPaused(container_id=self.site.id))

    async def resume(self) -> None:
        """Thaw the container."""
        async with self.init.lock:
            await self.init.resume()
        self._publish("/tasks/resumed", api.event_types.TaskResumed(container_id=self.site.id))

    def _adopt_process(self, process: Process, rested: RestedProcess, fds: Sequence[int]) -> None:
        process.adopt(rested, fds)
        if process.pid and not process.exited.is_set():
            self._watch(process)

    def _check_init_runs(self) -> None:
        if self._init_over:
            raise FailedPrecondition(f"container {self.site.id} init process is not running")

    async def _start_or_end(self, process: ExecProcess) -> None:
        try:
            await process.start()
        except BaseException:
            if pid := process.leftover_pid():
                self._around.reaper.end(pid)
            raise

    async def _exit_told(self) -> None:
        """Wait for the exit of an init that was deleted before it ran, for its event comes first."""
        if not self.init.pid:
            return
        try:
            async with asyncio.timeout(EXIT_TIMEOUT_S):
                await self.init.exited.wait()
        except TimeoutError:
            log.warning("container %s: deleted, but its init has not exited", self.site.id)

    def _watch(self, process: Process) -> None:
        self._around.reaper.watch(process.pid, lambda exited: self._on_exit(process, exited))

    def _on_exit(self, process: Process, exited: Exit) -> None:
        if self._oom is not None:
            self._oom.look(killed=exited.status == _KILLED)
        if process is self.init:
            self._init_over = True
            self._around.spawn(self._init_exited(exited))
        else:
            self._around.spawn(self._process_exited(process, exited))

    async def _process_exited(self, process: Process, exited: Exit) -> None:
        async with process.lock:
            process.finished(exited)
        event = api.event_types.TaskExit(
            container_id=self.site.id,
            id=process.exec_id or self.site.id,
            pid=process.pid,
            exit_status=exited.status,
            exited_at=timestamps.to_wire(exited.exited_at_ns),
        )
        self._publish("/tasks/exit", event)

    async def _init_exited(self, exited: Exit) -> None:
        if not has_private_pid_namespace(self.site.bundle):
            await self.init.kill_all()
        if self.init.state == State.PAUSED:
            await self.init.thaw()
        for process in list(self.execs.values()):
            async with process.lock:  # one that is starting now runs, or has failed, once its lock is free
                running = process.state == State.RUNNING
            if running:
                await process.exited.wait()
        await self._process_exited(self.init, exited)

    def _watch_cgroup(self) -> None:
        try:
            self.cgroup = cgroups.find(self.init.pid)
            refused = self.cgroup.enable_controllers()
            watch = OomWatch(self.site.id, self.cgroup, self._on_oom)
            watch.start()
        except (OSError, NotFound) as failure:
            log.debug("container %s: no OOM events: %s", self.site.id, failure)
        else:
            self._oom = watch
            for refusal in refused:
                log.debug("container %s: controllers: %s", self.site.id, refusal)

    def _on_oom(self, container_id: str) -> None:
        self._publish("/tasks/oom", api.event_types.TaskOom(container_id=container_id))

    def _unwatch_cgroup(self) -> None:
        watch, self._oom = self._oom, None
        if watch is not None:
            watch.close()

    def _publish(self, topic: str, event: betterproto2.Message) -> None:
        self._around.publish(topic, event)


class _Namespace(msgspec.Struct):
    type: str = ""
    path: str = ""


class _Linux(msgspec.Struct):
    namespaces: list[_Namespace] = []


class _Spec(msgspec.Struct):
    linux: _Linux | None = None


def has_private_pid_namespace(bundle: Path) -> bool:
    """Whether the spec asks for a pid namespace of the container's own; a spec that cannot be read does not."""
    try:
        spec = msgspec.json.decode((bundle / "config.json").read_bytes(), type=_Spec)
    except (OSError, msgspec.MsgspecError):
        return False
    namespaces = spec.linux.namespaces if spec.linux else []
    return any(namespace.type == "pid" and not namespace.path for namespace in namespaces)
