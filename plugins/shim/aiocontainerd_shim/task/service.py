"""The task service of the shim, `containerd.task.v3.Task`, and the same as v2 for older daemons (facts/runtime 4).

A shim runs once per container or pod, so its memory counts more than its comfort: it runs on plain asyncio and
imports neither anyio nor uvloop. Handlers validate, call the container, convert. v2 and v3 differ in the package of
their messages only, so both answer with v3's.

Whatever the OCI runtime does to a container runs to its end, whatever becomes of the caller, so that the state here
stays true: one that is killed in the middle leaves cgroups and processes of which nobody knows. A container whose
caller has gone before it was created is deleted once it is.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from aiocontainerd import api, timestamps, typeurl
from aiocontainerd.errors import AlreadyExists, ContainerdError, InvalidArgument, NotFound, Unknown
from aiocontainerd.sys.mount import Mount
from aiocontainerd_shim.io.stdio import Stdio
from aiocontainerd_shim.task import cgroups, oci_choice, records
from aiocontainerd_shim.task.container import Container, Surroundings
from aiocontainerd_shim.task.init import Checkpoint, InitProcess
from aiocontainerd_shim.task.oci import CheckpointFlags, OciError, OciRuntime, runtime_root
from aiocontainerd_shim.task.process import Site
from aiocontainerd_shim.task.states import State

if TYPE_CHECKING:
    from aiocontainerd_shim.program.bootstrap import Identity
    from aiocontainerd_shim.rest.descriptors import Descriptors
    from aiocontainerd_shim.rest.memory import RestedContainer
    from aiocontainerd_shim.task.process import Process

log = logging.getLogger(__name__)

T = TypeVar("T")

GIVEN_UP_AFTER_S = 3.0
"""How long a creation goes on whose caller has gone, before the OCI runtime is killed."""
CHECKPOINT_OPTIONS_URL = "containerd.runc.v1.CheckpointOptions"


class TaskService:
    """The containers of one shim."""

    service_name: ClassVar[str] = "containerd.task.v3.Task"

    def __init__(
        self,
        identity: Identity,
        around: Surroundings,
        *,
        choose_runtime: Callable[[str, Mapping[str, str]], str] = oci_choice.choose,
        shut_down: Callable[[], None],
        shim_pid: int = 0,
    ) -> None:
        """`choose_runtime` gives the OCI runtime for a `binary_name` and an environment; `shut_down` ends the shim.

        `shim_pid` is the process that stands for the shim where it isn't this one.
        """
        self._identity = identity
        self._namespace = identity.namespace
        self._around = around
        self._choose_runtime = choose_runtime
        self._shut_down = shut_down
        self._shim_pid = shim_pid or os.getpid()
        self._containers: dict[str, Container] = {}
        self._creating: dict[str, asyncio.Task[None]] = {}
        self._under_way: set[asyncio.Task[object]] = set()

    def __repr__(self) -> str:
        return f"<TaskService {self._namespace} containers={len(self._containers)}>"

    @property
    def can_rest(self) -> bool:
        """Whether nothing is going on with the containers, and every process in them is watched for its exit only."""
        if self._under_way:
            return False
        containers = self._containers.values()
        processes = [process for each in containers for process in (each.init, *each.execs.values())]
        alive = {process.pid for process in processes if process.pid and not process.exited.is_set()}
        return all(each.can_rest for each in containers) and alive == self._around.reaper.watched

    def rested(self, held: Descriptors) -> list[RestedContainer]:
        """What `adopt` needs."""
        return [container.rested(held) for container in self._containers.values()]

    def adopt(self, rested: RestedContainer, fds: Sequence[int]) -> None:
        """Go on with a container another worker has left."""
        bundle = Path(rested.bundle)
        runtime = self._runtime(bundle, rested.options, rested.binary, rested.root)
        site = Site(namespace=self._namespace, id=rested.id, bundle=bundle, runtime=runtime, options=rested.options)
        container = Container(site, InitProcess(site, rested.init.stdio, (), Checkpoint()), self._around)
        container.adopt(rested, fds)
        self._containers[rested.id] = container

    async def create(self, request: api.task_v3.CreateTaskRequest) -> api.task_v3.CreateTaskResponse:
        """Make a container of a bundle."""
        if request.id in self._containers or request.id in self._creating:
            raise AlreadyExists(f"id {request.id}")
        container = self._new_container(request)
        creation = self._creates(request.id, self._create(request, container))
        try:
            await asyncio.shield(creation)
        except asyncio.CancelledError:
            self._creates(request.id, self._take_back(creation, container))
            raise
        return api.task_v3.CreateTaskResponse(pid=container.init.pid)

    async def start(self, request: api.task_v3.StartRequest) -> api.task_v3.StartResponse:
        """Start an init or an exec."""
        container = self._container(request.id)
        if request.exec_id:
            pid = (await self._to_the_end(container.start_exec(request.exec_id))).pid
        else:
            await self._to_the_end(container.start())
            pid = container.init.pid
        return api.task_v3.StartResponse(pid=pid)

    async def delete(self, request: api.task_v3.DeleteRequest) -> api.task_v3.DeleteResponse:
        """Remove an exec, or a container that is not running; one that is being created is waited for."""
        await self._created(request.id)
        container = self._container(request.id)
        if request.exec_id:
            return _deleted(await container.delete_exec(request.exec_id))
        await self._to_the_end(self._delete_container(container))
        return _deleted(container.init)

    async def state(self, request: api.task_v3.StateRequest) -> api.task_v3.StateResponse:
        """What a process is doing."""
        container = self._container(request.id)
        process = container.process(request.exec_id)
        return api.task_v3.StateResponse(
            id=process.exec_id or request.id,
            bundle=str(container.site.bundle),
            pid=process.pid,
            status=_status(container, process),
            stdin=process.stdio.stdin,
            stdout=process.stdio.stdout,
            stderr=process.stdio.stderr,
            terminal=process.stdio.terminal,
            exit_status=process.exit_status,
            exited_at=timestamps.to_wire(process.exited_at_ns),
        )

    async def exec(self, request: api.task_v3.ExecProcessRequest) -> api.protobuf.Empty:
        """Take another process to start later."""
        container = self._container(request.id)
        if request.spec is None:
            raise InvalidArgument(f"exec {request.exec_id}: no process spec")
        container.add_exec(request.exec_id, _stdio(request), request.spec.value)
        return _empty()

    async def kill(self, request: api.task_v3.KillRequest) -> api.protobuf.Empty:
        """Signal a process, or with `all` every process of the container."""
        container = self._container(request.id)
        if request.exec_id:
            container.exec(request.exec_id).kill(request.signal)
        else:
            await self._to_the_end(container.init.kill(request.signal, everyone=request.all))
        return _empty()

    async def wait(self, request: api.task_v3.WaitRequest) -> api.task_v3.WaitResponse:
        """Wait for a process to exit."""
        process = self._container(request.id).process(request.exec_id)
        await process.exited.wait()
        return api.task_v3.WaitResponse(
            exit_status=process.exit_status, exited_at=timestamps.to_wire(process.exited_at_ns)
        )

    async def pids(self, request: api.task_v3.PidsRequest) -> api.task_v3.PidsResponse:
        """Every process of a container, none after its init; execs carry their id."""
        container = self._container(request.id)
        if container.init.exited.is_set():
            return api.task_v3.PidsResponse()
        try:
            pids = await container.site.runtime.pids(request.id)
        except OciError as failure:
            raise Unknown(str(failure)) from failure
        execs = {process.pid: exec_id for exec_id, process in container.execs.items()}
        return api.task_v3.PidsResponse(processes=[_process_info(pid, execs.get(pid)) for pid in pids])

    async def pause(self, request: api.task_v3.PauseRequest) -> api.protobuf.Empty:
        """Freeze a container."""
        await self._to_the_end(self._container(request.id).pause())
        return _empty()

    async def resume(self, request: api.task_v3.ResumeRequest) -> api.protobuf.Empty:
        """Thaw a container."""
        await self._to_the_end(self._container(request.id).resume())
        return _empty()

    async def checkpoint(self, request: api.task_v3.CheckpointTaskRequest) -> api.protobuf.Empty:
        """Write a checkpoint of a container into a directory."""
        container = self._container(request.id)
        await self._to_the_end(container.init.checkpoint(_checkpoint_flags(request)))
        return _empty()

    async def update(self, request: api.task_v3.UpdateTaskRequest) -> api.protobuf.Empty:
        """Change the resources of a container."""
        init = self._container(request.id).init
        await self._to_the_end(init.update(request.resources.value if request.resources else b"{}"))
        return _empty()

    async def resize_pty(self, request: api.task_v3.ResizePtyRequest) -> api.protobuf.Empty:
        """Set the size of a terminal."""
        await self._container(request.id).process(request.exec_id).resize(request.width, request.height)
        return _empty()

    async def close_io(self, request: api.task_v3.CloseIoRequest) -> api.protobuf.Empty:
        """Let the stdin of a process end."""
        process = self._container(request.id).process(request.exec_id)
        if request.stdin:
            await process.close_stdin()
        return _empty()

    async def stats(self, request: api.task_v3.StatsRequest) -> api.task_v3.StatsResponse:
        """The metrics of a container's cgroup."""
        container = self._container(request.id)
        if container.cgroup is None:
            container.cgroup = _find_cgroup(container.init.pid)
        return api.task_v3.StatsResponse(stats=typeurl.to_wire(container.cgroup.stats()))

    async def connect(self, request: api.task_v3.ConnectRequest) -> api.task_v3.ConnectResponse:
        """Who serves, and the init's pid; an unknown container has none."""
        container = self._containers.get(request.id)
        return api.task_v3.ConnectResponse(shim_pid=self._shim_pid, task_pid=container.init.pid if container else 0)

    async def shutdown(self, _request: api.task_v3.ShutdownRequest) -> api.protobuf.Empty:
        """End the shim, unless containers are left in it; one that is being created is waited for."""
        await self._to_the_end(self._end_if_empty())
        return _empty()

    async def settled(self, timeout_s: float) -> None:
        """Wait for the end of what its callers have left under way, at most `timeout_s`."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=timeout_s)

    def _container(self, container_id: str) -> Container:
        try:
            return self._containers[container_id]
        except KeyError:
            raise NotFound("container not created") from None

    def _new_container(self, request: api.task_v3.CreateTaskRequest) -> Container:
        options = records.options_from_wire(request.options)
        bundle = Path(request.bundle)
        binary = self._choose_runtime(options.binary_name, self._identity.env)
        runtime = self._runtime(bundle, options, binary, runtime_root(options.root, self._namespace))
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
        mounts = [Mount(m.type, m.source, m.target, tuple(m.options)) for m in request.rootfs]
        checkpoint = Checkpoint(request.checkpoint, request.parent_checkpoint)
        return Container(site, InitProcess(site, _stdio(request), mounts, checkpoint), self._around)

    def _runtime(self, bundle: Path, options: records.RuncOptions, binary: str, root: str) -> OciRuntime:
        return OciRuntime(
            binary,
            root,
            self._around.reaper,
            env=self._identity.env,
            log=bundle / "log.json",
            systemd_cgroup=options.systemd_cgroup,
        )

    async def _create(self, request: api.task_v3.CreateTaskRequest, container: Container) -> None:
        await container.create()
        self._containers[request.id] = container
        self._around.publish("/tasks/create", _created_event(request, container.init.pid))

    async def _take_back(self, creation: asyncio.Task[None], container: Container) -> None:
        """Delete a container for which nobody waits any more, once it is created."""
        _, late = await asyncio.wait({creation}, timeout=GIVEN_UP_AFTER_S)
        if late:
            creation.cancel()
            await asyncio.wait({creation})
        if self._containers.get(container.site.id) is not container:
            return
        try:
            await self._delete_container(container)
        except ContainerdError as failure:
            log.warning("container %s, whose creator has gone, stays: %s", container.site.id, failure)

    def _creates(self, container_id: str, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Begin what decides whether there will be a container of an id; see `_created`."""
        task = self._creating[container_id] = self._begin(work)
        task.add_done_callback(partial(self._forget_creation, container_id))
        return task

    def _forget_creation(self, container_id: str, task: asyncio.Task[None]) -> None:
        if self._creating.get(container_id) is task:
            del self._creating[container_id]

    async def _created(self, container_id: str) -> None:
        """Wait until it is known whether there is a container."""
        while (creation := self._creating.get(container_id)) is not None:
            await asyncio.wait({creation})

    async def _end_if_empty(self) -> None:
        while self._creating:
            await asyncio.wait(self._creating.values())
        if not self._containers:
            self._shut_down()

    async def _to_the_end(self, operation: Coroutine[object, object, T]) -> T:
        return await asyncio.shield(self._begin(operation))

    def _begin(self, operation: Coroutine[object, object, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(operation)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

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


def _empty() -> api.protobuf.Empty:
    return api.protobuf.Empty()


def _stdio(request: api.task_v3.CreateTaskRequest | api.task_v3.ExecProcessRequest) -> Stdio:
    return Stdio(stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal)


def _deleted(process: Process) -> api.task_v3.DeleteResponse:
    return api.task_v3.DeleteResponse(
        pid=process.pid, exit_status=process.exit_status, exited_at=timestamps.to_wire(process.exited_at_ns)
    )


def _created_event(request: api.task_v3.CreateTaskRequest, pid: int) -> api.event_types.TaskCreate:
    streams = api.event_types.TaskIo(
        stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal
    )
    return api.event_types.TaskCreate(
        container_id=request.id,
        bundle=request.bundle,
        rootfs=request.rootfs,
        io=streams,
        checkpoint=request.checkpoint,
        pid=pid,
    )


def _status(container: Container, process: Process) -> api.task_types.Status:
    status = api.task_types.Status
    if process.state == State.RUNNING and container.init.pausing:
        return status.PAUSING
    if process.state == State.RUNNING and container.init.state == State.PAUSED:
        return status.PAUSED
    return {
        State.CREATED: status.CREATED,
        State.RESTORING: status.CREATED,
        State.RUNNING: status.RUNNING,
        State.PAUSED: status.PAUSED,
    }.get(process.state, status.STOPPED)


def _process_info(pid: int, exec_id: str | None) -> api.task_types.ProcessInfo:
    details = None if exec_id is None else typeurl.marshal(api.runc.ProcessDetails(exec_id=exec_id))
    return api.task_types.ProcessInfo(pid=pid, info=typeurl.to_wire(details))


def _find_cgroup(pid: int) -> cgroups.Cgroup:
    try:
        return cgroups.find(pid)
    except OSError:
        raise NotFound("cgroup does not exist") from None


def _checkpoint_flags(request: api.task_v3.CheckpointTaskRequest) -> CheckpointFlags:
    options = api.runc.CheckpointOptions()
    if request.options is not None and request.options.type_url:
        if request.options.type_url.rpartition("/")[2] != CHECKPOINT_OPTIONS_URL:
            raise InvalidArgument(f"checkpoint options of type {request.options.type_url}")
        options = api.runc.CheckpointOptions.parse(request.options.value)
    return CheckpointFlags(
        image_path=request.path or options.image_path,
        work_path=options.work_path,
        parent_path=options.parent_path,
        open_tcp=options.open_tcp,
        external_unix_sockets=options.external_unix_sockets,
        terminal=options.terminal,
        file_locks=options.file_locks,
        empty_namespaces=tuple(options.empty_namespaces),
        exit=options.exit,
    )
