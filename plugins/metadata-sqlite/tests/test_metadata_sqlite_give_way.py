"""A collection leaves the writer to clients: small batches, rests while they write, none where nobody does."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from aiocontainerd_metadata_sqlite import collect
from aiocontainerd_metadata_sqlite.store import SqliteMetadataStore

from aiocontainerd import context
from aiocontainerd.interfaces.metadata import Image
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.testing.fakes import FakeBus, FakeContentStore
from aiocontainerd.testing.metadata import container

pytestmark = pytest.mark.anyio

DEAD = 600
LABELS = {"containerd.io/gc.expire": "2001-01-01T00:00:00Z"}


@pytest.fixture
async def metadata(tmp_path: Path) -> AsyncIterator[SqliteMetadataStore]:
    """A store with `DEAD` images that nothing keeps."""
    store = SqliteMetadataStore(tmp_path / "meta.db", content=FakeContentStore(), snapshotters={}, bus=FakeBus())
    await store.open()
    with context.use(namespace="t1"):
        async with anyio.create_task_group() as group:
            for number in range(DEAD):
                target = Descriptor("m", f"sha256:{number:064x}", 1)
                group.start_soon(store.images.create, Image(name=f"i{number}", target=target, labels=LABELS))
        yield store
    await store.aclose()


async def writes(store: SqliteMetadataStore, prefix: str, took_s: list[float]) -> None:
    """A client that writes until it is cancelled, with short thoughts between."""
    while True:
        began_s = time.perf_counter()
        await store.containers.create(container(f"{prefix}{len(took_s)}"))
        took_s.append(time.perf_counter() - began_s)
        await anyio.sleep(0.001)


async def test_a_collection_of_an_idle_store_rests_not(metadata: SqliteMetadataStore) -> None:
    before = metadata.statistics()
    assert (await metadata.collect()).removed == {"images": DEAD}
    assert metadata._sweeper.rested_s == 0
    batches = metadata.statistics().mutations - before.mutations
    assert batches >= DEAD // collect.BATCH


async def test_clients_write_while_a_collection_rests_and_its_duration_is_without_that(
    metadata: SqliteMetadataStore,
) -> None:
    took_s: list[float] = []
    began_s = time.monotonic()
    async with anyio.create_task_group() as group:
        group.start_soon(writes, metadata, "c", took_s)
        collected = await metadata.collect()
        group.cancel_scope.cancel()
    assert collected.removed == {"images": DEAD}
    assert metadata._sweeper.rested_s > 0
    assert collected.duration_s <= time.monotonic() - began_s - metadata._sweeper.rested_s
    assert len(took_s) > DEAD // collect.BATCH


async def test_a_collection_does_not_slow_the_median_write_threefold(metadata: SqliteMetadataStore) -> None:
    quiet_s: list[float] = []
    with anyio.move_on_after(0.3):
        await writes(metadata, "quiet", quiet_s)
    busy_s: list[float] = []
    async with anyio.create_task_group() as group:
        group.start_soon(writes, metadata, "busy", busy_s)
        await metadata.collect()
        group.cancel_scope.cancel()
    assert statistics.median(busy_s) < 3 * statistics.median(quiet_s) + 0.002
