"""The runtime against fake shims that speak the task API over real sockets; no root needed."""

from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from aiocontainerd_runtime_v2 import bundle as bundles
from aiocontainerd_runtime_v2.bootstrap import Endpoint, to_json
from aiocontainerd_runtime_v2.deadlines import Deadlines
from shim_world import HASTY, NAMESPACE, OPTIONS, FakeShim, OldShim, World, sockets, world

from aiocontainerd import api, context
from aiocontainerd.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InvalidArgument,
    LocalDeadline,
    NotFound,
    Unavailable,
    Unimplemented,
    Unknown,
)
from aiocontainerd.interfaces.runtime import CreateOptions, ExecOptions, ProcessStatus, Task, TaskRuntime
from aiocontainerd.rpc.ttrpc.client import TtrpcClient
from aiocontainerd.testing.processes import ended
from aiocontainerd.wire import codec
from aiocontainerd.wire.anys import marshal, unmarshal

pytestmark = pytest.mark.anyio


__all__ = ["sockets", "world"]


async def test_a_launcher_that_cleans_up_needs_no_delete_action(world: World) -> None:
    async with world.run() as runtime:
        task: Task = await runtime.create("a", OPTIONS)
        assert task.pid == 41
        assert await task.start() == 42
        await task.kill(9)
        assert (await task.wait()).status == 137
        assert (await task.delete()).status == 137
        with anyio.fail_after(5):
            while world.bundle("a").exists():  # noqa: ASYNC110 - it goes after the answer, in a thread
                await anyio.sleep(0.01)
    assert world.launcher.actions == ["start a"]
    assert world.launcher.shims["a"].calls[-2:] == ["delete", "shutdown"]
    assert world.events == []


async def test_a_shim_of_the_old_api_is_noticed_at_create(world: World) -> None:
    world.launcher.shim_class = OldShim
    async with world.run() as runtime:
        task = await runtime.create("a", OPTIONS)
        assert task.shim.version == 2
        assert (await task.state()).status is ProcessStatus.CREATED


async def test_a_grpc_shim_is_refused_by_name(world: World) -> None:
    world.launcher.protocol = "grpc"
    async with world.run() as runtime:
        with pytest.raises(Unimplemented, match=r'^failed to start shim: .*unexpected protocol: "grpc" of the shim of'):
            await runtime.create("a", OPTIONS)
        assert not world.bundle("a").exists()


async def test_ids_are_checked_and_taken_once(world: World) -> None:
    async with world.run() as runtime:
        with pytest.raises(InvalidArgument, match=r'^invalid task id \.\./x: identifier "\.\./x" must match'):
            await runtime.create("../x", OPTIONS)
        task = await runtime.create("a", OPTIONS)
        with pytest.raises(AlreadyExists, match=r"^task a$"):
            await runtime.create("a", OPTIONS)
        with pytest.raises(InvalidArgument, match=r"^invalid exec id a/b: "):
            await task.exec("a/b", ExecOptions(spec=None))
        with context.use(namespace="other"), pytest.raises(NotFound, match="task a not found"):
            await runtime.get("a")


async def test_a_failed_create_is_taken_back_without_events(world: World, sockets: Path) -> None:
    shim = world.launcher.shims["a"] = FakeShim(sockets / "a")
    shim.fails_create = True
    await shim.serve()
    async with world.run() as runtime:
        with pytest.raises(Unknown, match=r"^failed to create shim task: OCI runtime create failed: no$"):
            await runtime.create("a", OPTIONS)
        assert runtime.statistics() == {"tasks": 0, "creating": 0, "loading": 0, "removing": 0}
    assert shim.calls == ["create", "delete", "shutdown"]
    assert world.launcher.actions == ["start a", "delete a"]
    assert not world.bundle("a").exists()
    assert world.events == []


