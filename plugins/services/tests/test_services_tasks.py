"""The Tasks service (facts/runtime 4.2, 4.7) over a runtime in memory."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiocontainerd_services import tasks_checkpoint
from aiocontainerd_services.tasks import TasksService

from aiocontainerd import api, context, typeurl
from aiocontainerd.errors import AlreadyExists, DeadlineExceeded, InvalidArgument, NotFound, Unknown
from aiocontainerd.interfaces.metadata import Container
from aiocontainerd.interfaces.runtime import (
    IO,
    CreateOptions,
    ExecOptions,
    Exit,
    ProcessInfo,
    ProcessState,
    ProcessStatus,
)
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.rpc.binding import bind
from aiocontainerd.serve.tasks import TasksGrpc
from aiocontainerd.sys.mount import Mount
from aiocontainerd.testing.fakes import FakeContentStore
from aiocontainerd.typeurl import Any as TypedAny
from aiocontainerd.wire.anys import any_to_wire, marshal
from aiocontainerd.wire.times import time_from_wire

pytestmark = pytest.mark.anyio

SPEC = TypedAny(typeurl.SPEC_URL, b"{}")
RUNC = "io.containerd.runc.v2"


class FakeTask:
    """Remembers what was asked of it and of its execs."""

    def __init__(self, task_id: str) -> None:
        self.id = task_id
        self.namespace = "testing"
        self.pid = 7
        self.calls: list[tuple[object, ...]] = []
        self.error: Exception | None = None
        self.exec_id = ""

    def process(self, exec_id: str) -> FakeTask:
        if not exec_id:
            return self
        found = FakeTask(exec_id)
        found.calls, found.exec_id = self.calls, exec_id
        return found

    def _called(self, *call: object) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    async def start(self) -> int:
        self._called("start", self.id)
        return 8

    async def state(self) -> ProcessState:
        self._called("state", self.id)
        return ProcessState(id=self.id, pid=8, status=ProcessStatus.RUNNING)

    async def kill(self, signal: int, *, all_processes: bool = False) -> None:
        self._called("kill", self.id, signal, all_processes)

    async def resize_pty(self, width: int, height: int) -> None:
        self._called("resize_pty", self.id, width, height)

    async def close_io(self) -> None:
        self._called("close_io", self.id)

    async def wait(self) -> Exit:
        self._called("wait", self.id)
        return Exit(status=3, exited_at_ns=5, pid=8)

    async def delete(self) -> Exit:
        self._called("delete", self.id)
        return Exit(status=3, exited_at_ns=5, pid=8)

    async def exec(self, exec_id: str, options: ExecOptions) -> FakeTask:
        self._called("exec", exec_id, options)
        return self.process(exec_id)

    async def pause(self) -> None:
        self._called("pause")

    async def resume(self) -> None:
        self._called("resume")

    async def pids(self) -> Sequence[ProcessInfo]:
        self._called("pids")
        return [ProcessInfo(8), ProcessInfo(9, TypedAny("containerd.runc.v1.ProcessDetails", b"\n\x01e"))]

    async def checkpoint(self, path: str, options: TypedAny | None) -> None:
        self._called("checkpoint", path)
        if "image" not in path:
            await anyio.to_thread.run_sync(_fill, Path(path))

    async def update(self, resources: TypedAny | None, annotations: Mapping[str, str] | None = None) -> None:
        self._called("update", resources, annotations)

    async def stats(self) -> TypedAny:
        self._called("stats", self.id)
        return TypedAny("io.containerd.cgroups.v2.Metrics", b"")


def _fill(directory: Path) -> None:
    (directory / "core-1.img").symlink_to("elsewhere")


class FakeRuntime:
    def __init__(self) -> None:
        self.tasks: dict[str, FakeTask] = {}
        self.created: CreateOptions | None = None
        self.fails = False

    async def create(self, container_id: str, options: CreateOptions) -> FakeTask:
        self.created = options
        if self.fails:
            raise Unknown("failed to create shim task: no")
        task = self.tasks[container_id] = FakeTask(container_id)
        return task

    async def get(self, container_id: str) -> FakeTask:
        if container_id not in self.tasks:
            raise NotFound(f"task {container_id} not found")
        return self.tasks[container_id]

    async def list(self, *, all_namespaces: bool = False) -> Sequence[FakeTask]:
        return list(self.tasks.values())


class FakeMetadata:
    def __init__(self) -> None:
        self.content = FakeContentStore()
        self.containers = self
        self.records: dict[str, Container] = {}

    async def get(self, container_id: str) -> Container:
        if container_id not in self.records:
            raise NotFound(f'container "{container_id}" in namespace "testing"')
        return self.records[container_id]


class World:
    def __init__(self, directory: Path) -> None:
        self.metadata = FakeMetadata()
        self.runtime = FakeRuntime()
        self.directory = directory
        self.service = TasksService(self.metadata, self.runtime, directory)  # type: ignore[arg-type]  # fakes of the part in use
        self.grpc = TasksGrpc(self.service)

    def container(self, container_id: str, *, task: bool = True, runtime: str = RUNC) -> FakeTask:
        self.metadata.records[container_id] = Container(id=container_id, runtime_name=runtime, spec=SPEC)
        found = FakeTask(container_id)
        if task:
            self.runtime.tasks[container_id] = found
        return found


@pytest.fixture
def world(tmp_path: Path) -> Any:
    with context.use(namespace="testing"):
        yield World(tmp_path)


def test_every_method_of_the_api_is_served(world: World) -> None:
    assert [method.method for method in bind(world.grpc).values() if method.call is None] == []


async def test_create_takes_all_that_the_request_and_the_record_say(world: World) -> None:
    world.container("c", task=False)
    response = await world.grpc.create(
        api.tasks.CreateTaskRequest(
            container_id="c",
            rootfs=[api.types.Mount(type="bind", source="/s", options=["ro"])],
            stdin="/in", stdout="/out", stderr="/err", terminal=True,
            runtime_path="/opt/shim", task_api_address="ttrpc+unix:///s", task_api_version=3,
        )
    )  # fmt: skip
    assert (response.container_id, response.pid) == ("c", 7)
    created = world.runtime.created
    assert created is not None
    assert (created.runtime, created.spec) == ("/opt/shim", SPEC)
    assert created.rootfs == [Mount("bind", "/s", "", ("ro",))]
    assert created.io == IO(stdin="/in", stdout="/out", stderr="/err", terminal=True)
    assert (created.task_api_address, created.task_api_version, created.checkpoint) == ("ttrpc+unix:///s", 3, "")


async def test_a_task_needs_a_record_and_is_made_once(world: World) -> None:
    with pytest.raises(NotFound, match=r'^container "x" in namespace'):
        await world.grpc.create(api.tasks.CreateTaskRequest(container_id="x"))
    world.container("c")
    with pytest.raises(AlreadyExists, match=r"^task c$"):
        await world.grpc.create(api.tasks.CreateTaskRequest(container_id="c"))
    world.container("idle", task=False)
    with pytest.raises(NotFound, match=r"^task idle not found$"):
        await world.grpc.pause(api.tasks.PauseTaskRequest(container_id="idle"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (TypedAny("containerd.runc.v1.CheckpointOptions", b""), f"invalid task create option for {RUNC}"),
        (TypedAny("no.such.Type", b"x"), "type with url no.such.Type: not found"),
        (TypedAny("containerd.runc.v1.Options", b"\xff"), "proto: cannot parse invalid wire-format data"),
    ],
)
async def test_runc_takes_its_own_options_only(world: World, options: TypedAny, text: str) -> None:
    world.container("c", task=False)
    request = api.tasks.CreateTaskRequest(container_id="c", options=any_to_wire(options))
    with pytest.raises(Unknown, match=f"^{text}$"):
        await world.grpc.create(request)
    world.container("k", task=False, runtime="io.containerd.kata.v2")
    request.container_id = "k"
    await world.grpc.create(request)


async def test_calls_go_to_init_or_to_the_exec(world: World) -> None:
    task = world.container("c")
    t = api.tasks
    assert (await world.grpc.start(t.StartRequest(container_id="c"))).pid == 8
    await world.grpc.kill(t.KillRequest(container_id="c", exec_id="e", signal=15, all=True))
    await world.grpc.resize_pty(t.ResizePtyRequest(container_id="c", exec_id="e", width=80, height=24))
    await world.grpc.close_io(t.CloseIoRequest(container_id="c"))
    await world.grpc.close_io(t.CloseIoRequest(container_id="c", stdin=True))
    await world.grpc.pause(t.PauseTaskRequest(container_id="c"))
    await world.grpc.resume(t.ResumeTaskRequest(container_id="c"))
    await world.grpc.update(t.UpdateTaskRequest(container_id="c", annotations={"a": "b"}))
    assert task.calls == [
        ("start", "c"), ("kill", "e", 15, True), ("resize_pty", "e", 80, 24), ("close_io", "c"), ("pause",),
        ("resume",), ("update", None, {"a": "b"}),
    ]  # fmt: skip


async def test_execs_need_an_id(world: World) -> None:
    task = world.container("c")
    with pytest.raises(InvalidArgument, match=r"^exec id cannot be empty$"):
        await world.grpc.exec(api.tasks.ExecProcessRequest(container_id="c"))
    await world.grpc.exec(api.tasks.ExecProcessRequest(container_id="c", exec_id="e", stdout="/o"))
    assert [call[:2] for call in task.calls] == [("exec", "e")]


async def test_a_running_init_is_not_deleted_as_a_process(world: World) -> None:
    task = world.container("c")
    with pytest.raises(Unknown, match=r"^cannot delete a running process$"):
        await world.grpc.delete_process(api.tasks.DeleteProcessRequest(container_id="c"))
    assert [call[:2] for call in task.calls] == [("state", "c")]


async def test_a_task_without_a_container_record_is_still_killed_and_deleted(world: World) -> None:
    task = world.container("c")
    world.metadata.records.pop("c")
    await world.grpc.kill(api.tasks.KillRequest(container_id="c", signal=9))
    await world.grpc.delete(api.tasks.DeleteTaskRequest(container_id="c"))
    assert [call[0] for call in task.calls] == ["kill", "delete"]
    with pytest.raises(NotFound, match=r'^container "nobody"'):
        await world.grpc.kill(api.tasks.KillRequest(container_id="nobody", signal=9))


async def test_exits_travel_with_their_times(world: World) -> None:
    world.container("c")
    waited = await world.grpc.wait(api.tasks.WaitRequest(container_id="c"))
    assert (waited.exit_status, time_from_wire(waited.exited_at)) == (3, 5)
    forgotten = await world.grpc.delete_process(api.tasks.DeleteProcessRequest(container_id="c", exec_id="e"))
    assert (forgotten.id, forgotten.pid, forgotten.exit_status) == ("e", 8, 3)
    deleted = await world.grpc.delete(api.tasks.DeleteTaskRequest(container_id="c"))
    assert (deleted.pid, deleted.exit_status) == (8, 3)


async def test_a_running_process_has_gos_zero_time(world: World) -> None:
    world.container("c")
    process = (await world.grpc.get(api.tasks.GetRequest(container_id="c", exec_id="e"))).process
    assert process is not None
    assert (process.id, process.container_id, process.pid) == ("e", "", 8)
    assert process.exited_at is not None
    assert process.exited_at.seconds == -62135596800


async def test_a_list_drops_what_is_gone_and_shows_what_does_not_answer(world: World) -> None:
    world.container("gone").error = NotFound("task gone")
    world.container("hangs").error = DeadlineExceeded("late")
    world.container("runs")
    found = (await world.grpc.list(api.tasks.ListTasksRequest(filter="id==nothing"))).tasks
    assert [(process.id, int(process.status)) for process in found] == [("hangs", 0), ("runs", 2)]
    with pytest.raises(DeadlineExceeded):
        await world.grpc.get(api.tasks.GetRequest(container_id="hangs"))


async def test_pids_carry_the_shims_words(world: World) -> None:
    world.container("c")
    first, second = (await world.grpc.list_pids(api.tasks.ListPidsRequest(container_id="c"))).processes
    assert (first.pid, first.info) == (8, None)
    assert second.info is not None
    assert second.info.type_url == "containerd.runc.v1.ProcessDetails"


async def test_metrics_are_those_of_the_tasks_a_filter_matches(world: World) -> None:
    for name in ("a", "b", "c"):
        world.container(name)
    world.runtime.tasks["b"].error = DeadlineExceeded("late")
    every = (await world.grpc.metrics(api.tasks.MetricsRequest())).metrics
    assert [metric.id for metric in every] == ["a", "c"]
    one = (await world.grpc.metrics(api.tasks.MetricsRequest(filters=["id==c,namespace==testing"]))).metrics
    assert [metric.id for metric in one] == ["c"]
    assert one[0].data is not None
    assert one[0].data.type_url == "io.containerd.cgroups.v2.Metrics"
    with pytest.raises(Unknown, match=r"expected value or quoted: invalid argument$"):
        await world.grpc.metrics(api.tasks.MetricsRequest(filters=["id=="]))


async def test_a_checkpoint_becomes_two_blobs_and_comes_back(world: World) -> None:
    world.container("c")
    response = await world.grpc.checkpoint(api.tasks.CheckpointTaskRequest(container_id="c"))
    images, config = response.descriptors
    assert images.media_type == tasks_checkpoint.CRIU_MEDIA_TYPE
    assert config.media_type == tasks_checkpoint.CONFIG_MEDIA_TYPE
    stored = api.protobuf.Any.parse(world.metadata.content.blobs[config.digest])
    assert (stored.type_url, stored.value) == (SPEC.type_url, SPEC.value)
    assert list(world.directory.iterdir()) == []

    world.container("d", task=False)
    await world.grpc.create(api.tasks.CreateTaskRequest(container_id="d", checkpoint=images))
    assert world.runtime.created is not None
    directory = Path(world.runtime.created.checkpoint)
    assert (directory / "core-1.img").is_symlink()
    await world.grpc.start(api.tasks.StartRequest(container_id="d"))
    assert list(world.directory.iterdir()) == []


async def test_a_checkpoint_into_a_directory_makes_no_blobs(world: World) -> None:
    task = world.container("c")
    options = marshal(api.runc.CheckpointOptions(image_path="/image"))
    request = api.tasks.CheckpointTaskRequest(container_id="c", options=any_to_wire(options))
    assert (await world.grpc.checkpoint(request)).descriptors == []
    assert task.calls == [("checkpoint", "/image")]
    wrong = any_to_wire(marshal(api.runc.Options()))
    with pytest.raises(Unknown, match=rf"^invalid task checkpoint option for {RUNC}$"):
        await world.grpc.checkpoint(api.tasks.CheckpointTaskRequest(container_id="c", options=wrong))


async def test_an_image_path_to_restore_from_wins(world: World) -> None:
    world.container("c", task=False)
    options = any_to_wire(marshal(api.runc.Options(criu_image_path="/criu")))
    checkpoint = api.types.Descriptor(media_type="other", digest="sha256:0")
    await world.grpc.create(api.tasks.CreateTaskRequest(container_id="c", options=options, checkpoint=checkpoint))
    assert world.runtime.created is not None
    assert world.runtime.created.checkpoint == "/criu"


async def test_another_kind_of_checkpoint_is_refused(world: World) -> None:
    world.container("c", task=False)
    checkpoint = api.types.Descriptor(media_type="other", digest="sha256:0")
    with pytest.raises(Unknown, match=r'^unsupported checkpoint type "other"$'):
        await world.grpc.create(api.tasks.CreateTaskRequest(container_id="c", checkpoint=checkpoint))


async def test_a_failed_create_leaves_no_checkpoint(world: World) -> None:
    world.container("c")
    images = (await world.grpc.checkpoint(api.tasks.CheckpointTaskRequest(container_id="c"))).descriptors[0]
    world.runtime.tasks.clear()
    world.runtime.fails = True
    with pytest.raises(Unknown, match="failed to create shim task"):
        await world.grpc.create(api.tasks.CreateTaskRequest(container_id="c", checkpoint=images))
    assert list(world.directory.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("../out", tarfile.REGTYPE, "leads outside"),
        ("/etc/x", tarfile.REGTYPE, "leads outside"),
        ("link/x", tarfile.REGTYPE, "is below a link"),
        ("device", tarfile.CHRTYPE, "is neither file, directory nor link"),
    ],
)
async def test_an_archive_that_leaves_its_directory_is_refused(
    tmp_path: Path, name: str, kind: bytes, text: str
) -> None:
    content = FakeContentStore()
    async with await content.writer("ref") as writer:
        await writer.write(_archive(name, kind))
        digest, size = writer.digest(), writer.offset
        await writer.commit()
    checkpoint = Descriptor(tasks_checkpoint.CRIU_MEDIA_TYPE, digest, size)
    with pytest.raises(InvalidArgument, match=text):
        await tasks_checkpoint.unpack(content, checkpoint, tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def _archive(name: str, kind: bytes) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/tmp"
        tar.addfile(link)
        member = tarfile.TarInfo(name)
        member.type = kind
        tar.addfile(member)
    return data.getvalue()
