"""Shims at rest: what the daemon knows of their tasks is told without a call to them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiocontainerd_runtime_v2 import known, recovery
from aiocontainerd_runtime_v2.bundle import Layout
from aiocontainerd_runtime_v2.known import KnownInit
from aiocontainerd_runtime_v2.runtime import ShimTaskRuntime
from aiocontainerd_runtime_v2.task import ShimTask
from shim_world import OPTIONS, FakeShim, World, sockets, world

from aiocontainerd import api
from aiocontainerd.errors import Unknown
from aiocontainerd.interfaces.runtime import IO, ProcessState, ProcessStatus

__all__ = ["sockets", "world"]
pytestmark = pytest.mark.anyio

LIMIT_S = 20.0


class RestingShim(FakeShim):
    """A shim that can be paused."""

    fails_pause = False

    async def pause(self, request: Any) -> Any:
        await self._called("pause")
        if self.fails_pause:
            raise Unknown("cannot freeze")
        self.statuses[request.id] = ProcessStatus.PAUSED
        return api.protobuf.Empty()

    async def resume(self, request: Any) -> Any:
        await self._called("resume")
        self.statuses[request.id] = ProcessStatus.RUNNING
        return api.protobuf.Empty()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Return a process that stands for the init of a container."""
    started = subprocess.Popen(["sleep", "1000"])
    yield started
    started.kill()
    started.wait()


@pytest.fixture
def resting(world: World) -> World:
    world.launcher.rests = True
    world.launcher.shim_class = RestingShim
    return world


@asynccontextmanager
async def started(world: World, process: subprocess.Popen[bytes]) -> AsyncIterator[tuple[ShimTask, RestingShim]]:
    """Give a running task whose init is `process`, and its shim."""
    async with world.run() as runtime:
        task, shim = await _start(world, runtime, process)
        yield task, shim


async def _start(
    world: World, runtime: ShimTaskRuntime, process: subprocess.Popen[bytes]
) -> tuple[ShimTask, RestingShim]:
    shim = world.launcher.shims["a"] = RestingShim(world.sockets / "a")
    shim.pid = process.pid
    await shim.serve()
    task = await runtime.create("a", OPTIONS)
    await task.start()
    return task, shim


async def _recorded(world: World) -> None:
    with anyio.fail_after(LIMIT_S):
        while not (world.bundle("a") / "init.json").exists():  # noqa: ASYNC110 - written beside the calls
            await anyio.sleep(0.005)


async def test_the_state_of_a_running_init_is_told_without_its_shim(
    resting: World, process: subprocess.Popen[bytes]
) -> None:
    async with started(resting, process) as (task, shim):
        assert await task.state() == ProcessState(id="a", pid=process.pid, status=ProcessStatus.RUNNING)
        await task.pause()
        assert (await task.state()).status is ProcessStatus.PAUSED
        await task.resume()
        assert (await task.state()).status is ProcessStatus.RUNNING
        assert "state" not in shim.calls


async def test_metrics_are_measured_without_the_shim(resting: World, process: subprocess.Popen[bytes]) -> None:
    async with started(resting, process) as (task, shim):
        await task.stats()
        assert resting.launcher.measured == [("a", process.pid)]
        assert "stats" not in shim.calls


async def test_an_init_that_has_exited_is_asked_of_the_shim(resting: World, process: subprocess.Popen[bytes]) -> None:
    async with started(resting, process) as (task, shim):
        process.kill()
        await anyio.to_thread.run_sync(process.wait)
        shim.statuses["a"] = ProcessStatus.STOPPED
        assert (await task.state()).status is ProcessStatus.STOPPED
        assert shim.calls.count("state") == 1
        assert (await task.state()).status is ProcessStatus.STOPPED
        assert shim.calls.count("state") == 1, "what has ended stays ended"


async def test_a_change_that_failed_leaves_nothing_certain(resting: World, process: subprocess.Popen[bytes]) -> None:
    async with started(resting, process) as (task, shim):
        shim.fails_pause = True
        with pytest.raises(Unknown, match="cannot freeze"):
            await task.pause()
        assert (await task.state()).status is ProcessStatus.RUNNING
        assert shim.calls.count("state") == 1


