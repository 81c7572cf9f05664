"""The base class of snapshotters: order of work, crashes at every step, concurrency."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import anyio
import pytest

from aiocontainerd.errors import AlreadyExists, FailedPrecondition, Internal
from aiocontainerd.interfaces.snapshotter import Kind, SnapshotInfo, Usage
from aiocontainerd.snapshots.base import SnapshotterBase
from aiocontainerd.snapshots.disk import make_directory, names_in, remove_tree, usage_of_tree
from aiocontainerd.snapshots.layer import Layer
from aiocontainerd.sys.mount import Mount
from aiocontainerd.testing.snapshotter import OpenSnapshotter, SnapshotterRecordsContract, chain, names_of

pytestmark = pytest.mark.anyio

Step = Callable[[str, str], Awaitable[None]]


async def _nothing(_step: str, _layer_id: str) -> None:
    pass


class Directories(SnapshotterBase):
    """Empty directories; `step` is called before and after each piece of work and may fail or wait there."""

    def __init__(self, root: Path, step: Step = _nothing) -> None:
        super().__init__(root)
        self.step = step

    async def make(self, layer: Layer, parents: Sequence[Layer]) -> None:
        await self.step("make", layer.id)
        await make_directory(self.path(layer.id), 0o755)
        await self.step("made", layer.id)

    async def mounts_of(self, layer: Layer, parents: Sequence[Layer]) -> list[Mount]:
        return [Mount("bind", self.path(part.id), options=("rbind",)) for part in (layer, *parents)]

    async def usage_of(self, layer: Layer) -> Usage:
        return await usage_of_tree(self.path(layer.id))

    async def seal(self, layer: Layer, parents: Sequence[Layer]) -> None:
        await self.step("seal", layer.id)

    async def discard(self, layer_id: str) -> None:
        await self.step("discard", layer_id)
        await remove_tree(self.path(layer_id))

    async def stored(self) -> Iterable[str]:
        return await names_in(self.layers)


def _fail_at(wanted: str) -> Step:
    async def step(name: str, _layer_id: str) -> None:
        if name == wanted:
            raise OSError(28, "No space left on device")

    return step


async def _keys_and_files(root: Path) -> tuple[list[str], list[str]]:
    """Return what a new snapshotter finds at `root`, before and after it cleaned up."""
    async with Directories(root) as again:
        await again.cleanup()
        return await names_of(again), sorted(os.listdir(again.layers))


@pytest.mark.parametrize("step", ["make", "made"])
async def test_failed_making_leaves_neither_record_nor_files(tmp_path: Path, step: str) -> None:
    async with Directories(tmp_path, _fail_at(step)) as snapshotter:
        with pytest.raises(OSError, match="No space"):
            await snapshotter.prepare("a")
        assert os.listdir(snapshotter.layers) == []
        assert await names_of(snapshotter) == []


async def test_failed_seal_leaves_the_snapshot_active(tmp_path: Path) -> None:
    async with Directories(tmp_path, _fail_at("seal")) as snapshotter:
        await snapshotter.prepare("a")
        with pytest.raises(OSError, match="No space"):
            await snapshotter.commit("c", "a")
        assert (await snapshotter.stat("a")).kind == Kind.ACTIVE


async def test_failed_deletion_of_files_is_left_to_cleanup(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with Directories(tmp_path, _fail_at("discard")) as snapshotter:
        await snapshotter.prepare("a")
        await snapshotter.remove("a")
        assert "left for cleanup" in caplog.text
        with pytest.raises(OSError, match="No space"):
            await snapshotter.cleanup()
        snapshotter.step = _nothing
        await snapshotter.cleanup()
        assert os.listdir(snapshotter.layers) == []


async def test_failed_record_leaves_no_files(tmp_path: Path) -> None:
    async with Directories(tmp_path) as snapshotter:
        await snapshotter.prepare("a")
        await snapshotter._store.aclose()
        with pytest.raises(Internal, match="database is closed"):
            await snapshotter.prepare("b")
        assert os.listdir(snapshotter.layers) == ["1"]
        assert await names_of(snapshotter) == ["a"]


@pytest.mark.parametrize(
    ("step", "keys", "files"),
    [
        ("make", ["base"], ["1"]),
        ("made", ["base"], ["1"]),
        ("seal", ["a", "base"], ["1", "2"]),
        ("discard", ["base"], ["1"]),
    ],
)
async def test_crash_at_any_step_leaves_the_old_or_the_new_tree(
    tmp_path: Path, step: str, keys: list[str], files: list[str]
) -> None:
    root, crashed = tmp_path / "root", tmp_path / "crashed"

    async def step_seen(name: str, layer_id: str) -> None:
        if name == step and layer_id == "2":
            await anyio.to_thread.run_sync(shutil.copytree, root, crashed)

    async with Directories(root, step_seen) as snapshotter:
        await chain(snapshotter, "base")
        await snapshotter.prepare("a", "base")
        await snapshotter.commit("c", "a")
        await snapshotter.remove("c")
    assert await _keys_and_files(crashed) == (keys, files)


async def test_ids_are_never_used_twice_nor_taken_from_orphans(tmp_path: Path) -> None:
    async with Directories(tmp_path) as first:
        await first.prepare("a")
        await first.remove("a")
        (first.layers / "7").mkdir()
        (first.layers / "new-123").mkdir()
    async with Directories(tmp_path) as second:
        assert (await second.prepare("b"))[0].source.endswith("/8")
        await second.cleanup()
        assert os.listdir(second.layers) == ["8"]


async def test_different_keys_do_not_wait_for_each_other(tmp_path: Path) -> None:
    stuck = anyio.Event()

    async def step(name: str, layer_id: str) -> None:
        if name == "make" and layer_id == "2":
            await stuck.wait()

    async with Directories(tmp_path, step) as snapshotter, anyio.create_task_group() as group:
        await chain(snapshotter, "base")
        group.start_soon(snapshotter.prepare, "slow", "base")
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(20):
            await snapshotter.prepare("quick", "base")
            await snapshotter.update(SnapshotInfo(kind=Kind.UNKNOWN, name="base", labels={"a": "b"}))
            await snapshotter.commit("done", "quick")
            await snapshotter.cleanup()
        with pytest.raises(FailedPrecondition, match="cannot remove snapshot with child"):
            await snapshotter.remove("base")
        stuck.set()


async def test_calls_about_one_key_take_turns(tmp_path: Path) -> None:
    go_on = anyio.Event()
    outcomes: list[str] = []

    async def step(name: str, _layer_id: str) -> None:
        if name == "make":
            await go_on.wait()

    async def prepare(label: str) -> None:
        try:
            await snapshotter.prepare("a")
            outcomes.append(f"{label} made")
        except AlreadyExists:
            outcomes.append(f"{label} taken")

    async with Directories(tmp_path, step) as snapshotter, anyio.create_task_group() as group:
        group.start_soon(prepare, "first")
        await anyio.wait_all_tasks_blocked()
        group.start_soon(prepare, "second")
        await anyio.wait_all_tasks_blocked()
        go_on.set()
    assert outcomes == ["first made", "second taken"]


async def test_cancelled_making_is_undone_and_frees_the_key(tmp_path: Path) -> None:
    made = anyio.Event()

    async def step(name: str, layer_id: str) -> None:
        if name == "made" and layer_id == "1":
            made.set()
            await anyio.sleep_forever()

    async with Directories(tmp_path, step) as snapshotter:
        async with anyio.create_task_group() as group:
            group.start_soon(snapshotter.prepare, "a")
            await made.wait()
            group.cancel_scope.cancel()
        assert os.listdir(snapshotter.layers) == []
        await snapshotter.prepare("a")


async def test_concurrent_changes_share_commits(tmp_path: Path) -> None:
    async with Directories(tmp_path) as snapshotter:
        async with anyio.create_task_group() as group:
            for number in range(16):
                group.start_soon(snapshotter.prepare, f"a{number}")
        assert snapshotter._store.commits < 16
        assert len(await names_of(snapshotter)) == 16


async def test_one_process_owns_a_root(tmp_path: Path) -> None:
    async with Directories(tmp_path):
        with pytest.raises(FailedPrecondition, match=r"metadata\.db cannot be used: database is locked"):
            await Directories(tmp_path).start()


async def test_foreign_database_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "metadata.db").write_bytes(b"\0" * 4096 + b"bolt")
    with pytest.raises(FailedPrecondition, match=r"metadata\.db cannot be used"):
        await Directories(tmp_path).start()
    assert (tmp_path / "metadata.db").read_bytes().endswith(b"bolt")


async def test_acknowledged_snapshots_survive_kill_9(tmp_path: Path) -> None:
    acknowledged = await anyio.to_thread.run_sync(_killed_writer, tmp_path)
    assert len(acknowledged) == 25
    async with Directories(tmp_path) as snapshotter:
        for key in acknowledged:
            await snapshotter.stat(key)
        await snapshotter.cleanup()
        layers = {layer.id for layer in snapshotter._tree.sorted()}
        assert set(os.listdir(snapshotter.layers)) == layers


def _killed_writer(root: Path) -> list[str]:
    """Keys that a process said it committed before it was killed in the midst of its work."""
    program = textwrap.dedent(f"""
        import anyio, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from {Path(__file__).stem} import Directories

        async def main():
            async with Directories(Path({str(root)!r})) as snapshotter:
                for number in range(10_000):
                    await snapshotter.prepare("active")
                    await snapshotter.commit(f"c{{number}}", "active")
                    print(f"c{{number}}", flush=True)

        anyio.run(main)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            keys = [child.stdout.readline().strip() for _ in range(25)]
        finally:
            os.kill(child.pid, signal.SIGKILL)
    return [key for key in keys if key]


class TestContract(SnapshotterRecordsContract):
    """The suite of aiocontainerd.testing.snapshotter that mounts nothing."""

    @pytest.fixture
    def open_snapshotter(self) -> OpenSnapshotter:
        return Directories


async def test_closed_snapshotter_can_be_closed_again(tmp_path: Path) -> None:
    snapshotter = Directories(tmp_path)
    await snapshotter.start()
    await snapshotter.aclose()
    await snapshotter.aclose()
