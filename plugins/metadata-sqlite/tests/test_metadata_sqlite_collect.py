"""Garbage collection: what is kept, what is collected, and what happens meanwhile (facts/core 10)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from aiocontainerd_metadata_sqlite import collect, ingests
from aiocontainerd_metadata_sqlite.prune import doomed
from aiocontainerd_metadata_sqlite.store import SqliteMetadataStore

from aiocontainerd import context, timestamps
from aiocontainerd.errors import NotFound
from aiocontainerd.interfaces.content import BlobInfo
from aiocontainerd.interfaces.metadata import Image, Resource
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.testing.fakes import FakeBus, FakeContentStore, FakeSnapshotter, digest_of
from aiocontainerd.testing.metadata import committed, container, ingest

pytestmark = pytest.mark.anyio
PAST, FUTURE = "2001-01-01T00:00:00Z", "2999-01-01T00:00:00Z"
EXPIRE, ROOT, FLAT = "containerd.io/gc.expire", "containerd.io/gc.root", "containerd.io/gc.flat"
LAYERS = "snapshots/fake"


@pytest.fixture
def bus() -> FakeBus:
    return FakeBus()


@pytest.fixture
def blobs() -> FakeContentStore:
    return FakeContentStore()


@pytest.fixture
def layers() -> FakeSnapshotter:
    return FakeSnapshotter()


@pytest.fixture
async def metadata(
    tmp_path: Path, bus: FakeBus, blobs: FakeContentStore, layers: FakeSnapshotter
) -> AsyncIterator[SqliteMetadataStore]:
    store = SqliteMetadataStore(tmp_path / "meta.db", content=blobs, snapshotters={"fake": layers}, bus=bus, sync=False)
    await store.open()
    with context.use(namespace="t1"):
        yield store
    await store.aclose()


async def image(metadata: SqliteMetadataStore, name: str, digest: str, labels: dict[str, str] | None = None) -> None:
    target = Descriptor("m", digest, 1)
    await metadata.images.create(Image(name=name, target=target, labels=labels or {}))


async def kept(metadata: SqliteMetadataStore) -> set[str]:
    """Everything in the current namespace: images, blobs by their bytes' digest, snapshots."""
    return {
        *(i.name for i in await metadata.images.list()),
        *[i.digest async for i in metadata.content.walk()],
        *[i.name async for i in metadata.snapshotter("fake").walk()],
    }


async def test_image_keeps_its_tree_and_the_rest_goes(
    metadata: SqliteMetadataStore, blobs: FakeContentStore, layers: FakeSnapshotter, bus: FakeBus
) -> None:
    layer = await ingest(metadata, b"layer")
    await committed(metadata, "base")
    await committed(metadata, "top", "base")
    config = await ingest(metadata, b"config", {"containerd.io/gc.ref.snapshot.fake": "top"})
    manifest = await ingest(
        metadata,
        b"manifest",
        {"containerd.io/gc.ref.content.config": config, "containerd.io/gc.ref.content.l.0": layer},
    )
    garbage = await ingest(metadata, b"garbage")
    await committed(metadata, "stale")
    await image(metadata, "i", manifest)
    collected = await metadata.collect()
    assert collected.removed == {"content": 1, LAYERS: 1}
    assert await kept(metadata) == {"i", manifest, config, layer, "base", "top"}
    assert garbage not in blobs.blobs
    assert {name.rpartition("/")[2] for name in layers.infos} == {"base", "top"}
    assert layers.cleanups == 1
    assert bus.events[-1][0::2] == ("/snapshot/remove", "t1")
    await metadata.images.delete("i")
    assert (await metadata.collect()).removed == {"content": 3, LAYERS: 2}
    assert (await kept(metadata), blobs.blobs, layers.infos) == (set(), {}, {})


