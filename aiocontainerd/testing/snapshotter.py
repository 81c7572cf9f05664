"""Contract of snapshotters (interfaces/snapshotter.py), for a backend and for a namespace's view of one alike.

    pytest --pyargs aiocontainerd.testing.snapshotter --target acme.plugin:Reflink

Or subclass `SnapshotterContract` in a test module and give it a fixture `open_snapshotter` of type `OpenSnapshotter`:
it opens a snapshotter on a directory, again and again. It mounts, so it needs root and is marked so;
`SnapshotterRecordsContract` is the part of it that doesn't. Set `can_rebase` where a commit may name a parent.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import ClassVar

import anyio
import msgspec
import pytest

from aiocontainerd import kinds
from aiocontainerd.errors import (
    AlreadyExists,
    ContainerdError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from aiocontainerd.interfaces.snapshotter import Kind, SnapshotInfo, Snapshotter, Usage
from aiocontainerd.sys.mount import Mount, mounts_under, temp_mount
from aiocontainerd.testing.contract import Contract, Targeted
from aiocontainerd.testing.target import Bench

OpenSnapshotter = Callable[[Path], AbstractAsyncContextManager[Snapshotter]]

LABEL = "containerd.io/snapshot/test"


async def chain(snapshotter: Snapshotter, *names: str) -> str:
    """Commit snapshots, each the child of the one before. Return the name of the last."""
    parent = ""
    for name in names:
        await snapshotter.prepare(f"{name}-active", parent)
        await snapshotter.commit(name, f"{name}-active")
        parent = name
    return parent


async def names_of(snapshotter: Snapshotter, *filters: str) -> list[str]:
    """Return the names of the snapshots that `filters` choose, in the order they come."""
    return [info.name async for info in snapshotter.walk(filters)]


async def write(mounts: Sequence[Mount], temp: Path, files: dict[str, str | None]) -> None:
    """Mount a snapshot and write files; None deletes one, or a directory with all that is in it."""
    import shutil

    async with temp_mount(mounts, temp) as directory:
        for name, text in files.items():
            path = Path(directory, name)
            if text is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


async def read(mounts: Sequence[Mount], temp: Path) -> dict[str, str]:
    """Mount a snapshot and read all its files."""
    async with temp_mount(mounts, temp, readonly=True) as directory:
        found = (path for path in Path(directory).rglob("*") if path.is_file())
        return {str(path.relative_to(directory)): path.read_text() for path in found}


async def clean_up(snapshotter: Snapshotter) -> None:
    """Delete what removed snapshots left; a namespace's view leaves that to garbage collection (facts/core 6)."""
    try:
        await snapshotter.cleanup()
    except Unimplemented:
        return


