"""Tasks by the ids of their containers: container records and task runtime together (facts/runtime 4.2, 4.7)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import anyio

from aiocontainerd import api, context, identifiers, timestamps
from aiocontainerd.errors import AlreadyExists, ContainerdError, InvalidArgument, NotFound, Unknown
from aiocontainerd.filters import compile_filters
from aiocontainerd.interfaces.metadata import Container, MetadataStore
from aiocontainerd.interfaces.runtime import (
    CreateOptions,
    ExecOptions,
    Exit,
    Process,
    ProcessInfo,
    ProcessState,
    ProcessStatus,
    Task,
    TaskRuntime,
)
from aiocontainerd.interfaces.services import CreateTask, TaskMetrics
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.serve.requests import unconverted
from aiocontainerd.typeurl import Any
from aiocontainerd.wire.anys import check_given, unmarshal_known
from aiocontainerd_services import tasks_checkpoint
from aiocontainerd_services.task_monitors import Monitors

log = logging.getLogger(__name__)

T = TypeVar("T")

_ALIVE = (ProcessStatus.RUNNING, ProcessStatus.PAUSED, ProcessStatus.PAUSING)


class TasksService:
    """A TaskService. Checkpoints pass through the directory `checkpoints`."""

    def __init__(
        self, metadata: MetadataStore, runtime: TaskRuntime, checkpoints: Path, monitors: Monitors | None = None
    ) -> None:
        self._metadata = metadata
        self._runtime = runtime
        self._checkpoints = checkpoints
        self._monitors = monitors or Monitors({})

    async def create(self, request: CreateTask) -> Task:
        """Create a task. Raises NotFound without a container record, AlreadyExists where it has a task."""
        container = await self._metadata.containers.get(request.container_id)
        restore = _restore_path(container.runtime_name, request.options)
        await self._refuse_existing(container.id)
        if not restore and request.checkpoint is not None:
            restore = str(self._checkpoint_of(container.id))
            with unconverted():
                await tasks_checkpoint.unpack(self._metadata.content, request.checkpoint, Path(restore))
        try:
            task = await self._runtime.create(container.id, _create_options(container, request, restore))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._drop_checkpoint(container.id)
            raise
        await self._monitors.monitor(task, container.labels)
        return task

    async def _refuse_existing(self, container_id: str) -> None:
        try:
            await self._runtime.get(container_id)
        except NotFound:
            return
        raise AlreadyExists(f"task {container_id}")

    async def start(self, container_id: str, exec_id: str = "") -> int:
        """Run a process and return its pid."""
        process = await self._process(container_id, exec_id)
        pid = await process.start()
        if not exec_id:
            await self._drop_checkpoint(container_id)
        return pid

    async def delete(self, container_id: str) -> Exit:
        """End a task that has exited or was never started."""
        task = await self._task(container_id)
        await self._monitors.stop(task)
        ended = await task.delete()
        await self._drop_checkpoint(container_id)
        return ended

    async def delete_process(self, container_id: str, exec_id: str) -> Exit:
        """Forget an exec that has exited."""
        task = await self._task(container_id)
        if not exec_id and (await task.state()).status in _ALIVE:
            raise Unknown("cannot delete a running process")
        return await task.process(exec_id).delete()

    async def get(self, container_id: str, exec_id: str = "") -> ProcessState:
        """Return the state of a process as its shim sees it now."""
        return await (await self._process(container_id, exec_id)).state()

    async def list(self) -> list[ProcessState]:
        """Ask every task for its state, all at once (facts/runtime 4.2).

        A task that does not answer has an unknown status. A task that is gone is left out.
        """
        found = await _at_once(_listed, await self._runtime.list())
        return [state for state in found if state is not None]

    async def kill(self, container_id: str, exec_id: str, signal: int, *, all_processes: bool) -> None:
        """Send a signal to a process, or to all of a container."""
        await (await self._process(container_id, exec_id)).kill(signal, all_processes=all_processes)

    async def exec(self, container_id: str, exec_id: str, options: ExecOptions) -> None:
        """Add an exec. Raises InvalidArgument for a bad id, AlreadyExists for one that is taken."""
        _require_exec_id(exec_id)
        await (await self._task(container_id)).exec(exec_id, options)

    async def resize_pty(self, container_id: str, exec_id: str, width: int, height: int) -> None:
        """Set the size of a process's terminal."""
        await (await self._process(container_id, exec_id)).resize_pty(width, height)

    async def close_io(self, container_id: str, exec_id: str, *, stdin: bool) -> None:
        """Close a process's stdin, if the client asks for it."""
        process = await self._process(container_id, exec_id)
        if stdin:
            await process.close_io()
        elif exec_id:
            await process.state()

    async def pause(self, container_id: str) -> None:
        """Freeze every process."""
        await (await self._task(container_id)).pause()

    async def resume(self, container_id: str) -> None:
        """Thaw every process."""
        await (await self._task(container_id)).resume()

    async def pids(self, container_id: str) -> Sequence[ProcessInfo]:
        """Return every process of the container."""
        return await (await self._task(container_id)).pids()

    async def update(self, container_id: str, resources: Any | None, annotations: Mapping[str, str]) -> None:
        """Change resource limits."""
        await (await self._task(container_id)).update(resources, annotations)

    async def wait(self, container_id: str, exec_id: str = "") -> Exit:
        """Wait for a process's exit."""
        return await (await self._process(container_id, exec_id)).wait()

    async def metrics(self, filters: Sequence[str] = ()) -> Sequence[TaskMetrics]:
        """Return the metrics of the tasks that a filter on `id` or `namespace` matches.

        Tasks that do not answer are left out.
        """
        with unconverted():
            wanted, tasks = compile_filters(filters), await self._runtime.list()
        tasks = [task for task in tasks if wanted.matches(_fields(task))]
        found = await _at_once(_measured, tasks)
        return [metrics for metrics in found if metrics is not None]

    async def checkpoint(self, container_id: str, options: Any | None) -> Sequence[Descriptor]:
        """Write a checkpoint: into the `image_path` of the options, else into the content store.

        Returns the descriptors of the CRIU images and of the spec in the latter case.
        """
        container = await self._metadata.containers.get(container_id)
        task = await self._runtime.get(container_id)
        image_path = _image_path(container.runtime_name, options)
        if image_path:
            await task.checkpoint(image_path, options)
            return []
        directory = self._checkpoint_of(container_id, "out")
        await anyio.to_thread.run_sync(_make_private, directory)
        try:
            await task.checkpoint(str(directory), options)
            return await tasks_checkpoint.store(self._metadata.content, directory, container.spec)
        finally:
            with anyio.CancelScope(shield=True):
                await tasks_checkpoint.remove(directory)

    async def _task(self, container_id: str) -> Task:
        """Return the task of a container, whose record may be gone. Without a task, tell what is missing."""
        try:
            return await self._runtime.get(container_id)
        except NotFound as missing:
            await self._metadata.containers.get(container_id)
            raise missing

    async def _process(self, container_id: str, exec_id: str) -> Process:
        return (await self._task(container_id)).process(exec_id)

    def _checkpoint_of(self, container_id: str, kind: str = "in") -> Path:
        identifiers.validate(container_id)
        return self._checkpoints / f"{context.namespace()}-{container_id}-{kind}"

    async def _drop_checkpoint(self, container_id: str) -> None:
        directory = self._checkpoint_of(container_id)
        if _has_checkpoint(directory):
            await tasks_checkpoint.remove(directory)