async def test_nothing_is_asked_of_a_clean_backend(metadata: SqliteMetadataStore, layers: FakeSnapshotter) -> None:
    await metadata.collect()
    await metadata.containers.create(container("c"))
    await metadata.collect()
    assert layers.cleanups == 1


async def test_container_keeps_its_snapshot_and_label_targets(metadata: SqliteMetadataStore) -> None:
    await metadata.snapshotter("fake").prepare("rw")
    blob = await ingest(metadata, b"x")
    labels = {"containerd.io/gc.ref.content.x": blob}
    await metadata.containers.create(container("c", snapshotter="fake", snapshot_key="rw", labels=labels))
    await metadata.collect()
    assert await kept(metadata) == {"rw", blob}
    await metadata.containers.delete("c")
    await metadata.collect()
    assert await kept(metadata) == set()


async def test_gc_root_is_kept(metadata: SqliteMetadataStore) -> None:
    blob = await ingest(metadata, b"x", {ROOT: "any"})
    await committed(metadata, "s", labels={ROOT: "any"})
    await ingest(metadata, b"y")
    await metadata.collect()
    assert await kept(metadata) == {blob, "s"}


async def test_live_lease_keeps_what_it_holds_and_expired_one_goes(metadata: SqliteMetadataStore) -> None:
    child = await ingest(metadata, b"child")
    blob = await ingest(metadata, b"x", {"containerd.io/gc.ref.content": child})
    other = await ingest(metadata, b"y")
    for name, expiry, held in (("live", FUTURE, blob), ("dead", PAST, other)):
        await metadata.leases.create(name, {EXPIRE: expiry})
        await metadata.leases.add_resource(name, Resource(held, "content"))
    assert (await metadata.collect()).removed == {"content": 1, "leases": 1}
    assert await kept(metadata) == {blob, child}
    assert [lease.id for lease in await metadata.leases.list()] == ["live"]


async def test_flat_lease_follows_built_in_edges_only(metadata: SqliteMetadataStore) -> None:
    child = await ingest(metadata, b"child")
    manifest = await ingest(metadata, b"manifest", {"containerd.io/gc.ref.content": child})
    await committed(metadata, "base")
    await committed(metadata, "top", "base", {"containerd.io/gc.ref.content": child})
    await image(metadata, "i", manifest, {EXPIRE: PAST})
    await metadata.leases.create("flat", {FLAT: ""})
    await metadata.leases.create("flat2", {FLAT: "1"})
    await metadata.leases.add_resource("flat2", Resource("i", "images"))
    await metadata.leases.add_resource("flat2", Resource("top", LAYERS))
    await metadata.collect()
    assert await kept(metadata) == {"i", manifest, "base", "top"}


async def test_expired_image_goes_unless_it_is_reached(metadata: SqliteMetadataStore, bus: FakeBus) -> None:
    blob = await ingest(metadata, b"x")
    await image(metadata, "old", blob, {EXPIRE: PAST})
    await image(metadata, "reached", blob, {EXPIRE: PAST})
    await metadata.containers.create(container("c", labels={"containerd.io/gc.ref.image": "reached"}))
    await metadata.collect()
    assert await kept(metadata) == {"reached", blob}
    assert bus.events[-1][0::2] == ("/images/delete", "t1")


async def test_back_reference_keeps_its_source_while_its_target_is_reachable(metadata: SqliteMetadataStore) -> None:
    blob = await ingest(metadata, b"x", {"containerd.io/gc.bref.container.c": "c"})
    await ingest(metadata, b"y", {"containerd.io/gc.bref.container": "nobody"})
    await metadata.containers.create(container("c"))
    await metadata.collect()
    assert await kept(metadata) == {blob}


