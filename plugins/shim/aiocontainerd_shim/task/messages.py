"""Requests to values and values to responses of the task API. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from aiocontainerd import api, gojson, typeurl
from aiocontainerd.errors import Unknown
from aiocontainerd.wire.anys import any_to_wire, marshal, unmarshal_known
from aiocontainerd.wire.times import time_to_wire
from aiocontainerd_shim.io.stdio import Stdio
from aiocontainerd_shim.oci.runtime import CheckpointFlags
from aiocontainerd_shim.task.container import Container
from aiocontainerd_shim.task.process import Process
from aiocontainerd_shim.task.shapes import PROCESS, RESOURCES
from aiocontainerd_shim.task.states import State


def empty() -> api.protobuf.Empty:
    """Return the answer of methods that answer nothing."""
    return api.protobuf.Empty()


def stdio_of(request: api.task_v3.CreateTaskRequest | api.task_v3.ExecProcessRequest) -> Stdio:
    """Return where the streams of a requested process go."""
    return Stdio(stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal)


def process_spec(value: bytes, *, terminal: bool) -> bytes:
    """Return the JSON of a process spec whose `terminal` is what the request says.

    Raises Unknown, in Go's words, for other JSON.
    """
    _check_json(value, PROCESS)
    spec = gojson.decode(value, dict[str, msgspec.Raw]) if value.strip() != b"null" else {}
    spec["terminal"] = msgspec.Raw(b"true" if terminal else b"false")
    return msgspec.json.encode(spec)


def resources(value: bytes) -> bytes:
    """Return the JSON of resources as it is. Raises Unknown, in Go's words, for other JSON."""
    _check_json(value, RESOURCES)
    return value


def _check_json(value: bytes, shape: Mapping[str, gojson.Shape]) -> None:
    wrong = gojson.syntax_error(value) or gojson.type_error(value, shape)
    if wrong:
        raise Unknown(wrong)


def deleted(process: Process) -> api.task_v3.DeleteResponse:
    """Return the answer to the deletion of a process."""
    return api.task_v3.DeleteResponse(
        pid=process.pid, exit_status=process.exit_status, exited_at=time_to_wire(process.exited_at_ns)
    )


def created_event(request: api.task_v3.CreateTaskRequest, pid: int) -> api.event_types.TaskCreate:
    """Return the event of a created container."""
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


def status_of(container: Container, process: Process) -> api.task_types.Status:
    """Return the status of a process as the API has it: pauses of the container show on running processes."""
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


def process_info(pid: int, exec_id: str | None) -> api.task_types.ProcessInfo:
    """Return an entry of the list of processes; only an exec has an id."""
    details = None if exec_id is None else marshal(api.runc.ProcessDetails(exec_id=exec_id))
    return api.task_types.ProcessInfo(pid=pid, info=any_to_wire(details))


def checkpoint_flags(request: api.task_v3.CheckpointTaskRequest) -> CheckpointFlags:
    """Return what a checkpoint request asks for. Raises InvalidArgument for options of another type."""
    options = api.runc.CheckpointOptions()
    if request.options is not None and request.options.type_url:
        given = unmarshal_known(typeurl.Any(request.options.type_url, request.options.value))
        if not isinstance(given, api.runc.CheckpointOptions):
            raise Unknown(f"invalid checkpoint options of type {request.options.type_url}")
        options = given
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