def _has_checkpoint(directory: Path) -> bool:
    return directory.exists()


def _create_options(container: Container, request: CreateTask, checkpoint: str) -> CreateOptions:
    return CreateOptions(
        runtime=request.runtime_path or container.runtime_name,
        spec=container.spec,
        io=request.io,
        rootfs=request.rootfs,
        checkpoint=checkpoint,
        options=request.options,
        runtime_options=container.runtime_options,
        sandbox_id=container.sandbox_id,
        task_api_address=request.task_api_address,
        task_api_version=request.task_api_version,
    )


def _require_exec_id(exec_id: str) -> None:
    if not exec_id:
        raise InvalidArgument("exec id cannot be empty", complete=True)


def _restore_path(runtime: str, options: Any | None) -> str:
    found = _runc_options(runtime, options, api.runc.Options, "create")
    return found.criu_image_path if found is not None else ""


def _image_path(runtime: str, options: Any | None) -> str:
    found = _runc_options(runtime, options, api.runc.CheckpointOptions, "checkpoint")
    return found.image_path if found is not None else ""


def _runc_options(runtime: str, options: Any | None, kind: type[T], verb: str) -> T | None:
    """Return options of runc, the only runtime whose options the daemon knows; None if there are none."""
    if options is None:
        return None
    if runtime.split(".")[:3] != ["io", "containerd", "runc"]:
        return None
    check_given(options)
    found = unmarshal_known(options)
    if not isinstance(found, kind):
        raise Unknown(f"invalid task {verb} option for {runtime}")
    return found


def _fields(task: Task) -> Callable[[tuple[str, ...]], str | None]:
    values = {"id": task.id, "namespace": task.namespace}
    return lambda path: values.get(path[0])


async def _at_once(function: Callable[[Task], Awaitable[T]], tasks: Sequence[Task]) -> Sequence[T]:
    """Return what `function` returns for each task, all run at once, in the order of the tasks. It must not raise."""
    results: dict[int, T] = {}

    async def one(index: int, task: Task) -> None:
        results[index] = await function(task)

    async with anyio.create_task_group() as group:
        for index, task in enumerate(tasks):
            group.start_soon(one, index, task)
    return [results[index] for index in range(len(tasks))]


async def _listed(task: Task) -> ProcessState | None:
    try:
        return await task.state()
    except NotFound:
        return None
    except ContainerdError as error:
        log.error("state of task %s/%s: %s", task.namespace, task.id, error.message)
        return ProcessState(id=task.id, pid=task.pid, status=ProcessStatus.UNKNOWN)


async def _measured(task: Task) -> TaskMetrics | None:
    collected_ns = timestamps.now_ns()
    try:
        return TaskMetrics(task.id, collected_ns, await task.stats())
    except NotFound:
        return None
    except ContainerdError as error:
        log.error("metrics of task %s/%s: %s", task.namespace, task.id, error.message)
        return None


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True)
