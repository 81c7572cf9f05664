"""Content of a namespace: links, sharing, ingests, locks (facts/core 4)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import anyio
import anyio.lowlevel
import pytest
from aiocontainerd_metadata_sqlite.content import NamespacedContent
from aiocontainerd_metadata_sqlite.store import SqliteMetadataStore

from aiocontainerd import api, context
from aiocontainerd.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from aiocontainerd.interfaces.content import BlobInfo
from aiocontainerd.interfaces.metadata import Namespace
from aiocontainerd.testing.content import ContentStoreContract
from aiocontainerd.testing.fakes import FakeBus, FakeContentStore, digest_of
from aiocontainerd.testing.metadata import ingest

pytestmark = pytest.mark.anyio
BLOB = digest_of(b"blob")


@pytest.fixture
def bus() -> FakeBus:
    return FakeBus()


@pytest.fixture
def blobs() -> FakeContentStore:
    return FakeContentStore()


@pytest.fixture
def policy() -> Literal["shared", "isolated"]:
    return "shared"


@pytest.fixture
async def metadata(
    tmp_path: Path, bus: FakeBus, blobs: FakeContentStore, policy: Literal["shared", "isolated"]
) -> AsyncIterator[SqliteMetadataStore]:
    store = SqliteMetadataStore(
        tmp_path / "meta.db", content=blobs, snapshotters={}, bus=bus, policy=policy, sync=False
    )
    await store.open()
    yield store
    await store.aclose()


class TestContract(ContentStoreContract):
    keeps_labels = True

    @pytest.fixture
    async def store(self, metadata: SqliteMetadataStore) -> AsyncIterator[NamespacedContent]:
        with context.use(namespace="contract"):
            yield metadata.content


async def test_commit_links_and_announces_once(metadata: SqliteMetadataStore, bus: FakeBus) -> None:
    with context.use(namespace="t1"):
        assert await ingest(metadata, b"blob", {"a": "1", "b": ""}) == BLOB
        info = await metadata.content.info(BLOB)
        assert (info.size, info.labels) == (4, {"a": "1"})
        with pytest.raises(AlreadyExists, match=f"content {BLOB}"):
            await ingest(metadata, b"blob", ref="again")
        assert await metadata.content.statuses() == []
    assert bus.topics == ["/content/create"]
    _, event, namespace = bus.events[0]
    assert namespace == "t1"
    assert isinstance(event, api.event_types.ContentCreate)
    assert (event.digest, event.size) == (BLOB, 4)


async def test_blob_of_another_namespace_is_not_seen_but_its_bytes_commit(
    metadata: SqliteMetadataStore, bus: FakeBus
) -> None:
    with context.use(namespace="t1"):
        await ingest(metadata, b"blob")
    with context.use(namespace="t2"):
        with pytest.raises(NotFound, match=f"content digest {BLOB}"):
            await metadata.content.reader(BLOB)
        assert await ingest(metadata, b"blob", {"x": "2"}) == BLOB
        assert (await metadata.content.info(BLOB)).labels == {"x": "2"}
    assert bus.topics == ["/content/create"] * 2


async def test_shared_blob_is_linked_without_its_bytes(metadata: SqliteMetadataStore, blobs: FakeContentStore) -> None:
    with context.use(namespace="t1"):
        await ingest(metadata, b"blob")
    with context.use(namespace="t2"):
        async with await metadata.content.writer("ref", expected=BLOB, total=4) as writer:
            assert (writer.offset, writer.digest()) == (4, BLOB)
            status = await writer.status()
            assert (status.ref, status.offset, status.total) == ("ref", 4, 4)
            with pytest.raises(FailedPrecondition, match='"ref" failed size validation: 4 != 5'):
                await writer.commit(5)
            await writer.commit(4, BLOB)
        assert (await metadata.content.info(BLOB)).size == 4
    assert blobs.ingests == {}


async def test_a_client_is_told_of_its_own_ref(metadata: SqliteMetadataStore) -> None:
    with context.use(namespace="t1"):
        async with await metadata.content.writer("ref") as writer:
            await writer.write(b"blob")
            with pytest.raises(FailedPrecondition, match=r'\A"ref" failed size validation: 4 != 5\Z'):
                await writer.commit(5)
            await metadata.content.abort("ref")
            with pytest.raises(NotFound, match=r"\Areference ref\Z"):
                await writer.commit(4)


async def test_ingest_closed_in_a_cancelled_call_closes_the_backends(
    metadata: SqliteMetadataStore, blobs: FakeContentStore
) -> None:
    closed: list[bool] = []
    with context.use(namespace="t1"):
        with anyio.CancelScope() as scope:
            async with await metadata.content.writer("ref") as writer:
                inner = writer._open_inner()
                close = inner.close

                async def slowly() -> None:
                    await anyio.lowlevel.checkpoint()
                    await close()
                    closed.append(True)

                inner.close = slowly  # type: ignore[method-assign]
                scope.cancel()
    assert closed == [True]
    assert not any(ingest.locked for ingest in blobs.ingests.values())


async def test_blob_of_another_size_is_not_shared(metadata: SqliteMetadataStore) -> None:
    with context.use(namespace="t1"):
        await ingest(metadata, b"blob")
    with context.use(namespace="t2"):
        async with await metadata.content.writer("ref", expected=BLOB, total=5) as writer:
            assert writer.offset == 0


async def test_writing_after_a_shared_blob_makes_a_private_copy(metadata: SqliteMetadataStore) -> None:
    with context.use(namespace="t1"):
        await ingest(metadata, b"blob")
    with context.use(namespace="t2"):
        async with await metadata.content.writer("ref", expected=BLOB) as writer:
            await writer.write(b"+more")
            assert writer.offset == 9
            assert (await writer.commit(9)).digest == digest_of(b"blob+more")
        async with await metadata.content.writer("ref", expected=BLOB) as writer:
            await writer.truncate()
            assert writer.offset == 0
            await writer.write(b"blob")
            await writer.commit(4, BLOB)


async def test_a_writer_closed_while_it_copies_a_shared_blob_leaves_no_lock(
    metadata: SqliteMetadataStore, blobs: FakeContentStore
) -> None:
    copying, closed = anyio.Event(), anyio.Event()

    async def held(call: str, _name: str) -> None:
        if call == "writer":
            copying.set()
            await closed.wait()

    async def write() -> None:
        with pytest.raises(FailedPrecondition, match='writer of "ref" is closed'):
            await writer.write(b"+more")

    with context.use(namespace="t1"):
        await ingest(metadata, b"blob")
    with context.use(namespace="t2"):
        writer = await metadata.content.writer("ref", expected=BLOB)
        blobs.before = held
        async with anyio.create_task_group() as group:
            group.start_soon(write)
            await copying.wait()
            await writer.close()
            closed.set()
    assert blobs.ingests
    assert not any(ingest.locked for ingest in blobs.ingests.values())


@pytest.mark.parametrize("policy", ["isolated"])
async def test_isolated_blob_is_linked_only_from_a_shareable_namespace(metadata: SqliteMetadataStore) -> None:
    with context.use(namespace="t1"):
        await ingest(metadata, b"blob")
    with context.use(namespace="t2"):
        async with await metadata.content.writer("ref", expected=BLOB) as writer:
            assert writer.offset == 0
        await metadata.namespaces.update(Namespace("t1", {"containerd.io/namespace.shareable": "true"}))
        async with await metadata.content.writer("ref", expected=BLOB) as writer:
            assert writer.offset == 4


async def test_ingest_has_a_numbered_backend_ref_and_survives_its_writer(
    metadata: SqliteMetadataStore, blobs: FakeContentStore
) -> None:
    with context.use(namespace="t1"):
        async with await metadata.content.writer("a/ref", total=9) as writer:
            await writer.write(b"blob")
        (backend_ref,) = blobs.ingests
        assert backend_ref.startswith("t1/")
        assert backend_ref.endswith("/a/ref")
        assert (await metadata.content.status("a/ref")).offset == 4
        assert [s.ref for s in await metadata.content.statuses(["ref==a/ref"])] == ["a/ref"]
        async with await metadata.content.writer("a/ref") as writer:
            assert writer.offset == 4
    with context.use(namespace="t2"), pytest.raises(NotFound, match="reference a/ref"):
        await metadata.content.status("a/ref")


async def test_open_ingest_is_locked_until_closed(metadata: SqliteMetadataStore) -> None:
    with context.use(namespace="t1"):
        writer = await metadata.content.writer("ref")
        with pytest.raises(Unavailable, match=r"\Aref t1/\d+/ref locked for .*s \(since "):
            await metadata.content.writer("ref")
        await writer.close()
        await writer.close()
        await (await metadata.content.writer("ref")).close()


async def test_abort_works_while_the_ingest_is_open(metadata: SqliteMetadataStore, blobs: FakeContentStore) -> None:
    with context.use(namespace="t1"):
        async with await metadata.content.writer("ref"):
            await metadata.content.abort("ref")
            with pytest.raises(NotFound, match=r"\Areference ref\Z"):
                await metadata.content.abort("ref")
    assert blobs.ingests == {}


async def test_failed_checks_keep_the_ingest(metadata: SqliteMetadataStore) -> None:
    with context.use(namespace="t1"):
        async with await metadata.content.writer("ref") as writer:
            await writer.write(b"blob")
            with pytest.raises(FailedPrecondition, match="failed size validation"):
                await writer.commit(5)
            with pytest.raises(FailedPrecondition, match="unexpected commit digest"):
                await writer.commit(4, digest_of(b"other"))
            with pytest.raises(InvalidArgument, match=r"info\.Labels: label key and value"):
                await writer.commit(4, labels={"k": "v" * 4096})
            await writer.commit(4, BLOB)


async def test_other_algorithms_are_kept_under_their_digest(metadata: SqliteMetadataStore) -> None:
    digest = digest_of(b"blob", "sha512")
    with context.use(namespace="t1"):
        async with await metadata.content.writer("ref") as writer:
            await writer.write(b"blob")
            assert (await writer.commit(4, digest)).digest == digest


async def test_labels_are_updated_by_mask(metadata: SqliteMetadataStore) -> None:
    with context.use(namespace="t1"):
        await ingest(metadata, b"blob", {"a": "1", "b": "2"})
        given = BlobInfo(digest=BLOB, size=0, created_at_ns=0, updated_at_ns=0, labels={"c": "3"})
        assert (await metadata.content.update(given, ["labels.c", "labels.a"])).labels == {"b": "2", "c": "3"}
        assert (await metadata.content.update(given)).labels == {"c": "3"}
        with pytest.raises(InvalidArgument, match=f'cannot update "size" field on content info "{BLOB}"'):
            await metadata.content.update(given, ["size"])


async def test_walk_is_sorted_and_filtered(metadata: SqliteMetadataStore) -> None:
    with context.use(namespace="t1"):
        digests = [await ingest(metadata, bytes([n]), {"n": str(n)}) for n in range(5)]
        assert [i.digest async for i in metadata.content.walk()] == sorted(digests)
        assert [i.digest async for i in metadata.content.walk(["labels.n==3", f"digest=={digests[4]}"])] == sorted(
            digests[3:]
        )


async def test_deleted_blob_is_gone_from_its_namespace_only(
    metadata: SqliteMetadataStore, blobs: FakeContentStore
) -> None:
    for namespace in ("t1", "t2"):
        with context.use(namespace=namespace):
            await ingest(metadata, b"blob", ref=namespace)
    with context.use(namespace="t1"):
        await metadata.content.delete(BLOB)
        with pytest.raises(NotFound, match=f"content digest {BLOB}"):
            await metadata.content.delete(BLOB)
    with context.use(namespace="t2"):
        assert (await metadata.content.info(BLOB)).size == 4
    assert BLOB in blobs.blobs


async def pulled(metadata: SqliteMetadataStore, data: bytes) -> None:
    """Bring a blob as clients do that pull: they open its ingest, and rely on AlreadyExists."""
    digest = digest_of(data)
    async with await metadata.content.writer("pull", total=len(data), expected=digest) as writer:
        await writer.write(data)
        await writer.commit(len(data), digest)


@pytest.mark.parametrize("left", [b"wh", None], ids=["truncated", "gone"])
async def test_a_damaged_blob_is_found_when_it_is_read_and_made_anew_by_a_pull(
    metadata: SqliteMetadataStore, blobs: FakeContentStore, left: bytes | None
) -> None:
    for namespace in ("t1", "t2"):
        with context.use(namespace=namespace):
            digest = await ingest(metadata, b"whole", {"a": "b"})
    await blobs.delete(digest)
    if left is not None:
        blobs.put_as(digest, left)
    with context.use(namespace="t1"):
        with pytest.raises(DataLoss, match=rf"content {digest} is damaged: .*; pull its image again"):
            await metadata.content.reader(digest)
        await pulled(metadata, b"whole")
        assert (await metadata.content.info(digest)).labels == {"a": "b"}
        with pytest.raises(AlreadyExists):
            await pulled(metadata, b"whole")
    with context.use(namespace="t2"):
        async with await metadata.content.reader(digest) as reader:
            assert await reader.read(10, 0) == b"whole"


async def test_a_damaged_blob_of_another_namespace_is_not_linked(
    metadata: SqliteMetadataStore, blobs: FakeContentStore
) -> None:
    with context.use(namespace="t1"):
        digest = await ingest(metadata, b"whole")
    await blobs.delete(digest)
    blobs.put_as(digest, b"wh")
    with context.use(namespace="t2"):
        await pulled(metadata, b"whole")
    assert blobs.blobs[digest] == b"whole"
