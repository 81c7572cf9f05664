"""A container in a shim: its init and execs, and the verbs of the task API on them."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING

from aiocontainerd import api
from aiocontainerd.errors import AlreadyExists, FailedPrecondition, NotFound
from aiocontainerd.wire.times import time_to_wire
from aiocontainerd_shim.cgroups.cgroup import Cgroup
from aiocontainerd_shim.cgroups.cgroup import find as find_cgroup
from aiocontainerd_shim.cgroups.oom import OomPosition, OomWatch
from aiocontainerd_shim.io.stdio import Stdio
from aiocontainerd_shim.task.exits import Exits, Surroundings
from aiocontainerd_shim.task.init import InitProcess
from aiocontainerd_shim.task.process import ExecProcess, Process, Site
from aiocontainerd_shim.task.states import Action, State

if TYPE_CHECKING:
    import betterproto2

    from aiocontainerd_shim.children.reaper import Exit

log = logging.getLogger(__name__)

EXIT_TIMEOUT_S = 5.0
_KILLED = 128 + signal.SIGKILL


class Container:
    """One container and its processes."""

    def __init__(self, site: Site, init: InitProcess, around: Surroundings) -> None:
        self.site = site
        self.init = init
        self.execs: dict[str, ExecProcess] = {}
        self.cgroup: Cgroup | None = None
        self._around = around
        self._oom: OomWatch | None = None
        self._exits = Exits(init, self.execs, around, self._look_for_oom)

    def __repr__(self) -> str:
        return f"<Container {self.site.id} {self.init.state} execs={len(self.execs)}>"

    @property
    def idle(self) -> bool:
        """Whether nothing goes on in it."""
        return all(process.idle for process in self.processes)

    @property
    def processes(self) -> list[Process]:
        """The init and the execs."""
        return [self.init, *self.execs.values()]

    @property
    def oom(self) -> OomPosition | None:
        """How far the watch for OOM kills has come; None where there is no watch."""
        return self._oom.position if self._oom else None

    def watch_again(self, cgroup: Cgroup | None, oom: OomPosition | None) -> None:
        """Watch the processes and the cgroup of a container that was created before this process."""
        self._exits.init_over = self.init.exited.is_set()
        for process in self.processes:
            if process.pid and not process.exited.is_set():
                self._exits.watch(process)
        self.cgroup = cgroup
        if cgroup is not None and oom is not None:
            self._oom = OomWatch(self.site.id, cgroup, self._on_oom)
            self._oom.resume(oom)

    def process(self, exec_id: str) -> Process:
        """Return the init, or an exec by id. Raises NotFound."""
        return self.exec(exec_id) if exec_id else self.init

    def exec(self, exec_id: str) -> ExecProcess:
        """Return an exec by id. Raises NotFound."""
        try:
            return self.execs[exec_id]
        except KeyError:
            raise NotFound(f"process does not exist {exec_id}") from None

    async def create(self) -> None:
        """Create the container, and watch for its end from here on."""
        with self._around.reaper.claiming():
            await self.init.create()
            if self.init.pid:
                self._exits.watch(self.init)
                self._watch_cgroup()

    async def start(self) -> None:
        """Start the init. Its start event is queued before its exit can be."""
        async with self.init.lock:
            restored = self.init.state == State.RESTORING
            with self._around.reaper.claiming():
                await self.init.start()
                if restored:
                    self._exits.watch(self.init)
                    self._watch_cgroup()
            self._publish("/tasks/start", api.event_types.TaskStart(container_id=self.site.id, pid=self.init.pid))

    def add_exec(self, exec_id: str, stdio: Stdio, spec: bytes) -> None:
        """Take another process, to be started later. Raises AlreadyExists."""
        self.init.check(Action.EXEC)
        if exec_id in self.execs:
            raise AlreadyExists(f"id {exec_id}")
        process = ExecProcess(self.site, exec_id, stdio, spec)
        process.save()
        self.execs[exec_id] = process
        event = api.event_types.TaskExecAdded(container_id=self.site.id, exec_id=exec_id)
        self._publish("/tasks/exec-added", event)

    async def start_exec(self, exec_id: str) -> ExecProcess:
        """Start an exec. Raises FailedPrecondition if the init has exited."""
        process = self.exec(exec_id)
        self._check_init_runs()
        async with process.lock:
            self._check_init_runs()
            process.check(Action.START)  # before anything is tried: what runs already is no leftover of a failed start
            with self._around.reaper.claiming():
                await self._start_or_end(process)
                self._exits.watch(process)
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
            exited_at=time_to_wire(self.init.exited_at_ns),
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

    def _check_init_runs(self) -> None:
        if self._exits.init_over:
            raise FailedPrecondition(f"container {self.site.id} init process is not running")

    async def _start_or_end(self, process: ExecProcess) -> None:
        try:
            await process.start()
        except BaseException:
            if pid := process.leftover_pid():
                self._around.reaper.end(pid)
            raise

    async def _exit_told(self) -> None:
        """Wait until the exit of an init that never ran is published: its event comes before the delete event."""
        if not self.init.pid:
            return
        try:
            async with asyncio.timeout(EXIT_TIMEOUT_S):
                await self.init.exited.wait()
        except TimeoutError:
            log.warning(
                "container %s is deleted, but its init has not exited within %g s", self.site.id, EXIT_TIMEOUT_S
            )

    def _look_for_oom(self, exited: Exit) -> None:
        if self._oom is not None:
            self._oom.look(killed=exited.status == _KILLED)

    def _watch_cgroup(self) -> None:
        try:
            self.cgroup = find_cgroup(self.init.pid)
            refused = self.cgroup.enable_controllers()
            watch = OomWatch(self.site.id, self.cgroup, self._on_oom)
            watch.start()
        except (OSError, NotFound) as failure:
            log.debug("container %s: OOM kills will not be told: %s", self.site.id, failure)
        else:
            self._oom = watch
            for refusal in refused:
                log.debug("container %s: a cgroup controller was refused: %s", self.site.id, refusal)

    def _on_oom(self, container_id: str) -> None:
        self._publish("/tasks/oom", api.event_types.TaskOom(container_id=container_id))

    def _unwatch_cgroup(self) -> None:
        watch, self._oom = self._oom, None
        if watch is not None:
            watch.close()

    def _publish(self, topic: str, event: betterproto2.Message) -> None:
        self._around.publish(topic, event)
