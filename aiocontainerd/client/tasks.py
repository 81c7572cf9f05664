"""Tasks of a daemon: the init and exec processes of its containers (facts/runtime 4.2, 4.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aiocontainerd import api, typeurl
from aiocontainerd.client.connection import Connection
from aiocontainerd.errors import ContainerdError, FailedPrecondition, Internal
from aiocontainerd.interfaces.runtime import IO, Exit, ProcessInfo, ProcessState, ProcessStatus
from aiocontainerd.sys.mount import Mount
from aiocontainerd.wire.anys import any_to_wire
from aiocontainerd.wire.mounts import mounts_to_wire
from aiocontainerd.wire.tasks import exit_from_wire, process_from_wire, process_info_from_wire

SIGKILL = 9
STOP_S = 30.0
"""How long a killed process may take to be gone."""
KILL_AGAIN_S = 1.0


class Tasks:
    """The Tasks service. A process is a container's init for `exec_id` ""."""

    SERVICE = "containerd.services.tasks.v1.Tasks"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(
        self,
        container_id: str,
        *,
        rootfs: Sequence[Mount] = (),
        io: IO | None = None,
        options: typeurl.Any | None = None,
    ) -> int:
        """Create the task of a container and return the pid of its init. Raises AlreadyExists, NotFound."""
        t, io = api.tasks, io or IO()
        request = t.CreateTaskRequest(
            container_id=container_id,
            rootfs=mounts_to_wire(rootfs),
            stdin=io.stdin,
            stdout=io.stdout,
            stderr=io.stderr,
            terminal=io.terminal,
            options=any_to_wire(options),
        )
        return (await self._connection.call(self.SERVICE, "Create", request, t.CreateTaskResponse)).pid

    async def start(self, container_id: str, exec_id: str = "") -> int:
        """Start a process and return its pid."""
        t = api.tasks
        request = t.StartRequest(container_id=container_id, exec_id=exec_id)
        return (await self._connection.call(self.SERVICE, "Start", request, t.StartResponse)).pid

    async def get(self, container_id: str, exec_id: str = "") -> ProcessState:
        """Return the state of a process. Raises NotFound."""
        t = api.tasks
        request = t.GetRequest(container_id=container_id, exec_id=exec_id)
        answer = await self._connection.call(self.SERVICE, "Get", request, t.GetResponse)
        if answer.process is None:
            raise Internal(f"the daemon answered without the process of {container_id}")
        return process_from_wire(answer.process)

    async def list(self) -> list[ProcessState]:
        """Return the state of the init of every task."""
        t = api.tasks
        answer = await self._connection.call(self.SERVICE, "List", t.ListTasksRequest(), t.ListTasksResponse)
        return [process_from_wire(message) for message in answer.tasks]

    async def kill(self, container_id: str, signal: int, exec_id: str = "", *, all_processes: bool = False) -> None:
        """Send a signal to a process. Raises NotFound for a process that has gone."""
        request = api.tasks.KillRequest(container_id=container_id, exec_id=exec_id, signal=signal, all=all_processes)
        await self._connection.call(self.SERVICE, "Kill", request, api.protobuf.Empty)

    async def exec(self, container_id: str, exec_id: str, process: typeurl.Any, io: IO) -> None:
        """Add an exec; `process` is an OCI process. Raises AlreadyExists, NotFound."""
        request = api.tasks.ExecProcessRequest(
            container_id=container_id,
            exec_id=exec_id,
            stdin=io.stdin,
            stdout=io.stdout,
            stderr=io.stderr,
            terminal=io.terminal,
            spec=any_to_wire(process),
        )
        await self._connection.call(self.SERVICE, "Exec", request, api.protobuf.Empty)

    async def resize_pty(self, container_id: str, width: int, height: int, exec_id: str = "") -> None:
        """Set the size of a process's terminal."""
        request = api.tasks.ResizePtyRequest(container_id=container_id, exec_id=exec_id, width=width, height=height)
        await self._connection.call(self.SERVICE, "ResizePty", request, api.protobuf.Empty)

    async def close_stdin(self, container_id: str, exec_id: str = "") -> None:
        """Close the shim's end of stdin, so that the process reads EOF once the client has closed too."""
        request = api.tasks.CloseIoRequest(container_id=container_id, exec_id=exec_id, stdin=True)
        await self._connection.call(self.SERVICE, "CloseIO", request, api.protobuf.Empty)

    async def pause(self, container_id: str) -> None:
        """Freeze a container."""
        request = api.tasks.PauseTaskRequest(container_id=container_id)
        await self._connection.call(self.SERVICE, "Pause", request, api.protobuf.Empty)

    async def resume(self, container_id: str) -> None:
        """Thaw a container."""
        request = api.tasks.ResumeTaskRequest(container_id=container_id)
        await self._connection.call(self.SERVICE, "Resume", request, api.protobuf.Empty)

    async def pids(self, container_id: str) -> Sequence[ProcessInfo]:
        """Return every process of a container."""
        t = api.tasks
        request = t.ListPidsRequest(container_id=container_id)
        answer = await self._connection.call(self.SERVICE, "ListPids", request, t.ListPidsResponse)
        return [process_info_from_wire(message) for message in answer.processes]

    async def update(
        self, container_id: str, resources: typeurl.Any, annotations: Mapping[str, str] | None = None
    ) -> None:
        """Change resource limits; `resources` is an OCI LinuxResources."""
        request = api.tasks.UpdateTaskRequest(
            container_id=container_id, resources=any_to_wire(resources), annotations=dict(annotations or {})
        )
        await self._connection.call(self.SERVICE, "Update", request, api.protobuf.Empty)

    async def wait(self, container_id: str, exec_id: str = "") -> Exit:
        """Wait for the exit of a process, however long it takes."""
        t = api.tasks
        request = t.WaitRequest(container_id=container_id, exec_id=exec_id)
        answer = await self._connection.call(self.SERVICE, "Wait", request, t.WaitResponse, unlimited=True)
        return exit_from_wire(answer)

    async def delete(self, container_id: str, exec_id: str = "", *, force: bool = False) -> Exit:
        """End a task or forget an exec that has stopped; `force` kills it first.

        Raises FailedPrecondition while it runs (facts/runtime 4.5), NotFound.
        """
        if force:
            await self._kill_and_wait(container_id, exec_id)
        else:
            _check_stopped(await self.get(container_id, exec_id), exec_id)
        t = api.tasks
        if exec_id:
            request = t.DeleteProcessRequest(container_id=container_id, exec_id=exec_id)
            answer = await self._connection.call(self.SERVICE, "DeleteProcess", request, t.DeleteResponse)
        else:
            ended = t.DeleteTaskRequest(container_id=container_id)
            answer = await self._connection.call(self.SERVICE, "Delete", ended, t.DeleteResponse)
        return exit_from_wire(answer, answer.pid)

    async def _kill_and_wait(self, container_id: str, exec_id: str) -> None:
        """Kill until the process has ended: one that is still being started takes no signal."""
        import anyio

        with anyio.fail_after(STOP_S):
            while not await self._killed(container_id, exec_id):
                pass

    async def _killed(self, container_id: str, exec_id: str) -> bool:
        """Send SIGKILL once; return whether the process has ended by then, or was never started."""
        import anyio

        try:
            await self.kill(container_id, SIGKILL, exec_id, all_processes=not exec_id)
        except ContainerdError:
            pass  # what became of the process is asked next
        with anyio.move_on_after(KILL_AGAIN_S):
            await self.wait(container_id, exec_id)
            return True
        state = await self.get(container_id, exec_id)
        return state.status == ProcessStatus.CREATED and not state.pid


def _check_stopped(state: ProcessState, exec_id: str) -> None:
    if state.status in (ProcessStatus.STOPPED, ProcessStatus.UNKNOWN) or (
        state.status == ProcessStatus.CREATED and not state.pid
    ):
        return
    name = state.status.name.lower()
    if exec_id:
        raise FailedPrecondition(f"current process state: {name}, process must be stopped before deletion")
    raise FailedPrecondition(f"task must be stopped before deletion: {name}")