async def test_conditional_reference_holds_by_the_age_of_last_use(metadata: SqliteMetadataStore) -> None:
    now = timestamps.format_rfc3339(timestamps.now_ns())
    labels = {f"containerd.io/gc.cond.snapshot.fake/{key}": f"usedat<24h|{key}" for key in ("new", "old", "unused")}
    blob = await ingest(metadata, b"x")
    await committed(metadata, "new", labels={"containerd.io/gc.cond.value-usedat": now})
    await committed(metadata, "old", labels={"containerd.io/gc.cond.value-usedat": PAST})
    await committed(metadata, "unused")
    await image(metadata, "i", blob, labels)
    await metadata.collect()
    assert await kept(metadata) == {"i", blob, "new"}


async def test_ingest_expires_unless_leased_and_its_blob_link_counts(
    metadata: SqliteMetadataStore, blobs: FakeContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await metadata.content.writer("fresh")).close()
    monkeypatch.setattr(ingests, "LIFETIME_NS", -1)
    await metadata.leases.create("l", {})
    with context.use(lease="l"):
        await (await metadata.content.writer("leased")).close()
    await (await metadata.content.writer("stale")).close()
    async with await metadata.content.writer("open"):
        assert (await metadata.collect()).removed == {"ingests": 1}
        assert sorted(s.ref for s in await metadata.content.statuses()) == ["fresh", "leased", "open"]
    assert len(blobs.ingests) == 3
    await metadata.leases.delete("l")
    await metadata.collect()
    assert [s.ref for s in await metadata.content.statuses()] == ["fresh"]


async def test_references_do_not_cross_namespaces(metadata: SqliteMetadataStore, blobs: FakeContentStore) -> None:
    blob = await ingest(metadata, b"x")
    with context.use(namespace="t2"):
        await ingest(metadata, b"x", ref="t2")
        await image(metadata, "i", blob)
    await metadata.collect()
    assert await kept(metadata) == set()
    with context.use(namespace="t2"):
        assert await kept(metadata) == {"i", blob}
    assert blob in blobs.blobs


async def test_backend_garbage_of_a_crash_is_removed_child_first(
    metadata: SqliteMetadataStore, blobs: FakeContentStore, layers: FakeSnapshotter
) -> None:
    blobs.put(b"unknown")
    await (await blobs.writer("t1/99/lost")).close()
    await layers.prepare("t1/90/a")
    await layers.commit("t1/91/base", "t1/90/a")
    await layers.prepare("t1/92/b", "t1/91/base")
    await metadata.collect()
    assert (blobs.blobs, blobs.ingests, layers.infos) == ({}, {}, {})


def test_plan_of_a_prune_is_child_first_and_spares_known_busy_and_interrupted() -> None:
    parents = {
        "n/1/base": "",
        "n/2/mid": "n/1/base",
        "n/3/top": "n/2/mid",
        "n/4/known": "",
        "n/5/busy": "n/4/known",
        "n/6/name": "",
        "made-up": "",
    }
    known = {"n/4/known": 4, "n/6/active": 6}
    assert doomed(parents, known, {"n/5/busy"}) == [["n/3/top"], ["n/2/mid"], ["made-up", "n/1/base"]]


async def test_sweep_does_not_wait_for_the_deletion_of_files(
    metadata: SqliteMetadataStore, layers: FakeSnapshotter
) -> None:
    removing, go_on = anyio.Event(), anyio.Event()

    async def hold(call: str, name: str) -> None:
        if call == "remove":
            removing.set()
            await go_on.wait()

    await metadata.snapshotter("fake").prepare("a")
    await metadata.sweep()
    layers.before = hold
    async with anyio.create_task_group() as group:
        group.start_soon(metadata.reclaim)
        await removing.wait()
        await metadata.snapshotter("fake").prepare("b")
        assert (await metadata.sweep()).removed == {LAYERS: 1}
        go_on.set()
    await metadata.reclaim()
    assert layers.infos == {}


