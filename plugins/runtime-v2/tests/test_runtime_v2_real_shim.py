"""The runtime against containerd's own runc shim, which speaks version 2 of the task API and prints a bare address."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest
from aiocontainerd_runtime_v2.bundle import Layout
from aiocontainerd_runtime_v2.deadlines import Deadlines
from aiocontainerd_runtime_v2.manager import ShimManager, Surroundings
from aiocontainerd_runtime_v2.recovery import Recovery
from aiocontainerd_runtime_v2.runtime import ShimTaskRuntime
from aiocontainerd_runtime_v2.task import ShimTask
from anyio.abc import TaskStatus

from aiocontainerd import api, context
from aiocontainerd.errors import AlreadyExists, ContainerdError, NotFound, Unknown
from aiocontainerd.interfaces.runtime import CreateOptions, ExecOptions, ProcessStatus
from aiocontainerd.rpc.ttrpc.server import TtrpcServer
from aiocontainerd.sys.mount import Mount, mounts_under
from aiocontainerd.testing.processes import ended
from aiocontainerd.typeurl import PROCESS_URL, SPEC_URL
from aiocontainerd.typeurl import Any as TypedAny

RUNTIME = "io.containerd.runc.v2"
TASK_IDS = ("dead", "half", "lost", "one", "stays", "stops", "two")
pytestmark = [
    pytest.mark.root,
    pytest.mark.anyio,
    pytest.mark.skipif(shutil.which("containerd-shim-runc-v2") is None, reason="containerd-shim-runc-v2 is missing"),
    pytest.mark.skipif(shutil.which("runc") is None, reason="runc is missing"),
    pytest.mark.skipif(not os.path.exists("/bin/busybox"), reason="busybox is missing"),
]


class ShimEvents:
    """Takes what shims forward."""

    service_name: ClassVar[str] = "containerd.services.events.ttrpc.v1.Events"

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    async def forward(self, request: Any) -> object:
        self._topics.append(request.envelope.topic)
        return api.protobuf.Empty()


class Daemon:
    """A runtime that can be stopped and started again over the same directories, like the daemon's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.namespace = f"rt{uuid.uuid4().hex[:10]}"
        self.events: list[tuple[str, Any]] = []
        self.forwarded: list[str] = []
        self.layout = Layout(directory / "state", directory / "root")
        self.layout.prepare()

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[ShimTaskRuntime]:
        surroundings = Surroundings(
            grpc_address=str(self.directory / "c.sock"),
            ttrpc_address=str(self.directory / "c.sock.ttrpc"),
            publish_binary="/bin/true",
        )
        manager = ShimManager(surroundings, Deadlines(call_s=20, start_s=20))
        with context.use(namespace=self.namespace):
            async with anyio.create_task_group() as group:

                def spawn(function: Any, *args: Any, name: str = "") -> None:
                    group.start_soon(function, *args, name=name or None)

                await group.start(self._serve_events)
                runtime = ShimTaskRuntime(self.layout, manager, self._publish, spawn, self.directory / "sandboxes")
                recovery, ready = Recovery(runtime, self._runtime_name, self._spec), anyio.Event()
                spawn(recovery.run, await recovery.scan(), ready)
                await ready.wait()
                try:
                    yield runtime
                finally:
                    await runtime.stop()
                    group.cancel_scope.cancel()

    async def _serve_events(self, *, task_status: TaskStatus[None]) -> None:
        path = self.directory / "c.sock.ttrpc"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            listener.setblocking(False)
            task_status.started()
            await TtrpcServer([ShimEvents(self.forwarded)]).serve(listener)

    def _publish(self, topic: str, event: Any, *, namespace: str) -> None:
        assert namespace == self.namespace
        self.events.append((topic, event))

    async def _runtime_name(self, container_id: str) -> str:
        raise NotFound(f'container "{container_id}" in namespace "{self.namespace}"')

    async def _spec(self, container_id: str) -> bytes:
        raise NotFound(f'container "{container_id}" in namespace "{self.namespace}"')

    def bundle(self, task_id: str) -> Path:
        return self.layout.bundle(self.namespace, task_id).path

    def sockets(self) -> list[Path]:
        """Sockets of shims of this daemon, by the ids in use here."""
        named = [f"{self.directory}/c.sock/{self.namespace}/{task_id}" for task_id in TASK_IDS]
        paths = [Path("/run/containerd/s", hashlib.sha256(name.encode()).hexdigest()) for name in named]
        return [path for path in paths if path.exists()]

    def shims(self) -> list[int]:
        return [pid for pid, line in _processes() if f"-namespace {self.namespace} " in line and "shim" in line]


