"""The task service of the shim, `containerd.task.v3.Task`, and the same as v2 for older daemons (facts/runtime 4).

A shim runs once per container or pod, so its memory counts more than its comfort: it runs on plain asyncio and
imports neither anyio nor uvloop. Handlers validate, call the container, convert (`messages.py`). v2 and v3 differ in
the package of their messages only, so both answer with v3's.

What the OCI runtime does to a container runs to its end, whatever becomes of the caller (`operations.py`). If the
caller of Create goes before the container is created, the container is deleted once it is.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from aiocontainerd import api
from aiocontainerd.errors import AlreadyExists, ContainerdError, FailedPrecondition, InvalidArgument, NotFound, Unknown
from aiocontainerd.wire.anys import any_to_wire
from aiocontainerd.wire.mounts import mounts_from_wire
from aiocontainerd.wire.times import time_to_wire
from aiocontainerd_shim.cgroups import cgroup
from aiocontainerd_shim.oci import choice
from aiocontainerd_shim.oci.choice import Choice
from aiocontainerd_shim.oci.runtime import OciError, OciRuntime, runtime_root
from aiocontainerd_shim.task import messages, records
from aiocontainerd_shim.task.container import Container
from aiocontainerd_shim.task.init import Checkpoint, InitProcess
from aiocontainerd_shim.task.operations import Operations
from aiocontainerd_shim.task.process import Site

if TYPE_CHECKING:
    from aiocontainerd_shim.io.stdio import Stdio
    from aiocontainerd_shim.task.exits import Surroundings

log = logging.getLogger(__name__)

GIVEN_UP_AFTER_S = 3.0
"""How long a creation goes on whose caller has gone, before the OCI runtime is killed."""


class TaskService:
    """The containers of one shim."""

    service_name: ClassVar[str] = "containerd.task.v3.Task"

    def __init__(
        self,
        namespace: str,
        env: Mapping[str, str],
        around: Surroundings,
        *,
        choose_runtime: Callable[[str, Mapping[str, str], bytes], Choice] = choice.choose,
        shut_down: Callable[[], None],
        shim_pid: int = 0,
    ) -> None:
        """`env` is the environment of the OCI runtime. `shut_down` ends the shim.

        `choose_runtime` gives the OCI runtime for a `binary_name`, an environment and a spec. `shim_pid` is the process
        that stands for the shim; 0 means this one.
        """
        self._namespace = namespace
        self._env = env
        self._around = around
        self._choose_runtime = choose_runtime
        self._shut_down = shut_down
        self._shim_pid = shim_pid or os.getpid()
        self._containers: dict[str, Container] = {}
        self._operations = Operations()

    def __repr__(self) -> str:
        return f"<TaskService {self._namespace} containers={len(self._containers)}>"

    @property
    def containers(self) -> Iterable[Container]:
        """The containers that are created."""
        return self._containers.values()

    @property
    def idle(self) -> bool:
        """Whether nothing goes on with the containers, and the reaper watches their processes and nothing else."""
        if self._operations:
            return False
        processes = [process for container in self.containers for process in container.processes]
        alive = {process.pid for process in processes if process.pid and not process.exited.is_set()}
        return all(container.idle for container in self.containers) and alive == self._around.reaper.watched

    def adopt(
        self, container_id: str, bundle: Path, *, binary: str, root: str, options: records.RuncOptions, stdio: Stdio
    ) -> Container:
        """Take a container that was created before this process. The caller sets its processes right."""
        runtime = self._runtime(bundle, options, binary, root)
        site = Site(namespace=self._namespace, id=container_id, bundle=bundle, runtime=runtime, options=options)
        container = Container(site, InitProcess(site, stdio, (), Checkpoint()), self._around)
        self._containers[container_id] = container
        return container

    async def create(self, request: api.task_v3.CreateTaskRequest) -> api.task_v3.CreateTaskResponse:
        """Create a container from a bundle."""
        if request.id in self._containers or self._operations.is_creating(request.id):
            raise AlreadyExists(f"id {request.id}")
        container = self._new_container(request)
        creation = self._operations.creates(request.id, self._create(request, container))
        try:
            await asyncio.shield(creation)
        except asyncio.CancelledError:
            self._operations.creates(request.id, self._take_back(creation, container))
            raise
        return api.task_v3.CreateTaskResponse(pid=container.init.pid)

    async def start(self, request: api.task_v3.StartRequest) -> api.task_v3.StartResponse:
        """Start an init or an exec."""
        container = self._container(request.id)
        if request.exec_id:
            pid = (await self._operations.to_the_end(container.start_exec(request.exec_id))).pid
        else:
            await self._operations.to_the_end(container.start())
            pid = container.init.pid
        return api.task_v3.StartResponse(pid=pid)

    async def delete(self, request: api.task_v3.DeleteRequest) -> api.task_v3.DeleteResponse:
        """Remove an exec, or a container that is not running. If it is still being created, wait for that first."""
        await self._operations.created(request.id)
        container = self._container(request.id)
        if request.exec_id:
            return messages.deleted(await container.delete_exec(request.exec_id))
        await self._operations.to_the_end(self._delete_container(container))
        return messages.deleted(container.init)

    async def state(self, request: api.task_v3.StateRequest) -> api.task_v3.StateResponse:
        """Return the state of a process."""
        container = self._container(request.id)
        process = container.process(request.exec_id)
        return api.task_v3.StateResponse(
            id=process.exec_id or request.id,
            bundle=str(container.site.bundle),
            pid=process.pid,
            status=messages.status_of(container, process),
            stdin=process.stdio.stdin,
            stdout=process.stdio.stdout,
            stderr=process.stdio.stderr,
            terminal=process.stdio.terminal,
            exit_status=process.exit_status,
            exited_at=time_to_wire(process.exited_at_ns),
        )

    async def exec(self, request: api.task_v3.ExecProcessRequest) -> api.protobuf.Empty:
        """Take another process, to be started later."""
        container = self._container(request.id)
        if request.spec is None:
            raise InvalidArgument(f"exec {request.exec_id}: no process spec")
        spec = messages.process_spec(request.spec.value, terminal=request.terminal)
        container.add_exec(request.exec_id, messages.stdio_of(request), spec)
        return messages.empty()

    async def kill(self, request: api.task_v3.KillRequest) -> api.protobuf.Empty:
        """Signal a process, or with `all` every process of the container."""
        container = self._container(request.id)
        if request.exec_id:
            container.exec(request.exec_id).kill(request.signal)
        else:
            await self._operations.to_the_end(container.init.kill(request.signal, everyone=request.all))
        return messages.empty()

    async def wait(self, request: api.task_v3.WaitRequest) -> api.task_v3.WaitResponse:
        """Wait for a process to exit."""
        process = self._container(request.id).process(request.exec_id)
        await process.exited.wait()
        return api.task_v3.WaitResponse(exit_status=process.exit_status, exited_at=time_to_wire(process.exited_at_ns))

    async def pids(self, request: api.task_v3.PidsRequest) -> api.task_v3.PidsResponse:
        """Return every process of a container, with the ids of execs; none once the init has exited."""
        container = self._container(request.id)
        if container.init.exited.is_set():
            return api.task_v3.PidsResponse()
        try:
            pids = await container.site.runtime.pids(request.id)
        except OciError as failure:
            raise Unknown(failure.raw) from failure
        execs = {process.pid: exec_id for exec_id, process in container.execs.items()}
        return api.task_v3.PidsResponse(processes=[messages.process_info(pid, execs.get(pid)) for pid in pids])

    async def pause(self, request: api.task_v3.PauseRequest) -> api.protobuf.Empty:
        """Freeze a container."""
        await self._operations.to_the_end(self._container(request.id).pause())
        return messages.empty()

    async def resume(self, request: api.task_v3.ResumeRequest) -> api.protobuf.Empty:
        """Thaw a container."""
        await self._operations.to_the_end(self._container(request.id).resume())
        return messages.empty()

    async def checkpoint(self, request: api.task_v3.CheckpointTaskRequest) -> api.protobuf.Empty:
        """Write a checkpoint of a container into a directory."""
        container = self._container(request.id)
        await self._operations.to_the_end(container.init.checkpoint(messages.checkpoint_flags(request)))
        return messages.empty()

    async def update(self, request: api.task_v3.UpdateTaskRequest) -> api.protobuf.Empty:
        """Change the resources of a container."""
        init = self._container(request.id).init
        resources = messages.resources(request.resources.value) if request.resources is not None else b"{}"
        await self._operations.to_the_end(init.update(resources))
        return messages.empty()

    async def resize_pty(self, request: api.task_v3.ResizePtyRequest) -> api.protobuf.Empty:
        """Set the size of a terminal."""
        await self._container(request.id).process(request.exec_id).resize(request.width, request.height)
        return messages.empty()

    async def close_io(self, request: api.task_v3.CloseIoRequest) -> api.protobuf.Empty:
        """Let the stdin of a process end."""
        process = self._container(request.id).process(request.exec_id)
        if request.stdin:
            await process.close_stdin()
        return messages.empty()

    async def stats(self, request: api.task_v3.StatsRequest) -> api.task_v3.StatsResponse:
        """Return the metrics of a container's cgroup."""
        container = self._container(request.id)
        if container.cgroup is None:
            container.cgroup = _find_cgroup(container.init.pid)
        return api.task_v3.StatsResponse(stats=any_to_wire(container.cgroup.stats()))

    async def connect(self, request: api.task_v3.ConnectRequest) -> api.task_v3.ConnectResponse:
        """Return who serves, and the pid of the init; 0 for an unknown container."""
        container = self._containers.get(request.id)
        return api.task_v3.ConnectResponse(shim_pid=self._shim_pid, task_pid=container.init.pid if container else 0)

    async def shutdown(self, _request: api.task_v3.ShutdownRequest) -> api.protobuf.Empty:
        """End the shim unless it has containers. If one is being created, wait for that first."""
        await self._operations.to_the_end(self._end_if_empty())
        return messages.empty()

    async def settled(self, timeout_s: float) -> None:
        """Wait for the end of what callers have left under way, at most `timeout_s`."""
        await self._operations.settled(timeout_s)

    def _container(self, container_id: str) -> Container:
        try:
            return self._containers[container_id]
        except KeyError:
            raise NotFound("container not created") from None

    def _new_container(self, request: api.task_v3.CreateTaskRequest) -> Container:
        options = records.options_from_wire(request.options)
        bundle = Path(request.bundle)
        runtime = self._runtime(
            bundle, options, self._chosen(bundle, options), runtime_root(options.root, self._namespace)
        )
        records.write_options(bundle, options)
        site = Site(namespace=self._namespace, id=request.id, bundle=bundle, runtime=runtime, options=options)
        record = records.ShimRecord(
            namespace=self._namespace,
            id=request.id,
            shim_pid=self._shim_pid,
            binary=runtime.binary,
            root=runtime.root,
            systemd_cgroup=options.systemd_cgroup,
        )
        records.write_shim(bundle, record)
        mounts = mounts_from_wire(request.rootfs)
        checkpoint = Checkpoint(request.checkpoint, request.parent_checkpoint)
        return Container(site, InitProcess(site, messages.stdio_of(request), mounts, checkpoint), self._around)

    def _chosen(self, bundle: Path, options: records.RuncOptions) -> str:
        """Return the OCI runtime; rewrite the bundle's spec if the runtime takes it in another version only."""
        try:
            chosen = self._choose_runtime(options.binary_name, self._env, records.read_config(bundle))
        except FailedPrecondition as failure:
            raise Unknown(f"OCI runtime create failed: {failure.message}") from failure
        if chosen.config:
            records.replace_config(bundle, chosen.config)
        return chosen.binary

    def _runtime(self, bundle: Path, options: records.RuncOptions, binary: str, root: str) -> OciRuntime:
        return OciRuntime(
            binary,
            root,
            self._around.reaper,
            env=self._env,
            log=bundle / "log.json",
            systemd_cgroup=options.systemd_cgroup,
        )

    async def _create(self, request: api.task_v3.CreateTaskRequest, container: Container) -> None:
        await container.create()
        self._containers[request.id] = container
        self._around.publish("/tasks/create", messages.created_event(request, container.init.pid))

    async def _take_back(self, creation: asyncio.Task[None], container: Container) -> None:
        """Delete a container whose creator has gone, once it is created."""
        _, late = await asyncio.wait({creation}, timeout=GIVEN_UP_AFTER_S)
        if late:
            creation.cancel()
            await asyncio.wait({creation})
        if self._containers.get(container.site.id) is not container:
            return
        try:
            await self._delete_container(container)
        except ContainerdError as failure:
            log.warning("container %s could not be deleted after its creator had gone: %s", container.site.id, failure)

    async def _end_if_empty(self) -> None:
        await self._operations.all_created()
        if not self._containers:
            self._shut_down()

    async def _delete_container(self, container: Container) -> None:
        await container.delete()
        del self._containers[container.site.id]


class TaskServiceV2:
    """The same service under its older name."""

    service_name: ClassVar[str] = "containerd.task.v2.Task"

    def __init__(self, service: TaskService) -> None:
        self._service = service

    def __getattr__(self, name: str) -> object:
        return getattr(self._service, name)


def _find_cgroup(pid: int) -> cgroup.Cgroup:
    try:
        return cgroup.find(pid)
    except OSError:
        raise NotFound("cgroup does not exist") from None