@pytest.mark.anyio
class SnapshotterRecordsContract(Contract):
    """What every snapshotter must do with keys, parents, labels; mounts nothing. See the module."""

    @pytest.fixture
    async def snapshotter(self, open_snapshotter: OpenSnapshotter, tmp_path: Path) -> AsyncIterator[Snapshotter]:
        async with open_snapshotter(tmp_path / "root") as opened:
            yield opened

    # Life cycle.

    async def test_prepared_snapshot_is_active(self, snapshotter: Snapshotter) -> None:
        mounts = await snapshotter.prepare("a", labels={LABEL: "1"})
        assert mounts == await snapshotter.mounts("a")
        info = await snapshotter.stat("a")
        assert (info.kind, info.name, info.parent) == (Kind.ACTIVE, "a", "")
        assert info.labels[LABEL] == "1"
        assert 0 < info.created_at_ns == info.updated_at_ns

    async def test_commit_renames_and_replaces_labels(self, snapshotter: Snapshotter) -> None:
        await snapshotter.prepare("a", labels={LABEL: "1"})
        before = await snapshotter.stat("a")
        await snapshotter.commit("c", "a", labels={f"{LABEL}2": "2"})
        info = await snapshotter.stat("c")
        assert info.kind == Kind.COMMITTED
        assert LABEL not in info.labels
        assert info.labels[f"{LABEL}2"] == "2"
        assert info.created_at_ns > before.created_at_ns
        with pytest.raises(NotFound):
            await snapshotter.stat("a")

    async def test_parents_form_a_chain(self, snapshotter: Snapshotter) -> None:
        await chain(snapshotter, "one", "two", "three")
        assert (await snapshotter.stat("three")).parent == "two"
        assert (await snapshotter.stat("one")).parent == ""

    async def test_view_is_not_committed(self, snapshotter: Snapshotter) -> None:
        await snapshotter.view("v", await chain(snapshotter, "one"))
        assert (await snapshotter.stat("v")).kind == Kind.VIEW
        with pytest.raises(FailedPrecondition, match="is not active"):
            await snapshotter.commit("c", "v")

    async def test_key_is_free_again_after_removal(self, snapshotter: Snapshotter) -> None:
        for _ in range(2):
            await snapshotter.prepare("a")
            await snapshotter.remove("a")
        await clean_up(snapshotter)
        assert await names_of(snapshotter) == []

    async def test_cleanup_keeps_what_is_in_use(self, snapshotter: Snapshotter) -> None:
        await snapshotter.prepare("a", await chain(snapshotter, "one", "two"))
        await clean_up(snapshotter)
        for mount in await snapshotter.mounts("a"):
            assert not mount.source.startswith("/") or os.path.exists(mount.source)
        assert await names_of(snapshotter) == ["a", "one", "two"]

    # What must fail.

    async def test_key_is_taken(self, snapshotter: Snapshotter) -> None:
        await snapshotter.prepare("a")
        with pytest.raises(AlreadyExists, match='snapshot "a"'):
            await snapshotter.prepare("a")
        with pytest.raises(AlreadyExists, match='snapshot "a"'):
            await snapshotter.view("a")

    async def test_name_is_taken(self, snapshotter: Snapshotter) -> None:
        await chain(snapshotter, "c")
        await snapshotter.prepare("a")
        with pytest.raises(AlreadyExists):
            await snapshotter.commit("c", "a")
        assert (await snapshotter.stat("a")).kind == Kind.ACTIVE

    async def test_parent_is_missing(self, snapshotter: Snapshotter) -> None:
        with pytest.raises(NotFound, match="parent snapshot zz does not exist"):
            await snapshotter.prepare("a", "zz")
        with pytest.raises(NotFound):
            await snapshotter.stat("a")

    async def test_parent_is_not_committed(self, snapshotter: Snapshotter) -> None:
        await snapshotter.prepare("a")
        with pytest.raises(InvalidArgument, match="is not committed snapshot"):
            await snapshotter.prepare("b", "a")

    async def test_committed_snapshot_has_no_mounts(self, snapshotter: Snapshotter) -> None:
        with pytest.raises(FailedPrecondition, match="not active or view"):
            await snapshotter.mounts(await chain(snapshotter, "c"))

    async def test_committed_snapshot_is_not_committed_again(self, snapshotter: Snapshotter) -> None:
        with pytest.raises(FailedPrecondition, match="is not active"):
            await snapshotter.commit("d", await chain(snapshotter, "c"))

    async def test_parent_is_not_removed(self, snapshotter: Snapshotter) -> None:
        await snapshotter.prepare("a", await chain(snapshotter, "c"))
        with pytest.raises(FailedPrecondition, match="cannot remove snapshot with child"):
            await snapshotter.remove("c")
        await snapshotter.remove("a")
        await snapshotter.remove("c")

    async def test_missing_key(self, snapshotter: Snapshotter) -> None:
        unknown = SnapshotInfo(kind=Kind.UNKNOWN, name="zz", labels={LABEL: "1"})
        for call in (
            partial(snapshotter.stat, "zz"),
            partial(snapshotter.mounts, "zz"),
            partial(snapshotter.usage, "zz"),
            partial(snapshotter.remove, "zz"),
            partial(snapshotter.commit, "c", "zz"),
            partial(snapshotter.update, unknown),
        ):
            with pytest.raises(NotFound, match="zz"):
                await call()

    async def test_failed_calls_leave_nothing(self, snapshotter: Snapshotter) -> None:
        with pytest.raises(ContainerdError):
            await snapshotter.view("v", "zz")
        await clean_up(snapshotter)
        assert await names_of(snapshotter) == []

    # Labels, walk, usage.

    async def test_update_replaces_all_labels_without_a_mask(self, snapshotter: Snapshotter) -> None:
        await snapshotter.prepare("a", labels={LABEL: "1"})
        before = await snapshotter.stat("a")
        info = await snapshotter.update(msgspec.structs.replace(before, labels={f"{LABEL}2": "2"}))
        assert (LABEL in info.labels, info.labels[f"{LABEL}2"]) == (False, "2")
        assert info == await snapshotter.stat("a")
        assert info.created_at_ns == before.created_at_ns < info.updated_at_ns

    async def test_update_changes_the_labels_a_mask_names(self, snapshotter: Snapshotter) -> None:
        await snapshotter.prepare("a", labels={LABEL: "1", f"{LABEL}2": "2"})
        given = SnapshotInfo(kind=Kind.UNKNOWN, name="a", labels={LABEL: "new", f"{LABEL}2": "ignored"})
        info = await snapshotter.update(given, [f"labels.{LABEL}"])
        assert (info.labels[LABEL], info.labels[f"{LABEL}2"]) == ("new", "2")
        info = await snapshotter.update(SnapshotInfo(kind=Kind.UNKNOWN, name="a"), [f"labels.{LABEL}"])
        assert LABEL not in info.labels

    async def test_update_refuses_other_fields(self, snapshotter: Snapshotter) -> None:
        await snapshotter.prepare("a")
        with pytest.raises(InvalidArgument):
            await snapshotter.update(SnapshotInfo(kind=Kind.UNKNOWN, name="a"), ["parent"])
        with pytest.raises(InvalidArgument):
            await snapshotter.update(SnapshotInfo(kind=Kind.UNKNOWN, name=""))

    async def test_walk_is_sorted_and_filtered(self, snapshotter: Snapshotter) -> None:
        parent = await chain(snapshotter, "c2", "c1")
        await snapshotter.prepare("b", parent, labels={LABEL: "x"})
        await snapshotter.view("a", parent)
        assert await names_of(snapshotter) == ["a", "b", "c1", "c2"]
        assert await names_of(snapshotter, "kind==committed") == ["c1", "c2"]
        assert await names_of(snapshotter, "kind==view", "name==b") == ["a", "b"]
        assert await names_of(snapshotter, "parent==c2") == ["c1"]
        assert await names_of(snapshotter, f'labels."{LABEL}"==x,kind==active') == ["b"]

    async def test_view_uses_no_space(self, snapshotter: Snapshotter) -> None:
        await snapshotter.view("v", await chain(snapshotter, "c"))
        assert await snapshotter.usage("v") == Usage()

    # Concurrency and crashes.

    async def test_one_of_many_calls_gets_the_key(self, snapshotter: Snapshotter) -> None:
        outcomes: list[str] = []

        async def prepare() -> None:
            try:
                await snapshotter.prepare("a")
                outcomes.append("made")
            except AlreadyExists:
                outcomes.append("taken")

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(prepare)
        assert sorted(outcomes) == ["made", "taken", "taken", "taken", "taken"]

    async def test_many_keys_at_once(self, snapshotter: Snapshotter) -> None:
        parent = await chain(snapshotter, "c")

        async def life(number: int) -> None:
            await snapshotter.prepare(f"a{number}", parent)
            await snapshotter.commit(f"d{number}", f"a{number}")
            if number % 2:
                await snapshotter.remove(f"d{number}")

        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(life, number)
        assert await names_of(snapshotter) == ["c", "d0", "d2", "d4", "d6", "d8"]

    async def test_cancelled_call_leaves_all_or_nothing(self, snapshotter: Snapshotter) -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await snapshotter.prepare("a")
        try:
            await snapshotter.prepare("a")
        except AlreadyExists:
            pass
        assert await names_of(snapshotter) == ["a"]
        assert await snapshotter.mounts("a")

    async def test_snapshots_outlive_the_snapshotter(self, open_snapshotter: OpenSnapshotter, tmp_path: Path) -> None:
        async with open_snapshotter(tmp_path / "root") as first:
            mounts = await first.prepare("a", await chain(first, "one", "two"), labels={LABEL: "1"})
            info, usage = await first.stat("a"), await first.usage("two")
        async with open_snapshotter(tmp_path / "root") as second:
            assert await second.stat("a") == info
            assert await second.mounts("a") == mounts
            assert await second.usage("two") == usage
            await second.commit("three", "a")
            await second.prepare("b", "three")