async def test_reclaims_of_one_backend_wait_for_each_other(
    metadata: SqliteMetadataStore, layers: FakeSnapshotter
) -> None:
    removing, go_on, removals = anyio.Event(), anyio.Event(), 0

    async def hold(call: str, name: str) -> None:
        nonlocal removals
        if call == "remove":
            removals += 1
            removing.set()
            await go_on.wait()

    await metadata.snapshotter("fake").prepare("a")
    await metadata.sweep()
    layers.before = hold
    async with anyio.create_task_group() as group:
        group.start_soon(metadata.reclaim)
        await removing.wait()
        group.start_soon(metadata.reclaim)
        await anyio.wait_all_tasks_blocked()
        assert len(layers.infos) == 1
        go_on.set()
    assert (layers.infos, removals) == ({}, 1)


async def test_failing_backend_stays_dirty_and_harms_no_other(
    metadata: SqliteMetadataStore, blobs: FakeContentStore, layers: FakeSnapshotter
) -> None:
    await metadata.snapshotter("fake").prepare("a")
    blobs.put(b"unknown")

    async def refuse(call: str, name: str) -> None:
        if call == "remove":
            raise OSError("busy")

    layers.before = refuse
    await metadata.collect()
    assert blobs.blobs == {}
    assert f"dirty: ['{LAYERS}']" in repr(metadata)
    layers.before = FakeSnapshotter().before
    await metadata.collect()
    assert layers.infos == {}


