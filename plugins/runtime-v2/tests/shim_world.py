"""Fake shims that speak the task API over real sockets, and a runtime over them; no root needed."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.to_thread
import pytest
from aiocontainerd_runtime_v2.bootstrap import Endpoint
from aiocontainerd_runtime_v2.bundle import Layout
from aiocontainerd_runtime_v2.deadlines import Deadlines
from aiocontainerd_runtime_v2.manager import ShimManager, Surroundings
from aiocontainerd_runtime_v2.recovery import Recovery
from aiocontainerd_runtime_v2.runtime import ShimTaskRuntime
from anyio.abc import TaskGroup

from aiocontainerd import api, context
from aiocontainerd.errors import (
    DeadlineExceeded,
    NotFound,
    Unknown,
)
from aiocontainerd.interfaces.runtime import CreateOptions, ProcessStatus, TaskRuntime
from aiocontainerd.interfaces.shim import ShimCommand
from aiocontainerd.rpc.ttrpc.server import TtrpcServer
from aiocontainerd.typeurl import Any as TypedAny
from aiocontainerd.wire import codec
from aiocontainerd.wire.times import time_to_wire

NAMESPACE = "testing"
LIMITS = Deadlines(call_s=30, state_s=30, stats_s=30, load_s=30, cleanup_s=30, shutdown_s=30)
"""Longer than a busy machine lets a test wait."""
HASTY = Deadlines(call_s=0.3, state_s=0.1, stats_s=0.1, load_s=2, cleanup_s=0.3, shutdown_s=0.3)
"""For tests of shims that hang."""


class FakeShim:
    """One shim process: its containers by id, on a socket of its own."""

    service_name: ClassVar[str] = "containerd.task.v3.Task"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.statuses: dict[str, int] = {}
        self.exited: dict[str, anyio.Event] = {}
        self.hangs = False
        self.fails_create = False
        self.is_late = False
        self.pid = 42
        self.fails_state = False
        self.waits = 0
        self.may_delete = anyio.Event()
        self.may_delete.set()
        self.calls: list[str] = []
        self._server: TtrpcServer | None = None

    async def serve(self) -> None:
        await anyio.to_thread.run_sync(partial(self.path.unlink, missing_ok=True))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen()
        listener.setblocking(False)
        self._server = TtrpcServer([self])
        await self._server.start(listener)

    async def die(self) -> None:
        if self._server is not None:
            await self._server.aclose(0)
            self._server = None

    async def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.hangs:
            await anyio.sleep_forever()

    async def create(self, request: Any) -> Any:
        await self._called("create")
        if self.fails_create:
            raise Unknown("OCI runtime create failed: no")
        self.statuses[request.id] = ProcessStatus.CREATED
        self.exited[request.id] = anyio.Event()
        return api.task_v3.CreateTaskResponse(pid=41 if self.pid == 42 else self.pid)

    async def start(self, request: Any) -> Any:
        await self._called("start")
        if self.is_late:
            raise DeadlineExceeded("the OCI runtime did not end within 10s")
        self.statuses[request.id] = ProcessStatus.RUNNING
        return api.task_v3.StartResponse(pid=self.pid)

    async def state(self, request: Any) -> Any:
        await self._called("state")
        self._known(request.id)
        if self.fails_state:
            raise Unknown("exit status 1")
        status = api.task_types.Status(int(self.statuses[request.id]))
        return api.task_v3.StateResponse(id=request.id, pid=self.pid, status=status, exited_at=time_to_wire(0))

    async def exec(self, _request: Any) -> Any:
        await self._called("exec")
        return api.protobuf.Empty()

    async def kill(self, request: Any) -> Any:
        await self._called("kill")
        self.statuses[request.id] = ProcessStatus.STOPPED
        self.exited[request.id].set()
        return api.protobuf.Empty()

    async def wait(self, request: Any) -> Any:
        await self._called("wait")
        self.waits += 1
        await self.exited[request.id].wait()
        return api.task_v3.WaitResponse(exit_status=137, exited_at=time_to_wire(7))

    async def delete(self, request: Any) -> Any:
        await self._called("delete")
        await self.may_delete.wait()
        self._known(request.id)
        del self.statuses[request.id]
        return api.task_v3.DeleteResponse(pid=42, exit_status=137, exited_at=time_to_wire(7))

    async def connect(self, _request: Any) -> Any:
        await self._called("connect")
        return api.task_v3.ConnectResponse(shim_pid=1, task_pid=42)

    async def shutdown(self, _request: Any) -> Any:
        await self._called("shutdown")
        return api.protobuf.Empty()

    def _known(self, task_id: str) -> None:
        if task_id not in self.statuses:
            raise NotFound("container not created")


class OldShim(FakeShim):
    """Knows version 2 of the task API only, whatever it said at its start."""

    service_name: ClassVar[str] = "containerd.task.v2.Task"


class FakeLauncher:
    """Starts fake shims in this process, in place of a fork server."""

    cleans_up = True
    runtimes = ("io.containerd.fake.v1",)
    binary = Path("/opt/fake/containerd-shim-fake-v1")

    def __init__(self, sockets: Path) -> None:
        self._sockets = sockets
        self.shims: dict[str, FakeShim] = {}
        self.actions: list[str] = []
        self.protocol = "ttrpc"
        self.shim_class = FakeShim
        self.fails_delete = False
        self.rests = False
        self.measured: list[tuple[str, int]] = []

    async def stats(self, bundle: Path, pid: int) -> TypedAny:
        self.measured.append((bundle.name, pid))
        return TypedAny("io.containerd.cgroups.v2.Metrics", b"")

    async def start(self, command: ShimCommand, *, timeout_s: float) -> bytes:  # noqa: ARG002 - a fake shim is started at once
        self.actions.append(f"start {command.id}")
        shim = self.shims.get(command.id)
        if shim is None:
            shim = self.shims[command.id] = self.shim_class(self._sockets / command.id)
            await shim.serve()
        endpoint = Endpoint(3, f"unix://{shim.path}", self.protocol)
        return codec.encode(
            api.bootstrap.BootstrapResult(version=3, address=endpoint.address, protocol=endpoint.protocol)
        )

    async def delete(self, command: ShimCommand, *, timeout_s: float) -> bytes:  # noqa: ARG002 - a fake shim is started at once
        self.actions.append(f"delete {command.id}")
        if self.fails_delete:
            raise Unknown("no")
        return codec.encode(api.task_v3.DeleteResponse(pid=42, exit_status=137, exited_at=time_to_wire(9_000_000_000)))


class World:
    """Directories, launcher and events that outlive the runtimes of a test."""

    def __init__(self, directory: Path, sockets: Path) -> None:
        self.directory = directory
        self.sockets = sockets
        self.launcher = FakeLauncher(sockets)
        self.layout = Layout(directory / "state", directory / "root")
        self.events: list[tuple[str, Any]] = []
        self.records: dict[str, str] = {}
        self.specs: dict[str, bytes] = {}

    @contextlib.asynccontextmanager
    async def run(self, *, limits: Deadlines = LIMITS) -> AsyncIterator[ShimTaskRuntime]:
        with context.use(namespace=NAMESPACE):
            async with anyio.create_task_group() as group:
                runtime = self._runtime(group, limits)
                recovery, ready = Recovery(runtime, self._runtime_name, self._spec), anyio.Event()
                group.start_soon(recovery.run, await recovery.scan(), ready)
                await ready.wait()
                yield runtime
                await runtime.stop()
                group.cancel_scope.cancel()

    def _runtime(self, group: TaskGroup, limits: Deadlines) -> ShimTaskRuntime:
        around = Surroundings(grpc_address="/g", ttrpc_address="/t", publish_binary="/bin/true")

        def spawn(function: Any, *args: Any, name: str = "") -> None:
            group.start_soon(function, *args, name=name or None)

        manager = ShimManager(around, limits, [self.launcher])
        runtime = ShimTaskRuntime(self.layout, manager, self._publish, spawn, self.directory / "sandboxes")
        checked: TaskRuntime = runtime
        del checked
        return runtime

    def _publish(self, topic: str, event: Any, *, namespace: str) -> None:
        self.events.append((f"{namespace}{topic}", event))

    async def _runtime_name(self, container_id: str) -> str:
        if container_id not in self.records:
            raise NotFound(f'container "{container_id}" in namespace "{context.namespace()}"')
        return self.records[container_id]

    async def _spec(self, container_id: str) -> bytes:
        if container_id not in self.specs:
            raise NotFound(f'container "{container_id}" in namespace "{context.namespace()}"')
        return self.specs[container_id]

    def bundle(self, task_id: str) -> Path:
        return self.layout.bundle(NAMESPACE, task_id).path

    async def close(self) -> None:
        for shim in self.launcher.shims.values():
            await shim.die()


@pytest.fixture
def sockets() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="shims"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
async def world(tmp_path: Path, sockets: Path) -> AsyncIterator[World]:
    found = World(tmp_path, sockets)
    await anyio.to_thread.run_sync(found.layout.prepare)
    yield found
    await found.close()


OPTIONS = CreateOptions(runtime="io.containerd.fake.v1", spec=TypedAny("spec", b"{}"))