async def test_shims_that_do_not_rest_are_asked(world: World, process: subprocess.Popen[bytes]) -> None:
    async with started(world, process) as (task, shim):
        await task.state()
        assert shim.calls.count("state") == 1


async def test_a_restarted_daemon_lets_resting_shims_rest(
    resting: World, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery.Recovery, "_meet", _no_round)
    async with started(resting, process) as (_, shim):
        await _recorded(resting)
    calls = list(shim.calls)
    async with resting.run() as runtime:
        task = await runtime.get("a")
        assert (task.pid, (await task.state()).status) == (process.pid, ProcessStatus.RUNNING)
        assert shim.calls == calls, "the shim was woken"
        await task.kill(9)
        assert shim.calls == [*calls, "kill"]


async def _no_round(_recovery: recovery.Recovery) -> None:
    return


async def test_a_resting_shim_that_died_meanwhile_is_cleaned_up_after(
    resting: World, process: subprocess.Popen[bytes]
) -> None:
    async with started(resting, process) as (_, shim):
        await _recorded(resting)
    await shim.die()
    async with resting.run() as runtime:
        task = await runtime.get("a")
        with anyio.fail_after(LIMIT_S):
            assert (await task.wait()).status == 137
    assert [topic for topic, _ in resting.events] == ["testing/tasks/exit", "testing/tasks/delete"]


async def test_an_init_that_ended_without_a_daemon_is_asked_of_its_shim(
    resting: World, process: subprocess.Popen[bytes]
) -> None:
    async with started(resting, process) as (_, shim):
        await _recorded(resting)
    process.kill()
    await anyio.to_thread.run_sync(process.wait)
    shim.statuses["a"] = ProcessStatus.STOPPED
    async with resting.run() as runtime:
        assert (await (await runtime.get("a")).state()).status is ProcessStatus.STOPPED


async def test_no_record_says_running_while_a_pause_is_under_way(
    resting: World, process: subprocess.Popen[bytes]
) -> None:
    async with started(resting, process) as (task, shim):
        await _recorded(resting)
        shim.fails_pause = True
        with pytest.raises(Unknown):
            await task.pause()
        assert not await anyio.Path(resting.bundle("a") / "init.json").exists()


def test_a_record_is_of_one_process_and_one_bundle(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    bundle = Layout(tmp_path / "state", tmp_path / "root").create("n", "a", None)
    state = ProcessState(id="a", pid=process.pid, status=ProcessStatus.PAUSED, io=IO(stdout="/o"))
    known.write(bundle, state)
    assert known.read(bundle) == state
    file = bundle.path / "init.json"
    file.write_bytes(file.read_bytes().replace(b'"started":', b'"started":1'))
    assert known.read(bundle) is None, "another process of the same pid"
    file.write_bytes(b"")
    assert known.read(bundle) is None
    known.remove(bundle)
    known.remove(bundle)
    known.write(Layout(tmp_path / "state", tmp_path / "root").bundle("n", "gone"), state)


def test_changes_that_meet_leave_nothing_certain() -> None:
    init = KnownInit()
    state = ProcessState(id="a", pid=os.getpid(), status=ProcessStatus.RUNNING)
    with init.changing() as first:
        with init.changing() as second:
            second(state)
        assert init.state() is None
        first(state)
    assert init.state() is None
    with init.changing() as alone:
        alone(state)
    assert init.state() == state
    init.close()


def test_an_answer_from_before_a_change_is_not_kept() -> None:
    init = KnownInit()
    asked = init.generation
    state = ProcessState(id="a", pid=os.getpid(), status=ProcessStatus.RUNNING)
    with init.changing():
        init.learn(state, init.generation)
    init.learn(state, asked)
    assert init.state() is None


def test_a_process_that_has_ended_has_no_start(process: subprocess.Popen[bytes]) -> None:
    assert known.start_ticks(process.pid) is not None
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert known.start_ticks(process.pid) is None, "it is a zombie"