class Interrupted:
    """Runs something between the mark and the sweep of the next collection."""

    def __init__(self, metadata: SqliteMetadataStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self._metadata = metadata
        self._monkeypatch = monkeypatch

    async def collect(self, meanwhile: object) -> None:
        marked = collect.Sweeper._sweep

        async def sweep(sweeper: collect.Sweeper, *args: object) -> None:
            await meanwhile()  # type: ignore[operator]  # a coroutine function of each test
            await marked(sweeper, *args)  # type: ignore[arg-type]  # passed through

        with self._monkeypatch.context() as patch:
            patch.setattr(collect.Sweeper, "_sweep", sweep)
            await self._metadata.collect()


@pytest.fixture
def interrupted(metadata: SqliteMetadataStore, monkeypatch: pytest.MonkeyPatch) -> Interrupted:
    return Interrupted(metadata, monkeypatch)


async def test_what_is_referenced_between_mark_and_sweep_is_kept_with_all_it_leads_to(
    metadata: SqliteMetadataStore, interrupted: Interrupted
) -> None:
    child = await ingest(metadata, b"child")
    blob = await ingest(metadata, b"x", {"containerd.io/gc.ref.content": child})
    await ingest(metadata, b"garbage")
    await interrupted.collect(lambda: image(metadata, "i", blob))
    assert await kept(metadata) == {"i", blob, child}


async def test_what_is_leased_between_mark_and_sweep_is_kept(
    metadata: SqliteMetadataStore, interrupted: Interrupted
) -> None:
    await metadata.leases.create("l", {})
    await committed(metadata, "base")
    await committed(metadata, "top", "base")
    await interrupted.collect(lambda: metadata.leases.add_resource("l", Resource("top", LAYERS)))
    assert await kept(metadata) == {"base", "top"}


async def test_what_is_committed_between_mark_and_sweep_is_kept(
    metadata: SqliteMetadataStore, interrupted: Interrupted
) -> None:
    base = await ingest(metadata, b"base")

    async def meanwhile() -> None:
        await ingest(metadata, b"new", {"containerd.io/gc.ref.content": base})
        await committed(metadata, "fresh")

    await interrupted.collect(meanwhile)
    assert await kept(metadata) == {base, digest_of(b"new"), "fresh"}


async def test_label_and_back_reference_set_between_mark_and_sweep_count(
    metadata: SqliteMetadataStore, interrupted: Interrupted
) -> None:
    blob = await ingest(metadata, b"x")
    behind = await ingest(metadata, b"y", {"containerd.io/gc.bref.content": blob})

    async def meanwhile() -> None:
        info = await metadata.content.info(blob)
        await metadata.content.update(
            BlobInfo(digest=blob, size=1, created_at_ns=0, updated_at_ns=0, labels={ROOT: "1"}), ["labels"]
        )
        assert info.labels == {}

    await interrupted.collect(meanwhile)
    assert await kept(metadata) == {blob, behind}


async def test_parent_of_a_prepare_in_progress_is_kept_and_so_is_its_backend_snapshot(
    metadata: SqliteMetadataStore, layers: FakeSnapshotter
) -> None:
    await committed(metadata, "base")
    await metadata.leases.create("l", {})

    async def collect_meanwhile(call: str, name: str) -> None:
        if call == "prepare":
            layers.before = FakeSnapshotter().before
            await metadata.collect()

    layers.before = collect_meanwhile
    with context.use(lease="l"):
        await metadata.snapshotter("fake").prepare("a", "base")
    await metadata.collect()
    assert await kept(metadata) == {"a", "base"}
    assert len(layers.infos) == 2


async def test_backend_snapshot_made_and_not_yet_recorded_is_not_pruned(
    metadata: SqliteMetadataStore, layers: FakeSnapshotter
) -> None:
    made = layers.prepare

    async def collect_after(key: str, parent: str = "", labels: object = None) -> object:
        mounts = await made(key, parent)
        await metadata.collect()
        return mounts

    layers.prepare = collect_after  # type: ignore[method-assign,assignment]  # a delay inside of the backend
    await metadata.snapshotter("fake").prepare("a")
    assert len(layers.infos) == 1


async def test_blob_committed_in_the_backend_and_not_yet_linked_is_not_pruned(
    metadata: SqliteMetadataStore, blobs: FakeContentStore
) -> None:
    committing = blobs.commit

    async def collect_after(*args: object) -> object:
        info = await committing(*args)  # type: ignore[arg-type]  # passed through
        await metadata.collect()
        return info

    blobs.commit = collect_after  # type: ignore[method-assign,assignment]  # a delay inside of the backend
    blob = await ingest(metadata, b"x")
    assert blob in blobs.blobs
    assert await kept(metadata) == {blob}


async def test_commit_of_a_blob_that_is_being_deleted_waits_and_keeps_its_own(
    metadata: SqliteMetadataStore, blobs: FakeContentStore
) -> None:
    blob = blobs.put(b"x")
    deleting = anyio.Event()

    async def slow(call: str, name: str) -> None:
        if call == "delete":
            deleting.set()
            await anyio.sleep(0.02)

    blobs.before = slow
    async with anyio.create_task_group() as group:
        group.start_soon(metadata.collect)
        await deleting.wait()
        assert await ingest(metadata, b"x") == blob
    assert blob in blobs.blobs
    assert await kept(metadata) == {blob}


async def test_shared_blob_that_its_only_namespace_drops_is_still_there_for_an_open_writer(
    metadata: SqliteMetadataStore, blobs: FakeContentStore
) -> None:
    blob = await ingest(metadata, b"x")
    with context.use(namespace="t2"):
        async with await metadata.content.writer("ref", expected=blob) as writer:
            with context.use(namespace="t1"):
                await metadata.content.delete(blob)
                await metadata.collect()
            await writer.commit()
        assert await kept(metadata) == {blob}
        await metadata.collect()
    assert blob not in blobs.blobs


async def test_deleted_record_is_gone_for_reads(metadata: SqliteMetadataStore) -> None:
    blob = await ingest(metadata, b"x")
    await metadata.collect()
    with pytest.raises(NotFound):
        await metadata.content.info(blob)


async def test_mutations_of_clients_are_told_and_those_of_collections_are_not(metadata: SqliteMetadataStore) -> None:
    told: list[bool] = []
    metadata.on_mutation(told.append)
    blob = await ingest(metadata, b"x")
    assert told == [False, False]
    await metadata.collect()
    assert told == [False, False]
    await ingest(metadata, b"x")
    await metadata.content.delete(blob)
    assert told[-1] is True
