"""Property: a collection removes nothing that is reachable, whatever happens meanwhile, and otherwise all the rest."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from aiocontainerd_metadata_sqlite.collect import Sweeper
from aiocontainerd_metadata_sqlite.store import SqliteMetadataStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiocontainerd import context
from aiocontainerd.interfaces.content import BlobInfo
from aiocontainerd.interfaces.metadata import Image, Resource
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.testing.fakes import FakeBus, FakeContentStore, FakeSnapshotter, digest_of

BLOBS, IMAGES, LEASES = 6, 3, 3
EXPIRE = "containerd.io/gc.expire"
PAST, FUTURE = "2001-01-01T00:00:00Z", "2999-01-01T00:00:00Z"
DIGESTS = [digest_of(bytes([n])) for n in range(BLOBS)]

blob_numbers = st.integers(0, BLOBS - 1)
some_blobs = st.frozensets(blob_numbers, max_size=3)


class Blob(msgspec.Struct, frozen=True):
    refs: frozenset[int] = frozenset()
    back: frozenset[int] = frozenset()
    root: bool = False

    def labels(self) -> dict[str, str]:
        found = {f"containerd.io/gc.ref.content.{n}": DIGESTS[n] for n in self.refs}
        found.update({f"containerd.io/gc.bref.content.{n}": DIGESTS[n] for n in self.back})
        return {**found, "containerd.io/gc.root": "1"} if self.root else found


class Lease(msgspec.Struct, frozen=True):
    blobs: frozenset[int] = frozenset()
    images: frozenset[int] = frozenset()
    flat: bool = False
    expired: bool = False


class Graph(msgspec.Struct, frozen=True):
    """Blobs by number, images as (target, expired), leases."""

    blobs: dict[int, Blob]
    images: dict[int, tuple[int, bool]]
    leases: dict[int, Lease]


blobs = st.builds(Blob, refs=some_blobs, back=st.frozensets(blob_numbers, max_size=1), root=st.booleans())
leases = st.builds(
    Lease,
    blobs=some_blobs,
    images=st.frozensets(st.integers(0, IMAGES - 1), max_size=1),
    flat=st.booleans(),
    expired=st.booleans(),
)
images = st.tuples(blob_numbers, st.booleans())
graphs = st.builds(
    Graph,
    blobs=st.dictionaries(blob_numbers, blobs, min_size=2),
    images=st.dictionaries(st.integers(0, IMAGES - 1), images),
    leases=st.dictionaries(st.integers(0, LEASES - 1), leases),
)
changes = st.lists(
    st.one_of(
        st.tuples(st.just("blob"), blob_numbers, blobs),
        st.tuples(st.just("image"), st.integers(0, IMAGES - 1), images),
        st.tuples(st.just("lease"), st.integers(0, LEASES - 1), leases),
    ),
    max_size=4,
)


def reachable(graph: Graph) -> set[str]:
    """Return what garbage collection may not remove, by a second and plain algorithm."""
    pending: list[tuple[str, int, bool]] = []
    for number, (_, expired) in graph.images.items():
        pending += [] if expired else [("image", number, False)]
    for lease in graph.leases.values():
        if not lease.expired:
            pending += [("blob", n, lease.flat) for n in lease.blobs]
            pending += [("image", n, lease.flat) for n in lease.images]
    pending += [("blob", number, False) for number, blob in graph.blobs.items() if blob.root]
    seen: set[tuple[str, int, bool]] = set()
    while pending:
        kind, number, flat = node = pending.pop()
        if node in seen or number not in (graph.images if kind == "image" else graph.blobs):
            continue
        seen.add(node)
        if kind == "image":
            pending.append(("blob", graph.images[number][0], flat))
            continue
        pending += [] if flat else [("blob", n, False) for n in graph.blobs[number].refs]
        pending += [("blob", n, False) for n, blob in graph.blobs.items() if number in blob.back]
    return {DIGESTS[n] if kind == "blob" else f"i{n}" for kind, n, _ in seen}


async def put_blob(store: SqliteMetadataStore, number: int, blob: Blob) -> None:
    known = {info.digest async for info in store.content.walk()}
    if DIGESTS[number] in known:
        info = BlobInfo(digest=DIGESTS[number], size=1, created_at_ns=0, updated_at_ns=0, labels=blob.labels())
        await store.content.update(info)
        return
    async with await store.content.writer(f"r{number}") as writer:
        await writer.write(bytes([number]))
        await writer.commit(labels=blob.labels())


async def put_image(store: SqliteMetadataStore, number: int, image: tuple[int, bool]) -> None:
    target, expired = image
    record = Image(
        name=f"i{number}", target=Descriptor("m", DIGESTS[target], 1), labels={EXPIRE: PAST} if expired else {}
    )
    if any(i.name == record.name for i in await store.images.list()):
        await store.images.update(record)
    else:
        await store.images.create(record)


async def put_lease(store: SqliteMetadataStore, number: int, lease: Lease) -> None:
    name = f"l{number}"
    if any(found.id == name for found in await store.leases.list()):
        await store.leases.delete(name)
    labels = {EXPIRE: PAST if lease.expired else FUTURE}
    await store.leases.create(name, {**labels, "containerd.io/gc.flat": "1"} if lease.flat else labels)
    for n in lease.blobs:
        await store.leases.add_resource(name, Resource(DIGESTS[n], "content"))
    for n in lease.images:
        await store.leases.add_resource(name, Resource(f"i{n}", "images"))


async def build(store: SqliteMetadataStore, graph: Graph) -> None:
    for number, blob in graph.blobs.items():
        await put_blob(store, number, blob)
    for number, image in graph.images.items():
        await put_image(store, number, image)
    for number, lease in graph.leases.items():
        await put_lease(store, number, lease)


async def present(store: SqliteMetadataStore) -> set[str]:
    found = {i.name for i in await store.images.list()}
    return found | {i.digest async for i in store.content.walk()}


async def in_store(run: Callable[[SqliteMetadataStore, FakeContentStore], Awaitable[None]]) -> None:
    backend = FakeContentStore()
    with tempfile.TemporaryDirectory() as directory, context.use(namespace="t"):
        path = Path(directory, "meta.db")
        store = SqliteMetadataStore(
            path, content=backend, snapshotters={"fake": FakeSnapshotter()}, bus=FakeBus(), sync=False
        )
        await store.open()
        try:
            await run(store, backend)
        finally:
            await store.aclose()


quick = settings(max_examples=30, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(graph=graphs)
def test_a_collection_keeps_exactly_what_is_reachable(graph: Graph) -> None:
    async def run(store: SqliteMetadataStore, backend: FakeContentStore) -> None:
        await build(store, graph)
        await store.collect()
        assert await present(store) == reachable(graph)
        assert set(backend.blobs) == {name for name in reachable(graph) if name.startswith("sha256:")}

    asyncio.run(in_store(run))


class Meddling(Sweeper):
    """Lets a test change the graph between the mark and the sweep."""

    meddle: Callable[[], Awaitable[None]]

    async def _sweep(self, *args: object) -> None:
        await self.meddle()
        await super()._sweep(*args)  # type: ignore[arg-type]  # passed through


@quick
@given(graph=graphs, changes=changes)
def test_a_collection_removes_nothing_that_became_reachable_meanwhile(
    graph: Graph, changes: list[tuple[str, int, object]]
) -> None:
    after = Graph(dict(graph.blobs), dict(graph.images), dict(graph.leases))
    for kind, number, value in changes:
        getattr(after, f"{kind}s")[number] = value

    async def run(store: SqliteMetadataStore, backend: FakeContentStore) -> None:
        async def meddle() -> None:
            put = {"blob": put_blob, "image": put_image, "lease": put_lease}
            for kind, number, value in changes:
                await put[kind](store, number, value)  # type: ignore[operator]  # the value fits its kind

        await build(store, graph)
        sweeper = Meddling(store.engine, {})
        sweeper.meddle = meddle
        store._sweeper = sweeper
        await store.collect()
        assert reachable(after) <= await present(store)
        assert {name for name in reachable(after) if name.startswith("sha256:")} <= set(backend.blobs)
        store._sweeper = Sweeper(store.engine, {})
        await store.collect()
        assert await present(store) == reachable(after)

    asyncio.run(in_store(run))