async def test_a_cancelled_create_leaves_nothing(world: World, sockets: Path) -> None:
    shim = world.launcher.shims["a"] = FakeShim(sockets / "a")
    shim.hangs = True
    await shim.serve()
    async with world.run(limits=HASTY) as runtime:
        with anyio.move_on_after(0.05):
            await runtime.create("a", OPTIONS)
        assert not world.bundle("a").exists()
        assert runtime.statistics()["creating"] == 0


async def test_a_hanging_shim_costs_its_own_calls_only(world: World) -> None:
    async with world.run(limits=HASTY) as runtime:
        slow, quick = await runtime.create("slow", OPTIONS), await runtime.create("quick", OPTIONS)
        world.launcher.shims["slow"].hangs = True
        with pytest.raises(DeadlineExceeded, match=r'task "slow" \(unix://.*\) did not answer State within 0.1s'):
            await slow.state()
        await quick.start()
        with pytest.raises(DeadlineExceeded, match=r"did not answer Start within 0.3s"):
            await slow.start()


async def test_a_deadline_of_the_shims_own_is_not_called_ours(world: World) -> None:
    async with world.run() as runtime:
        task = await runtime.create("a", OPTIONS)
        world.launcher.shims["a"].is_late = True
        with pytest.raises(DeadlineExceeded, match=r"^the OCI runtime did not end within 10s$"):
            await task.start()


async def test_a_dead_shim_is_cleaned_up_with_its_two_events(world: World) -> None:
    async with world.run() as runtime:
        task = await runtime.create("a", OPTIONS)
        await task.start()
        async with anyio.create_task_group() as group:
            group.start_soon(_expect_exit, task, 137)
            group.start_soon(_expect_exit, task.process("e"), 137)
            await anyio.wait_all_tasks_blocked()
            await world.launcher.shims["a"].die()
        assert [topic for topic, _ in world.events] == ["testing/tasks/exit", "testing/tasks/delete"]
        ended, deleted = (event for _, event in world.events)
        assert (ended.id, ended.pid, ended.exit_status, ended.exited_at.seconds) == ("a", 42, 137, 9)
        assert (deleted.container_id, deleted.exit_status) == ("a", 137)
        with pytest.raises(NotFound):
            await runtime.get("a")
        assert world.launcher.actions[-1] == "delete a"


async def _expect_exit(process: Any, status: int) -> None:
    assert (await process.wait()).status == status


async def test_an_exit_that_nobody_can_tell_is_255(world: World) -> None:
    world.launcher.fails_delete = True
    async with world.run() as runtime:
        task = await runtime.create("a", OPTIONS)
        await world.launcher.shims["a"].die()
        ended = await task.wait()
        assert (ended.status, ended.pid) == (255, 0)
        assert world.events[0][1].exit_status == 255


async def test_calls_to_a_dead_shim_say_so(world: World) -> None:
    async with world.run() as runtime:
        task = await runtime.create("a", OPTIONS)
        await world.launcher.shims["a"].die()
        with pytest.raises(NotFound, match="its shim is gone"):
            await task.state()
        with pytest.raises(NotFound, match="its shim is gone"):
            await task.kill(9)
        with pytest.raises(Unavailable, match="ttrpc: closed"):
            await task.pause()
        assert (await task.delete()).status == 137


async def test_waiters_come_and_go_over_one_wait_in_the_shim(world: World) -> None:
    async with world.run() as runtime:
        task = await runtime.create("a", OPTIONS)
        await task.start()
        for _ in range(3):
            with anyio.move_on_after(0.01):
                await task.wait()
        await task.kill(9)
        assert (await task.wait()).status == 137
        assert world.launcher.shims["a"].waits == 1


async def test_a_container_of_a_sandbox_joins_its_shim(world: World) -> None:
    async with world.run() as runtime:
        await runtime.create("pod", OPTIONS)
        options = CreateOptions(runtime="io.containerd.fake.v1", spec=OPTIONS.spec, sandbox_id="pod")
        task = await runtime.create("member", options)
        assert sorted(world.launcher.shims["pod"].statuses) == ["member", "pod"]
        assert (world.bundle("member") / "sandbox").read_text() == "pod"
        assert not (world.bundle("member") / "shim-binary-path").exists()
        await task.delete()
        assert world.launcher.actions == ["start pod"]
        assert (await (await runtime.get("pod")).state()).status is ProcessStatus.CREATED


