"""The base class of snapshotters: order of work, crashes at every step, concurrency."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from aiocontainerd.errors import AlreadyExists, FailedPrecondition, Internal, ReadOnlyFileSystem, to_status
from aiocontainerd.interfaces.snapshotter import Kind, SnapshotInfo, Usage
from aiocontainerd.snapshots.base import SnapshotterBase
from aiocontainerd.snapshots.disk import make_directory, names_in, remove_tree, usage_of_tree
from aiocontainerd.snapshots.layer import Layer
from aiocontainerd.snapshots.used import names_in_use
from aiocontainerd.sys.mount import Mount, in_thread, mount_all, unmount_all
from aiocontainerd.testing.disks import MemoryDisk
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
    bolt = b"\0" * 16 + b"\xed\xda\x0c\xed" + b"\0" * 4076
    (tmp_path / "metadata.db").write_bytes(bolt)
    with pytest.raises(FailedPrecondition, match="written by another program, probably containerd"):
        await Directories(tmp_path).start()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"metadata.db": bolt}


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


def _lose_records(root: Path) -> None:
    for path in root.glob("metadata.db*"):
        path.unlink()


async def test_lost_records_delete_nothing_and_what_is_new_is_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Directories(tmp_path) as snapshotter:
        await chain(snapshotter, "one", "two")
    _lose_records(tmp_path)
    for _ in range(2):
        async with Directories(tmp_path) as again:
            assert sorted(again.kept) == ["1", "2"]
            assert again.exports() == {"kept": "2"}
            await again.prepare("new")
            (made,) = set(os.listdir(again.layers)) - again.kept
            assert int(made) > 2
            await again.remove("new")
            await again.cleanup()
            assert sorted(os.listdir(again.layers)) == ["1", "2"]
    assert "metadata.db does not know 2 of the 2 layers" in caplog.messages[0]
    assert "it is new and the data is not" in caplog.messages[0]
    assert len(caplog.messages) == 2


async def test_older_records_delete_nothing_and_neither_do_newer_ones_put_back(tmp_path: Path) -> None:
    records, older, newer = (tmp_path / name for name in ("metadata.db", "older", "newer"))
    async with Directories(tmp_path) as snapshotter:
        await chain(snapshotter, "one")
    shutil.copy(records, older)
    async with Directories(tmp_path) as snapshotter:
        await snapshotter.prepare("two")
    shutil.copy(records, newer)
    shutil.copy(older, records)
    async with Directories(tmp_path) as snapshotter:
        await snapshotter.prepare("three")
        await snapshotter.cleanup()
        assert snapshotter.kept == {"2"}
        assert len(os.listdir(snapshotter.layers)) == 3
    shutil.copy(newer, records)
    assert (await _keys_and_files(tmp_path))[0] == ["one", "two"]
    assert len(os.listdir(tmp_path / "snapshots")) == 3


async def test_records_of_another_root_delete_nothing(tmp_path: Path) -> None:
    for name in ("one", "other"):
        async with Directories(tmp_path / name) as snapshotter:
            await chain(snapshotter, *(["base", "top"] if name == "one" else ["base"]))
    shutil.copy(tmp_path / "other" / "metadata.db", tmp_path / "one" / "metadata.db")
    assert await _keys_and_files(tmp_path / "one") == (["base"], ["1", "2"])


def _forget_the_stop(root: Path) -> None:
    """Make the records those of a snapshotter that was killed."""
    with sqlite3.connect(root / "metadata.db") as db:
        db.execute("UPDATE identity SET closed = 0")
    db.close()


async def test_files_that_are_brought_while_nobody_runs_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Directories(tmp_path) as snapshotter:
        await chain(snapshotter, "one")
    for _ in range(2):
        (tmp_path / "snapshots" / "7").mkdir(exist_ok=True)
        async with Directories(tmp_path) as snapshotter:
            await snapshotter.cleanup()
            assert snapshotter.kept == {"7"}
            assert sorted(os.listdir(snapshotter.layers)) == ["1", "7"]
            await snapshotter.prepare("new")
            assert sorted(os.listdir(snapshotter.layers))[-1] > "7", "no number of theirs is given out"
            await snapshotter.remove("new")
    assert "it came from elsewhere since the daemon was stopped" in caplog.text


async def test_what_a_stop_left_is_deleted_by_the_next_start(tmp_path: Path) -> None:
    async with Directories(tmp_path) as snapshotter:
        await chain(snapshotter, "one")
        (tmp_path / "snapshots" / "7").mkdir()
    assert await _keys_and_files(tmp_path) == (["one"], ["1"])


async def test_of_two_roots_that_were_one_neither_has_the_records_of_the_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    async with Directories(one) as snapshotter:
        await chain(snapshotter, "base")
    shutil.copytree(one, other)
    async with Directories(one) as snapshotter:
        await snapshotter.prepare("a")
        await snapshotter.prepare("b")
    async with Directories(other) as snapshotter:
        for _ in range(4):
            await snapshotter.prepare("x")
            await snapshotter.remove("x")
    shutil.copy(other / "metadata.db", one / "metadata.db")
    assert (await _keys_and_files(one))[1] == ["1", "2", "3"]
    assert "another copy of it has been in use here since" in caplog.text


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ("UPDATE snapshots SET kind = 77", "a record cannot be read: 77 is not a valid Kind"),
        ("UPDATE snapshots SET labels = X'5A'", "a record cannot be read: "),
        ("UPDATE snapshots SET parent_id = 9", "a record cannot be read: snapshot one has a parent that is missing"),
        ("DELETE FROM identity", "it has no identity"),
        ("DROP TABLE kept", "it has no table kept"),
    ],
)
async def test_records_that_are_no_records_are_damaged(tmp_path: Path, change: str, cause: str) -> None:
    async with Directories(tmp_path) as snapshotter:
        await chain(snapshotter, "one")
    with sqlite3.connect(tmp_path / "metadata.db") as db:
        db.execute(change)
    db.close()
    with pytest.raises(FailedPrecondition, match=f"is damaged: {cause}.*aiocontainerd index restore "):
        await Directories(tmp_path).start()


async def test_a_database_of_another_program_is_refused_and_not_touched(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "metadata.db") as db:
        db.execute("CREATE TABLE bookmarks (id)")
    db.close()
    with pytest.raises(FailedPrecondition, match="was written by another program"):
        await Directories(tmp_path).start()
    with sqlite3.connect(tmp_path / "metadata.db") as db:
        assert db.execute("SELECT name FROM sqlite_schema").fetchall() == [("bookmarks",)]
    db.close()


async def test_records_of_the_release_before_go_on_deleting(tmp_path: Path) -> None:
    async with Directories(tmp_path) as snapshotter:
        await chain(snapshotter, "one", "two", "three")
        await snapshotter._store.delete("3")
    with sqlite3.connect(tmp_path / "metadata.db") as db:
        for table in ("identity", "kept"):
            db.execute(f"DROP TABLE {table}")
        db.execute("PRAGMA user_version = 1")
    db.close()
    (tmp_path / "snapshots.mark").unlink()
    (tmp_path / "snapshots" / "9").mkdir()
    assert await _keys_and_files(tmp_path) == (["one", "two"], ["1", "2", "9"]), "9 is newer than the records"
    _forget_the_stop(tmp_path)
    (tmp_path / "snapshots" / "10").mkdir()
    assert (await _keys_and_files(tmp_path))[1] == ["1", "2", "9"], "from now on, the records prove what is theirs"


async def test_damaged_records_are_refused_with_cause_and_remedy(tmp_path: Path) -> None:
    async with Directories(tmp_path) as snapshotter:
        await chain(snapshotter, "one")
    with (tmp_path / "metadata.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\x5a" * 4096)
    with pytest.raises(FailedPrecondition, match=r"metadata\.db is damaged: .*aiocontainerd index restore"):
        await Directories(tmp_path).start()


@pytest.mark.parametrize("call", ["prepare", "view", "mounts", "commit", "usage"])
async def test_a_directory_removed_by_hand_is_a_failed_precondition_that_names_it(tmp_path: Path, call: str) -> None:
    async with Directories(tmp_path) as snapshotter:
        await chain(snapshotter, "base")
        await snapshotter.prepare("active", "base")
        lost = "2" if call == "usage" else "1"
        (snapshotter.layers / lost).rmdir()
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "prepare": lambda: snapshotter.prepare("new", "base"),
            "view": lambda: snapshotter.view("new", "base"),
            "mounts": lambda: snapshotter.mounts("active"),
            "commit": lambda: snapshotter.commit("done", "active"),
            "usage": lambda: snapshotter.usage("active"),
        }
        key = "active" if call == "usage" else "base"
        with pytest.raises(
            FailedPrecondition, match=rf"snapshot {key} has lost its files: {tmp_path}/snapshots/{lost} "
        ):
            await calls[call]()
        assert await names_of(snapshotter) == ["active", "base"]
        await snapshotter.remove("active")
        await snapshotter.remove("base")
        await snapshotter.cleanup()


@pytest.mark.root
@pytest.mark.parametrize("known", [True, False])
async def test_files_that_are_mounted_are_not_deleted(
    tmp_path: Path, known: bool, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "mnt"
    target.mkdir()
    async with Directories(tmp_path / "root") as snapshotter:
        if known:
            await snapshotter.prepare("a")
        else:
            (snapshotter.layers / "1").mkdir()
        mounts = [Mount("bind", str(snapshotter.layers / "1"), options=("rbind",))]
        await in_thread(mount_all, mounts, str(target))
        try:
            if known:
                await snapshotter.remove("a")
            await snapshotter.cleanup()
            assert os.listdir(snapshotter.layers) == ["1"]
            assert f"files of snapshot 1 in {snapshotter.layers} stay: they are mounted" in caplog.messages
        finally:
            await in_thread(unmount_all, mounts, str(target))
        # A process that made a mount namespace meanwhile has a copy of the mount, until it ends.
        while await in_thread(names_in_use, str(snapshotter.layers), True):
            await anyio.lowlevel.checkpoint()
        await snapshotter.cleanup()
        assert os.listdir(snapshotter.layers) == []


@pytest.mark.root
async def test_snapshots_on_a_read_only_file_system_are_shown_and_mounted_and_nothing_is_changed(
    disk: MemoryDisk, caplog: pytest.LogCaptureFixture
) -> None:
    root = disk.directory / "root"
    async with Directories(root) as snapshotter:
        await chain(snapshotter, "one")
        mounts = await snapshotter.prepare("active", "one")
        (root / "snapshots" / "77").mkdir()
    before = disk.names()
    disk.remount("ro")
    async with Directories(root) as snapshotter:
        assert await names_of(snapshotter) == ["active", "one"]
        assert await snapshotter.mounts("active") == mounts
        assert (await snapshotter.usage("active")).inodes == 1
        tries: list[Callable[[], Awaitable[object]]] = [
            lambda: snapshotter.remove("active"),
            lambda: snapshotter.commit("two", "active"),
            lambda: snapshotter.update(SnapshotInfo(kind=Kind.ACTIVE, name="active", labels={"a": "b"})),
            snapshotter.cleanup,
        ]
        for attempt in tries:
            with pytest.raises(
                ReadOnlyFileSystem, match=f"snapshot metadata {root}/metadata.db: read-only file system"
            ):
                await attempt()
        with pytest.raises(OSError, match="Read-only") as refused:
            await snapshotter.prepare("new")
        assert to_status(refused.value) == (9, f"{snapshotter.path('78')}: read-only file system")
        assert snapshotter.kept == frozenset()
    assert (disk.names(), caplog.messages) == (before, [])
    disk.remount("rw")
    async with Directories(root) as snapshotter:
        await snapshotter.cleanup()
        assert sorted(os.listdir(snapshotter.layers)) == ["1", "2"]