@pytest.mark.root
class SnapshotterContract(SnapshotterRecordsContract):
    """What every snapshotter must do, files seen through its mounts included. See the module."""

    can_rebase: ClassVar[bool] = False

    @pytest.fixture
    def temp(self, tmp_path: Path) -> Path:
        return tmp_path / "tmp"

    @pytest.fixture
    def rebases(self) -> bool:
        """Return whether a commit may name a parent."""
        return self.can_rebase

    async def test_usage_counts_what_was_written(self, snapshotter: Snapshotter, temp: Path) -> None:
        mounts = await snapshotter.prepare("a")
        before = await snapshotter.usage("a")
        await write(mounts, temp, {"dir/one": "x" * 50_000})
        used = await snapshotter.usage("a")
        assert used.size - before.size >= 50_000
        assert used.inodes == before.inodes + 2
        await snapshotter.commit("c", "a")
        assert await snapshotter.usage("c") == used

    async def test_child_starts_as_its_parent_and_changes_alone(self, snapshotter: Snapshotter, temp: Path) -> None:
        await write(await snapshotter.prepare("a1"), temp, {"kept": "1", "changed": "1", "gone": "1"})
        await snapshotter.commit("c1", "a1")
        mounts = await snapshotter.prepare("a2", "c1")
        await write(mounts, temp, {"changed": "2", "gone": None, "new": "2"})
        assert await read(mounts, temp) == {"kept": "1", "changed": "2", "new": "2"}
        await snapshotter.commit("c2", "a2")
        assert await read(await snapshotter.view("v1", "c1"), temp) == {"kept": "1", "changed": "1", "gone": "1"}
        assert await read(await snapshotter.view("v2", "c2"), temp) == {"kept": "1", "changed": "2", "new": "2"}
        assert await anyio.to_thread.run_sync(mounts_under, str(temp)) == []

    async def test_removed_directory_made_again_is_empty(self, snapshotter: Snapshotter, temp: Path) -> None:
        await write(await snapshotter.prepare("a1"), temp, {"d/old": "1", "e": "1"})
        await snapshotter.commit("c1", "a1")
        mounts = await snapshotter.prepare("a2", "c1")
        await write(mounts, temp, {"d": None})
        await write(mounts, temp, {"d/new": "2"})
        await snapshotter.commit("c2", "a2")
        assert await read(await snapshotter.prepare("a3", "c2"), temp) == {"d/new": "2", "e": "1"}

    async def test_siblings_do_not_see_each_other(self, snapshotter: Snapshotter, temp: Path) -> None:
        parent = await chain(snapshotter, "c")
        for name in ("a", "b"):
            await write(await snapshotter.prepare(name, parent), temp, {name: name})
        assert await read(await snapshotter.mounts("a"), temp) == {"a": "a"}
        assert await read(await snapshotter.mounts("b"), temp) == {"b": "b"}

    async def test_view_cannot_be_written(self, snapshotter: Snapshotter, temp: Path) -> None:
        await chain(snapshotter, "one", "two")
        for number, parent in enumerate(("", "one", "two")):
            mounts = await snapshotter.view(f"v{number}", parent)
            with pytest.raises(OSError, match="Read-only"):
                await write(mounts, temp, {"file": "x"})

    async def test_owner_mode_links_and_devices_are_kept(self, snapshotter: Snapshotter, temp: Path) -> None:
        async with temp_mount(await snapshotter.prepare("a1"), temp) as directory:
            path = Path(directory, "file")
            path.write_text("x")
            os.chown(path, 1000, 2000)
            path.chmod(0o4750)
            os.setxattr(path, "user.note", b"kept")
            os.utime(path, ns=(1_000_000_123, 2_000_000_456))
            os.link(path, Path(directory, "linked"))
            os.mknod(Path(directory, "null"), 0o20666, os.makedev(1, 3))
            os.symlink("nowhere", Path(directory, "dangling"))
            os.chown(directory, 3000, 4000)
        await snapshotter.commit("c1", "a1")
        async with temp_mount(await snapshotter.prepare("a2", "c1"), temp) as directory:
            status = os.stat(f"{directory}/file")
            assert (status.st_uid, status.st_gid, status.st_mode) == (1000, 2000, 0o104750)
            assert status.st_mtime_ns == 2_000_000_456
            assert os.getxattr(f"{directory}/file", "user.note") == b"kept"
            assert os.stat(f"{directory}/linked").st_ino == status.st_ino
            assert os.stat(f"{directory}/null").st_rdev == os.makedev(1, 3)
            assert os.readlink(f"{directory}/dangling") == "nowhere"
            assert (os.stat(directory).st_uid, os.stat(directory).st_gid) == (3000, 4000)

    async def test_commit_with_a_parent_rebases_or_is_unimplemented(
        self, snapshotter: Snapshotter, temp: Path, rebases: bool
    ) -> None:
        if not rebases:
            await chain(snapshotter, "c1")
            await snapshotter.prepare("a2")
            with pytest.raises(Unimplemented, match="a2"):
                await snapshotter.commit("c2", "a2", parent="c1")
            assert await names_of(snapshotter) == ["a2", "c1"]
            return
        await write(await snapshotter.prepare("a1"), temp, {"low": "1", "both": "1"})
        await snapshotter.commit("c1", "a1")
        await write(await snapshotter.prepare("a2"), temp, {"both": "2"})
        await snapshotter.commit("c2", "a2", parent="c1")
        assert (await snapshotter.stat("c2")).parent == "c1"
        assert await read(await snapshotter.view("v", "c2"), temp) == {"low": "1", "both": "2"}


class TestSnapshotter(Targeted, SnapshotterContract):
    """The snapshotter that `--target` names."""

    kind = kinds.SNAPSHOTTER

    @pytest.fixture
    def open_snapshotter(self, bench: Bench) -> OpenSnapshotter:
        return partial(bench.open, self.kind, needs={})

    @pytest.fixture
    async def rebases(self, bench: Bench, snapshotter: Snapshotter) -> bool:  # noqa: ARG002 - opened, it tells
        return "rebase" in await bench.capabilities(self.kind)