async def test_living_shims_are_found_again(world: World) -> None:
    async with world.run() as runtime:
        await (await runtime.create("a", OPTIONS)).start()
    async with world.run() as runtime:
        task = await runtime.get("a")
        assert (task.pid, (await task.state()).status) == (42, ProcessStatus.RUNNING)
        assert [found.id for found in await runtime.list()] == ["a"]
    assert world.events == []


async def test_a_shim_that_does_not_answer_is_kept_and_delays_nobody(world: World) -> None:
    async with world.run() as runtime:
        await runtime.create("slow", OPTIONS)
        await runtime.create("quick", OPTIONS)
    world.launcher.shims["slow"].hangs = True
    async with world.run(limits=Deadlines(load_s=2, state_s=30)) as runtime:
        with anyio.fail_after(1.5):
            assert (await (await runtime.get("quick")).state()).status is ProcessStatus.CREATED
        assert runtime.statistics()["loading"] == 1
        world.launcher.shims["slow"].hangs = False
        assert (await (await runtime.get("slow")).state()).status is ProcessStatus.CREATED


async def test_a_shim_that_answers_with_an_error_is_kept(world: World) -> None:
    async with world.run() as runtime:
        await runtime.create("a", OPTIONS)
    shim = world.launcher.shims["a"]
    shim.fails_state = True
    async with world.run() as runtime:
        assert [task.id for task in await runtime.list()] == ["a"]
        assert "delete" not in shim.calls
        await shim.die()
        with anyio.fail_after(10):
            assert (await (await runtime.get("a")).wait()).status == 137


