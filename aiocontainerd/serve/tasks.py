"""The Tasks service (facts/runtime 4.2)."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from aiocontainerd import api
from aiocontainerd.interfaces.runtime import ExecOptions, Exit
from aiocontainerd.interfaces.services import TaskService
from aiocontainerd.serve.requests import converted
from aiocontainerd.wire.anys import any_from_wire
from aiocontainerd.wire.descriptors import descriptor_to_wire
from aiocontainerd.wire.tasks import (
    create_task_from_wire,
    io_from_wire,
    metrics_to_wire,
    process_info_to_wire,
    process_to_wire,
)
from aiocontainerd.wire.times import time_to_wire


class TasksGrpc:
    """`containerd.services.tasks.v1.Tasks`."""

    service_name: ClassVar[str] = "containerd.services.tasks.v1.Tasks"
    open_ended: ClassVar[Collection[str]] = ("Wait",)

    def __init__(self, tasks: TaskService) -> None:
        self._tasks = tasks

    async def create(self, request: api.tasks.CreateTaskRequest) -> api.tasks.CreateTaskResponse:
        """Create a task and return the pid of its init; 0 if `start` is to restore a checkpoint."""
        task = await self._tasks.create(create_task_from_wire(request))
        return api.tasks.CreateTaskResponse(container_id=request.container_id, pid=task.pid)

    async def start(self, request: api.tasks.StartRequest) -> api.tasks.StartResponse:
        """Run init or an exec."""
        return api.tasks.StartResponse(pid=await self._tasks.start(request.container_id, request.exec_id))

    async def delete(self, request: api.tasks.DeleteTaskRequest) -> api.tasks.DeleteResponse:
        """End the task."""
        return _deleted("", await self._tasks.delete(request.container_id))

    async def delete_process(self, request: api.tasks.DeleteProcessRequest) -> api.tasks.DeleteResponse:
        """Forget an exec."""
        ended = await self._tasks.delete_process(request.container_id, request.exec_id)
        return _deleted(request.exec_id, ended)

    async def get(self, request: api.tasks.GetRequest) -> api.tasks.GetResponse:
        """Return the state of init or of an exec."""
        return api.tasks.GetResponse(
            process=process_to_wire(await self._tasks.get(request.container_id, request.exec_id))
        )

    async def list(self, request: api.tasks.ListTasksRequest) -> api.tasks.ListTasksResponse:  # noqa: ARG002 - its filter is ignored, as containerd does
        """Return the state of every task's init."""
        return api.tasks.ListTasksResponse(tasks=await converted(await self._tasks.list(), process_to_wire))

    async def kill(self, request: api.tasks.KillRequest) -> api.protobuf.Empty:
        """Send a signal."""
        await self._tasks.kill(request.container_id, request.exec_id, request.signal, all_processes=request.all)
        return _empty()

    async def exec(self, request: api.tasks.ExecProcessRequest) -> api.protobuf.Empty:
        """Add an exec."""
        options = ExecOptions(spec=any_from_wire(request.spec), io=io_from_wire(request))
        await self._tasks.exec(request.container_id, request.exec_id, options)
        return _empty()

    async def resize_pty(self, request: api.tasks.ResizePtyRequest) -> api.protobuf.Empty:
        """Set the size of a terminal."""
        await self._tasks.resize_pty(request.container_id, request.exec_id, request.width, request.height)
        return _empty()

    async def close_io(self, request: api.tasks.CloseIoRequest) -> api.protobuf.Empty:
        """Close stdin."""
        await self._tasks.close_io(request.container_id, request.exec_id, stdin=request.stdin)
        return _empty()

    async def pause(self, request: api.tasks.PauseTaskRequest) -> api.protobuf.Empty:
        """Freeze a container."""
        await self._tasks.pause(request.container_id)
        return _empty()

    async def resume(self, request: api.tasks.ResumeTaskRequest) -> api.protobuf.Empty:
        """Thaw a container."""
        await self._tasks.resume(request.container_id)
        return _empty()

    async def list_pids(self, request: api.tasks.ListPidsRequest) -> api.tasks.ListPidsResponse:
        """Return every process of a container."""
        found = await self._tasks.pids(request.container_id)
        return api.tasks.ListPidsResponse(processes=await converted(found, process_info_to_wire))

    async def checkpoint(self, request: api.tasks.CheckpointTaskRequest) -> api.tasks.CheckpointTaskResponse:
        """Write a checkpoint and return its blobs; none if the client named a directory."""
        found = await self._tasks.checkpoint(request.container_id, any_from_wire(request.options))
        return api.tasks.CheckpointTaskResponse(descriptors=[descriptor_to_wire(descriptor) for descriptor in found])

    async def update(self, request: api.tasks.UpdateTaskRequest) -> api.protobuf.Empty:
        """Change resource limits."""
        resources = any_from_wire(request.resources)
        await self._tasks.update(request.container_id, resources, request.annotations)
        return _empty()

    async def metrics(self, request: api.tasks.MetricsRequest) -> api.tasks.MetricsResponse:
        """Return the metrics of the tasks that a filter matches."""
        found = [metrics_to_wire(metrics) for metrics in await self._tasks.metrics(request.filters)]
        return api.tasks.MetricsResponse(metrics=found)

    async def wait(self, request: api.tasks.WaitRequest) -> api.tasks.WaitResponse:
        """Wait until the process has exited and return its exit."""
        ended = await self._tasks.wait(request.container_id, request.exec_id)
        return api.tasks.WaitResponse(exit_status=ended.status, exited_at=time_to_wire(ended.exited_at_ns))


def _deleted(process_id: str, ended: Exit) -> api.tasks.DeleteResponse:
    return api.tasks.DeleteResponse(
        id=process_id, pid=ended.pid, exit_status=ended.status, exited_at=time_to_wire(ended.exited_at_ns)
    )


def _empty() -> api.protobuf.Empty:
    return api.protobuf.Empty()