def _processes() -> list[tuple[int, str]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found.append((int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
    return found


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "image"
    for name in ("bin", "proc", "dev", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    for applet in ("sh", "sleep", "true", "echo", "cat"):
        (root / "bin" / applet).symlink_to("busybox")
    return root


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    found = Daemon(tmp_path)
    yield found
    for pid in found.shims():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert mounts_under(str(tmp_path / "state")) == []
    assert found.sockets() == []
    assert not Path("/run/containerd/runc", found.namespace).exists()
    base = Path("/sys/fs/cgroup")
    assert [*base.glob(found.namespace), *base.glob(f"*/{found.namespace}")] == []


def spec_of(namespace: str, task_id: str, *args: str) -> TypedAny:
    spec = {
        "ociVersion": "1.0.2",
        "process": _process(*args),
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "cgroupsPath": f"/{namespace}/{task_id}",
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
        },
    }
    return TypedAny(SPEC_URL, json.dumps(spec).encode())


def _process(*args: str) -> dict[str, object]:
    return {"user": {"uid": 0, "gid": 0}, "args": list(args), "env": ["PATH=/bin"], "cwd": "/"}


def options_of(daemon: Daemon, rootfs: Path, task_id: str, *args: str) -> CreateOptions:
    mount = Mount("bind", str(rootfs), options=("rbind", "rw"))
    return CreateOptions(runtime=RUNTIME, spec=spec_of(daemon.namespace, task_id, *args), rootfs=(mount,))


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - it is other processes that make it true
            await anyio.sleep(0.01)


async def settled(runtime: ShimTaskRuntime, daemon: Daemon) -> None:
    """Wait until every id is free and every shim gone."""
    await until(lambda: not (runtime.statistics()["removing"] or daemon.shims()))


async def finish(task: ShimTask, runtime: ShimTaskRuntime, daemon: Daemon) -> None:
    with contextlib.suppress(ContainerdError):
        await task.kill(signal.SIGKILL, all_processes=True)
    await task.wait()
    await task.delete()
    await settled(runtime, daemon)


async def test_a_task_lives_from_create_to_delete(daemon: Daemon, rootfs: Path) -> None:
    async with daemon.run() as runtime:
        task = await runtime.create("one", options_of(daemon, rootfs, "one", "sh", "-c", "exit 7"))
        assert (await task.state()).status is ProcessStatus.CREATED
        bundle = daemon.bundle("one")
        assert bundle.stat().st_mode & 0o777 == 0o700
        assert (bundle / "rootfs" / "bin" / "busybox").exists()
        assert json.loads((bundle / "bootstrap.json").read_bytes())["version"] == 2
        pid = await task.start()
        assert pid == task.pid > 0
        ended = await task.wait()
        assert ended.status == 7
        state = await task.state()
        assert (state.status, state.exit_status, state.exited_at_ns) == (ProcessStatus.STOPPED, 7, ended.exited_at_ns)
        assert (await task.delete()).status == 7
        with pytest.raises(NotFound, match="task one not found"):
            await runtime.get("one")
        await settled(runtime, daemon)
        assert daemon.forwarded == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
        assert not bundle.exists()
        assert not daemon.layout.bundle(daemon.namespace, "one").work.exists()
    assert daemon.events == []


async def test_an_exec_runs_beside_init_and_tells_its_own_exit(daemon: Daemon, rootfs: Path) -> None:
    async with daemon.run() as runtime:
        task = await runtime.create("two", options_of(daemon, rootfs, "two", "sleep", "100"))
        await task.start()
        body = TypedAny(PROCESS_URL, json.dumps(_process("sh", "-c", "exit 3")).encode())
        process = await task.exec("e1", ExecOptions(spec=body))
        with pytest.raises(AlreadyExists):
            await task.exec("e1", ExecOptions(spec=body))
        assert await process.start() > 0
        assert (await process.wait()).status == 3
        assert (await process.delete()).status == 3
        with pytest.raises(NotFound):
            await process.state()
        assert task.pid in [found.pid for found in await task.pids()]
        await task.pause()
        assert (await task.state()).status is ProcessStatus.PAUSED
        await task.resume()
        assert (await task.stats()).type_url.startswith("io.containerd.cgroups.v")
        with pytest.raises(ContainerdError, match="failed to delete task: cannot delete a running process"):
            await task.delete()
        await finish(task, runtime, daemon)


async def test_a_failed_create_leaves_nothing(daemon: Daemon, rootfs: Path) -> None:
    async with daemon.run() as runtime:
        with pytest.raises(ContainerdError, match="failed to create shim task: "):
            await runtime.create("bad", options_of(daemon, rootfs / "missing", "bad", "true"))
        await settled(runtime, daemon)
        assert not daemon.bundle("bad").exists()
        with pytest.raises(Unknown, match="failed to resolve runtime path: runtime"):
            await runtime.create("bad", CreateOptions(runtime="io.containerd.nosuch.v9"))
        assert runtime.statistics() == {"tasks": 0, "creating": 0, "loading": 0, "removing": 0}
    assert daemon.events == []


async def test_a_killed_shim_ends_its_task_with_two_events(daemon: Daemon, rootfs: Path) -> None:
    async with daemon.run() as runtime:
        task = await runtime.create("dead", options_of(daemon, rootfs, "dead", "sleep", "100"))
        init = await task.start()
        ends = []

        async def wait() -> None:
            ends.append(await task.wait())

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            (shim,) = daemon.shims()
            os.kill(shim, signal.SIGKILL)
        await settled(runtime, daemon)
        assert [end.status for end in ends] == [137]
        assert [topic for topic, _ in daemon.events] == ["/tasks/exit", "/tasks/delete"]
        event = daemon.events[0][1]
        assert (event.container_id, event.id, event.exit_status, event.pid) == ("dead", "dead", 137, init)
        assert ended(init)
        assert not daemon.bundle("dead").exists()
        again = await runtime.create("dead", options_of(daemon, rootfs, "dead", "true"))
        await finish(again, runtime, daemon)


async def test_tasks_are_found_again_after_a_restart(daemon: Daemon, rootfs: Path) -> None:
    async with daemon.run() as runtime:
        for task_id in ("stays", "stops"):
            task = await runtime.create(task_id, options_of(daemon, rootfs, task_id, "sleep", "100"))
            await task.start()
        pid = (await runtime.get("stays")).pid
    async with daemon.run() as runtime:
        task = await runtime.get("stays")
        assert (await task.state()).status is ProcessStatus.RUNNING
        assert task.pid == pid
        other = await runtime.get("stops")
        await other.kill(signal.SIGKILL)
        assert (await other.wait()).status == 137
    async with daemon.run() as runtime:
        other = await runtime.get("stops")
        assert (await other.state()).status is ProcessStatus.STOPPED
        assert (await other.delete()).status == 137
        await finish(await runtime.get("stays"), runtime, daemon)
    assert daemon.events == []


async def test_a_shim_that_died_with_the_daemon_is_cleaned_up_at_the_next_start(daemon: Daemon, rootfs: Path) -> None:
    async with daemon.run() as runtime:
        task = await runtime.create("lost", options_of(daemon, rootfs, "lost", "sleep", "100"))
        init = await task.start()
    (shim,) = daemon.shims()
    os.kill(shim, signal.SIGKILL)
    await until(lambda: not daemon.shims())
    async with daemon.run() as runtime:
        with pytest.raises(NotFound):
            await runtime.get("lost")
        assert not daemon.bundle("lost").exists()
        assert ended(init)
    assert daemon.events == []


async def test_a_shim_of_a_half_made_bundle_is_ended(daemon: Daemon, rootfs: Path) -> None:
    async with daemon.run() as runtime:
        await runtime.create("half", options_of(daemon, rootfs, "half", "sleep", "100"))
    (daemon.bundle("half") / "bootstrap.json").unlink()
    (daemon.bundle("half") / "address").unlink(missing_ok=True)
    async with daemon.run() as runtime:
        with pytest.raises(NotFound):
            await runtime.get("half")
        await settled(runtime, daemon)
        assert not daemon.bundle("half").exists()