@pytest.mark.parametrize("failure", [OSError(errno.EMFILE, "Too many open files"), LocalDeadline("no connection")])
async def test_a_shim_that_cannot_be_reached_for_another_reason_is_kept(
    world: World, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    async with world.run() as runtime:
        await (await runtime.create("a", OPTIONS)).start()
    connects = TtrpcClient.connect
    tried = anyio.Event()

    async def fail(_address: str, *, timeout_s: float) -> TtrpcClient:
        tried.set()
        raise failure

    monkeypatch.setattr(TtrpcClient, "connect", fail)
    async with world.run() as runtime:
        await tried.wait()
        task = await runtime.get("a")
        monkeypatch.setattr(TtrpcClient, "connect", connects)
        assert (await task.state()).status is ProcessStatus.RUNNING
    assert world.launcher.actions == ["start a"]


async def test_a_delete_whose_caller_has_gone_goes_to_its_end(world: World) -> None:
    async with world.run() as runtime:
        task = await runtime.create("a", OPTIONS)
        shim = world.launcher.shims["a"]
        shim.may_delete = anyio.Event()
        async with anyio.create_task_group() as caller:
            caller.start_soon(task.delete)
            with anyio.fail_after(10):
                while "delete" not in shim.calls:  # noqa: ASYNC110 - called over a socket
                    await anyio.sleep(0.01)
            caller.cancel_scope.cancel()
            shim.may_delete.set()
        with pytest.raises(NotFound, match="task a not found"):
            await runtime.get("a")
        await runtime.create("a", OPTIONS)


async def test_tasks_of_one_shim_are_cleaned_up_together(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.run() as runtime:
        await runtime.create("pod", OPTIONS)
        joined = CreateOptions(runtime="io.containerd.fake.v1", spec=OPTIONS.spec, sandbox_id="pod")
        tasks = [await runtime.get("pod"), *[await runtime.create(name, joined) for name in ("b", "c")]]
        met = threading.Barrier(len(tasks))

        class Probe(socket.socket):
            def connect(self, address: Any) -> None:
                try:
                    super().connect(address)
                finally:
                    met.wait(10)

        monkeypatch.setattr("aiocontainerd_runtime_v2.manager.socket.socket", Probe)
        await world.launcher.shims["pod"].die()
        with anyio.fail_after(10):
            for task in tasks:
                assert (await task.wait()).status == 137
            assert await runtime.list() == []


async def test_garbage_on_disk_is_cleared_and_what_is_not_ours_stays(world: World) -> None:
    space = world.layout.state / NAMESPACE
    (space / "empty").mkdir(parents=True)
    (space / "no record").mkdir()
    (space / "file").write_text("")
    for name in ("norecord", "noruntime", "dead", "nonsense"):
        (space / name).mkdir()
        (space / name / "config.json").write_text("{}")
    world.records = {"noruntime": "io.containerd.absent.v1", "nonsense": "io.containerd.fake.v1"}
    (space / "dead" / "shim-binary-path").write_text(str(world.launcher.binary))
    (space / "dead" / "bootstrap.json").write_bytes(to_json(Endpoint(3, "unix:///nowhere/at/all")))
    (space / "nonsense" / "bootstrap.json").write_bytes(b"\xff\xfe\x00")
    stray = world.layout.root / NAMESPACE / "stray"
    stray.mkdir(parents=True)
    async with world.run() as runtime:
        assert await runtime.list() == []
        task = await runtime.create("dead", OPTIONS)
        assert task.pid == 41
    assert sorted(entry.name for entry in space.iterdir()) == ["dead", "file", "no record"]
    assert not stray.exists()
    assert "delete dead" in world.launcher.actions
    assert world.events == []


async def test_a_shim_without_the_container_is_ended(world: World) -> None:
    async with world.run() as runtime:
        await runtime.create("a", OPTIONS)
    shim = world.launcher.shims["a"]
    shim.statuses.clear()
    async with world.run() as runtime:
        assert await runtime.list() == []
    assert shim.calls[-2:] == ["delete", "shutdown"]
    assert not world.bundle("a").exists()


async def test_a_legacy_address_file_is_rewritten(world: World) -> None:
    world.launcher.shim_class = OldShim
    async with world.run() as runtime:
        await runtime.create("a", OPTIONS)
    (world.bundle("a") / "bootstrap.json").unlink()
    (world.bundle("a") / "address").write_text(f"unix://{world.launcher.shims['a'].path}")
    async with world.run() as runtime:
        assert (await runtime.get("a")).shim.version == 2
    found = await anyio.to_thread.run_sync(bundles.read_endpoint, world.layout.bundle(NAMESPACE, "a"))
    assert found is not None
    assert found.version == 2


async def test_a_shims_log_lines_are_ours_under_its_name(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "aiocontainerd.shim")
    async with world.run() as runtime:
        await runtime.create("a", OPTIONS)
        descriptor = os.open(world.bundle("a") / "log", os.O_WRONLY)
        os.write(descriptor, b"first\nsecond\n")
        os.close(descriptor)
        with anyio.fail_after(2):
            while len(caplog.messages) < 2:  # noqa: ASYNC110 - it is the log that is looked at
                await anyio.sleep(0.005)
    assert caplog.messages == ["testing/a: first", "testing/a: second"]


async def test_a_program_tells_of_itself_what_it_is_asked(world: World, tmp_path: Path) -> None:
    info = api.types.RuntimeInfo(name="io.containerd.x.v1", annotations={"k": "v"})
    (tmp_path / "info").write_bytes(codec.encode(info))
    program = tmp_path / "shim"
    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/given\n[ $1 = -info ] && cat {tmp_path}/info\n")
    program.chmod(0o755)
    options = api.protobuf.Any(type_url="t", value=b"v")
    request = marshal(api.types.RuntimeRequest(runtime_path=str(program), options=options))
    async with world.run() as runtime:
        answer = unmarshal(await runtime.plugin_info(request))
        assert answer == info
        with pytest.raises(InvalidArgument, match=r"is no containerd\.types\.RuntimeRequest"):
            await runtime.plugin_info(marshal(info))
    assert (tmp_path / "given").read_bytes() == codec.encode(options)


async def test_a_delete_is_answered_once_the_shim_has_said_that_it_ends(world: World) -> None:
    async with world.run() as runtime:
        task = await runtime.create("a", OPTIONS)
        await task.delete()
        assert world.launcher.shims["a"].calls[-2:] == ["delete", "shutdown"]


async def test_an_id_is_taken_until_its_delete_action_is_through(world: World) -> None:
    world.launcher.cleans_up = False
    async with world.run() as runtime:
        for _ in range(2):
            task = await runtime.create("a", OPTIONS)
            await task.delete()
            with pytest.raises(NotFound):
                await runtime.get("a")
        assert world.launcher.actions == ["start a", "delete a", "start a"]
        await runtime.create("a", OPTIONS)
    assert world.launcher.actions == ["start a", "delete a"] * 2 + ["start a"]


async def test_a_start_that_is_cut_short_leaves_no_process(world: World, tmp_path: Path) -> None:
    program = tmp_path / "shim"
    program.write_text(f'#!/bin/sh\ncase "$*" in *start) setsid sleep 30 & echo $! > {tmp_path}/pid; sleep 30;; esac\n')
    program.chmod(0o755)
    options = CreateOptions(runtime=str(program), spec=OPTIONS.spec)
    async with world.run(limits=Deadlines(start_s=0.3)) as runtime:
        text = rf"^failed to start shim: start failed: {program} start did not end within 0.3s$"
        with pytest.raises(DeadlineExceeded, match=text):
            await runtime.create("a", options)
        assert not world.bundle("a").exists()
    assert ended(int((tmp_path / "pid").read_text()))


async def test_a_shim_of_a_half_made_bundle_is_killed_at_the_next_start(world: World) -> None:
    bundle = await anyio.to_thread.run_sync(world.layout.create, NAMESPACE, "a", b"{}")
    await anyio.to_thread.run_sync(bundles.write_shim_path, bundle, world.launcher.binary)
    stray = await anyio.open_process(["/bin/sleep", "30"], cwd=bundle.path, stdin=None, stdout=None, stderr=None)
    async with world.run() as runtime:
        assert await runtime.list() == []
        with anyio.fail_after(5):
            assert await stray.wait() == -9
    assert not bundle.path.exists()
    assert world.launcher.actions == ["delete a"]


async def test_what_a_read_only_root_keeps_of_a_task_is_told_and_goes_with_the_next_one(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rename, refused = Path.rename, [world.layout.root]

    def guarded(self: Path, target: Path) -> Path:
        if any(self.is_relative_to(path) for path in refused):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self), None, str(target))
        return rename(self, target)

    async def ends(runtime: TaskRuntime, task_id: str) -> None:
        task: Task = await runtime.create(task_id, OPTIONS)
        await task.start()
        await task.kill(9)
        await task.wait()
        await task.delete()
        await runtime.table.removed()  # type: ignore[attr-defined]  # of this very runtime

    monkeypatch.setattr(Path, "rename", guarded)
    async with world.run() as runtime:
        await ends(runtime, "a")
        work = world.layout.bundle(NAMESPACE, "a").work
        assert (world.bundle("a").exists(), work.exists()) == (False, True)
        paths = f"{work} {work.with_name('.a')}"
        told = f"the bundle of task {NAMESPACE}/a could not be removed: {paths}: read-only file system"
        assert told in caplog.messages
        refused.clear()
        await ends(runtime, "b")
        assert not work.exists()


async def test_an_id_whose_rest_is_being_removed_is_waited_for(world: World) -> None:
    async with world.run() as runtime:
        key, made = (NAMESPACE, "a"), anyio.Event()

        async def create() -> None:
            await runtime.create("a", OPTIONS)
            made.set()

        async with anyio.create_task_group() as group:
            with runtime.table.removing(key) as is_free:
                assert is_free
                group.start_soon(create)
                await anyio.wait_all_tasks_blocked()
                assert not made.is_set()
        with runtime.table.removing(key) as is_free:
            assert not is_free
