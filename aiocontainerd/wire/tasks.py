"""Tasks: processes, their streams and exits, metrics."""

from __future__ import annotations

from typing import Protocol

from aiocontainerd import api
from aiocontainerd.interfaces.runtime import IO, Exit, ProcessInfo, ProcessState, ProcessStatus
from aiocontainerd.interfaces.services import CreateTask, TaskMetrics
from aiocontainerd.wire.anys import any_from_wire, any_to_wire
from aiocontainerd.wire.descriptors import descriptor_from_wire
from aiocontainerd.wire.mounts import mounts_from_wire
from aiocontainerd.wire.times import time_from_wire, time_to_wire


class _Streams(Protocol):
    @property
    def stdin(self) -> str: ...

    @property
    def stdout(self) -> str: ...

    @property
    def stderr(self) -> str: ...

    @property
    def terminal(self) -> bool: ...


class _Ended(Protocol):
    @property
    def exit_status(self) -> int: ...

    @property
    def exited_at(self) -> api.protobuf.Timestamp | None: ...


def io_from_wire(message: _Streams) -> IO:
    """Return the streams that any message with these four fields names."""
    return IO(stdin=message.stdin, stdout=message.stdout, stderr=message.stderr, terminal=message.terminal)


def create_task_from_wire(request: api.tasks.CreateTaskRequest) -> CreateTask:
    """Return what a request to create a task asks for."""
    checkpoint = request.checkpoint
    return CreateTask(
        container_id=request.container_id,
        rootfs=mounts_from_wire(request.rootfs),
        io=io_from_wire(request),
        checkpoint=None if checkpoint is None else descriptor_from_wire(checkpoint),
        options=any_from_wire(request.options),
        runtime_path=request.runtime_path,
        task_api_address=request.task_api_address,
        task_api_version=request.task_api_version,
    )


def process_from_wire(message: api.task_types.Process) -> ProcessState:
    """Return the state of a process. Daemons before 2.0 tell the container in another field; both are read."""
    return ProcessState(
        id=message.id or message.container_id,
        pid=message.pid,
        status=ProcessStatus(int(message.status)),
        io=io_from_wire(message),
        exit_status=message.exit_status,
        exited_at_ns=time_from_wire(message.exited_at),
    )


def process_to_wire(state: ProcessState) -> api.task_types.Process:
    """Return the message of a process's state."""
    return api.task_types.Process(
        id=state.id,
        pid=state.pid,
        status=api.task_types.Status(int(state.status)),
        stdin=state.io.stdin,
        stdout=state.io.stdout,
        stderr=state.io.stderr,
        terminal=state.io.terminal,
        exit_status=state.exit_status,
        exited_at=time_to_wire(state.exited_at_ns),
    )


def exit_from_wire(message: _Ended, pid: int = 0) -> Exit:
    """Return the exit that any message with these two fields tells."""
    return Exit(status=message.exit_status, exited_at_ns=time_from_wire(message.exited_at), pid=pid)


def process_info_from_wire(message: api.task_types.ProcessInfo) -> ProcessInfo:
    """Return one process of a container."""
    return ProcessInfo(message.pid, any_from_wire(message.info))


def process_info_to_wire(info: ProcessInfo) -> api.task_types.ProcessInfo:
    """Return the message of one process of a container."""
    return api.task_types.ProcessInfo(pid=info.pid, info=any_to_wire(info.info))


def metrics_to_wire(metrics: TaskMetrics) -> api.types.Metric:
    """Return the message of one task's metrics."""
    return api.types.Metric(timestamp=time_to_wire(metrics.timestamp_ns), id=metrics.id, data=any_to_wire(metrics.data))
