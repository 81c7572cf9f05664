"""Snapshots of a namespace: names, labels, remote snapshots, crashes between backend and record (facts/core 6)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from aiocontainerd_metadata_sqlite.snapshots import NamespacedSnapshotter
from aiocontainerd_metadata_sqlite.store import SqliteMetadataStore

from aiocontainerd import context
from aiocontainerd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unimplemented, Unknown
from aiocontainerd.interfaces.snapshotter import Kind, SnapshotInfo, Usage
from aiocontainerd.testing.fakes import FakeBus, FakeContentStore, FakeSnapshotter
from aiocontainerd.testing.metadata import committed

pytestmark = pytest.mark.anyio
REF = "containerd.io/snapshot.ref"
PASSED = "containerd.io/snapshot/x"


@pytest.fixture
def bus() -> FakeBus:
    return FakeBus()


@pytest.fixture
def layers() -> FakeSnapshotter:
    return FakeSnapshotter()


@pytest.fixture
async def metadata(tmp_path: Path, bus: FakeBus, layers: FakeSnapshotter) -> AsyncIterator[SqliteMetadataStore]:
    store = SqliteMetadataStore(
        tmp_path / "meta.db", content=FakeContentStore(), snapshotters={"fake": layers}, bus=bus, sync=False
    )
    await store.open()
    yield store
    await store.aclose()


@pytest.fixture
async def mine(metadata: SqliteMetadataStore) -> AsyncIterator[NamespacedSnapshotter]:
    with context.use(namespace="t1"):
        yield metadata.snapshotter("fake")


async def test_backends_are_named_and_unknown_ones_refused(metadata: SqliteMetadataStore) -> None:
    assert metadata.snapshotters == ["fake"]
    with pytest.raises(InvalidArgument, match="snapshotter argument missing"):
        metadata.snapshotter("")
    with pytest.raises(InvalidArgument, match="snapshotter not loaded: foo"):
        metadata.snapshotter("foo")


async def test_backend_sees_numbered_names_and_only_its_labels(
    mine: NamespacedSnapshotter, layers: FakeSnapshotter
) -> None:
    await mine.prepare("a", labels={"own": "1", PASSED: "2", "gone": ""})
    ((name, info),) = layers.infos.items()
    assert name.startswith("t1/")
    assert name.endswith("/a")
    assert info.labels == {PASSED: "2"}
    assert (await mine.stat("a")).labels == {"own": "1", PASSED: "2"}


async def test_life_of_a_snapshot_with_its_events(mine: NamespacedSnapshotter, bus: FakeBus) -> None:
    (mount,) = await mine.prepare("a")
    assert mount.type == "bind"
    await mine.commit("base", "a", {"l": "1"})
    info = await mine.stat("base")
    assert (info.kind, info.name, info.parent, info.labels) == (Kind.COMMITTED, "base", "", {"l": "1"})
    await mine.prepare("b", "base")
    await mine.view("v", "base")
    assert (await mine.stat("b")).parent == "base"
    assert [i.name async for i in mine.walk()] == ["b", "base", "v"]
    assert [i.name async for i in mine.walk(["kind==view", "parent==base,kind==active"])] == ["b", "v"]
    with pytest.raises(FailedPrecondition, match="cannot remove snapshot with child"):
        await mine.remove("base")
    for key in ("b", "v", "base"):
        await mine.remove(key)
    with pytest.raises(NotFound, match=r"\Asnapshot base does not exist\Z"):
        await mine.remove("base")
    assert bus.topics == ["/snapshot/prepare", "/snapshot/commit", "/snapshot/prepare", *["/snapshot/remove"] * 3]


async def test_what_must_fail(mine: NamespacedSnapshotter) -> None:
    await mine.prepare("a")
    with pytest.raises(AlreadyExists, match=r'snapshot "a"\Z'):
        await mine.prepare("a")
    with pytest.raises(NotFound, match=r"\Aparent snapshot zz does not exist\Z"):
        await mine.prepare("b", "zz")
    with pytest.raises(InvalidArgument, match='failed to create snapshot: parent "t1/1/a" is not committed snapshot'):
        await mine.view("b", "a")
    with pytest.raises(NotFound, match=r"\Asnapshot zz does not exist\Z"):
        await mine.commit("c", "zz")
    await mine.commit("c", "a")
    with pytest.raises(FailedPrecondition, match="not active or view"):
        await mine.mounts("c")
    await mine.view("v", "c")
    with pytest.raises(FailedPrecondition, match="is not active"):
        await mine.commit("d", "v")
    await mine.prepare("e")
    with pytest.raises(AlreadyExists, match=r'snapshot "c"\Z'):
        await mine.commit("c", "e")
    with pytest.raises(Unimplemented, match="snapshotter does not implement Cleanup method"):
        await mine.cleanup()


async def test_key_and_name_are_not_empty(mine: NamespacedSnapshotter, layers: FakeSnapshotter) -> None:
    await mine.prepare("a")
    for make in (mine.prepare, mine.view):
        with pytest.raises(Unknown, match="bucket name required"):
            await make("")
    with pytest.raises(Unknown, match="bucket name required"):
        await mine.commit("", "a")
    assert len(layers.infos) == 1
    assert (await mine.stat("a")).kind == Kind.ACTIVE


async def test_of_two_commits_to_one_name_at_once_the_later_keeps_its_active_snapshot(
    mine: NamespacedSnapshotter,
) -> None:
    lost: list[str] = []

    async def commit(key: str) -> None:
        try:
            await mine.commit("base", key)
        except AlreadyExists:
            lost.append(key)

    keys = ["a", "b", "c"]
    for key in keys:
        await mine.prepare(key)
    async with anyio.create_task_group() as group:
        for key in keys:
            group.start_soon(commit, key)
    assert len(lost) == 2
    for key in lost:
        await mine.mounts(key)
        await mine.commit(f"{key}-base", key)
    assert sorted([info.name async for info in mine.walk()]) == sorted(["base", *(f"{key}-base" for key in lost)])


async def test_commit_replaces_labels_and_times_and_may_rebase(mine: NamespacedSnapshotter) -> None:
    await mine.prepare("a", labels={"old": "1"})
    await mine.commit("base", "a")
    await mine.prepare("b")
    await mine.commit("top", "b", parent="base")
    assert (await mine.stat("top")).parent == "base"
    assert (await mine.stat("base")).labels == {}
    await mine.prepare("c", "base")
    await mine.commit("other", "c", parent="top")
    assert (await mine.stat("other")).parent == "base"
    await mine.prepare("d")
    with pytest.raises(NotFound, match="parent snapshot zz does not exist"):
        await mine.commit("last", "d", parent="zz")


async def test_update_changes_labels_here_and_passes_on_the_backends(
    mine: NamespacedSnapshotter, layers: FakeSnapshotter
) -> None:
    await mine.prepare("a", labels={"x": "1", PASSED: "1"})
    info = SnapshotInfo(kind=Kind.ACTIVE, name="a", labels={"y": "2", PASSED: "3"})
    assert (await mine.update(info, ["labels.y"])).labels == {"x": "1", "y": "2", PASSED: "1"}
    assert ("update", next(iter(layers.infos))) not in layers.calls
    assert (await mine.update(info)).labels == {"y": "2", PASSED: "3"}
    assert next(iter(layers.infos.values())).labels == {PASSED: "3"}
    with pytest.raises(InvalidArgument, match='cannot update "parent"'):
        await mine.update(info, ["parent"])
    with pytest.raises(InvalidArgument):
        await mine.update(SnapshotInfo(kind=Kind.ACTIVE, name=""))


async def test_usage_is_the_backends(mine: NamespacedSnapshotter, layers: FakeSnapshotter) -> None:
    await mine.prepare("a")
    layers.usages[next(iter(layers.infos))] = Usage(5, 1)
    assert await mine.usage("a") == Usage(5, 1)


async def test_same_key_in_two_namespaces_is_two_snapshots(
    metadata: SqliteMetadataStore, layers: FakeSnapshotter
) -> None:
    for namespace in ("t1", "t2"):
        with context.use(namespace=namespace):
            await metadata.snapshotter("fake").prepare("a")
    assert len(layers.infos) == 2
    with context.use(namespace="t3"), pytest.raises(NotFound):
        await metadata.snapshotter("fake").stat("a")


async def test_snapshot_missing_in_the_backend_is_not_listed(
    mine: NamespacedSnapshotter, layers: FakeSnapshotter
) -> None:
    await mine.prepare("a")
    layers.infos.clear()
    assert [i async for i in mine.walk()] == []


class Remote(FakeSnapshotter):
    """Has every layer already, under a name of its own."""

    async def prepare(self, key, parent="", labels=None):  # type: ignore[no-untyped-def]  # as in the fake
        target = (labels or {}).get(REF)
        if target and target != "elsewhere":
            self._put(Kind.COMMITTED, f"remote-{target}", parent, labels)
            raise AlreadyExists("target")
        if target or key.endswith("clash"):
            raise AlreadyExists("target")
        return await super().prepare(key, parent, labels)


@pytest.mark.parametrize("layers", [Remote()])
async def test_remote_snapshot_is_recorded_under_its_target(mine: NamespacedSnapshotter) -> None:
    with pytest.raises(AlreadyExists, match='target snapshot "c5" from snapshotter'):
        await mine.prepare("x", labels={REF: "c5"})
    assert (await mine.stat("c5")).kind == Kind.COMMITTED
    with pytest.raises(AlreadyExists, match=r'target snapshot "c5"\Z'):
        await mine.prepare("y", labels={REF: "c5"})
    with pytest.raises(NotFound, match='target snapshot "elsewhere" in backend'):
        await mine.prepare("z", labels={REF: "elsewhere"})
    with pytest.raises(Unknown):
        await mine.prepare("clash")
    await mine.prepare("child", "c5")


async def test_record_that_cannot_be_made_takes_its_backend_snapshot_back(
    mine: NamespacedSnapshotter, layers: FakeSnapshotter
) -> None:
    async def overtake(call: str, name: str) -> None:
        if call == "prepare":
            layers.before = FakeSnapshotter().before
            await mine.prepare("a")

    layers.before = overtake
    with pytest.raises(AlreadyExists, match=r'snapshot "a"\Z'):
        await mine.prepare("a")
    assert len(layers.infos) == 1
    assert mine.in_progress == set()
    assert await mine.mounts("a")


async def test_parent_of_a_snapshot_that_is_being_made_is_not_removed(
    mine: NamespacedSnapshotter, layers: FakeSnapshotter, metadata: SqliteMetadataStore
) -> None:
    await committed(metadata, "base")

    async def remove_parent(call: str, name: str) -> None:
        if call == "prepare":
            with pytest.raises(FailedPrecondition, match="cannot remove snapshot with child"):
                await mine.remove("base")

    layers.before = remove_parent
    await mine.prepare("a", "base")
    assert (await mine.stat("a")).parent == "base"


async def test_commit_that_was_cut_short_is_kept_by_collections_and_can_be_tried_again(
    mine: NamespacedSnapshotter, layers: FakeSnapshotter, metadata: SqliteMetadataStore
) -> None:
    await metadata.leases.create("l1", {})
    with context.use(lease="l1"):
        await mine.prepare("a")
    (backend_key,) = layers.infos
    await layers.commit(backend_key.removesuffix("/a") + "/base", backend_key)
    await metadata.collect()
    await mine.commit("base", "a")
    assert [i.name async for i in mine.walk()] == ["base"]
    assert len(layers.infos) == 1


async def test_snapshots_that_the_backend_has_lost_can_be_made_anew(
    metadata: SqliteMetadataStore, mine: NamespacedSnapshotter, layers: FakeSnapshotter
) -> None:
    await committed(metadata, "base")
    await mine.prepare("rw", "base")
    layers.infos.clear()
    with pytest.raises(NotFound):
        await mine.stat("base")
    await committed(metadata, "base")
    await mine.prepare("rw", "base")
    assert [info.name async for info in mine.walk()] == ["base", "rw"]
    with pytest.raises(AlreadyExists):
        await mine.prepare("rw", "base")
