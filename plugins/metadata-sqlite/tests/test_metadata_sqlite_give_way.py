"""A collection leaves the writer to clients: small batches, rests while they write, none where nobody does."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from aiocontainerd_metadata_sqlite import collect
from aiocontainerd_metadata_sqlite.engine import Statistics
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
    """Yield a store with `DEAD` images that nothing keeps."""
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
    """Write as a client with short pauses, until cancelled."""
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


class Timed:
    """What a sweep uses of the engine and of the clock: each mutation takes `took_s`, and `others` come with it."""

    def __init__(self, took_s: float, others: int, waiting: int) -> None:
        self.now_s = 0.0
        self.rests_s: list[float] = []
        self._took_s, self._others, self._waiting = took_s, others, waiting
        self._mutations = 0

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.rests_s.append(seconds)

    async def write(self, _function: object, *, then: object = None, frees: bool = False) -> None:
        assert frees, "a collection passes on a full disk"
        self.now_s += self._took_s
        self._mutations += 1 + self._others

    def statistics(self) -> Statistics:
        return Statistics(
            commits=0, mutations=self._mutations, failed=0, largest_group=0, reads=0, waiting=self._waiting
        )


@pytest.mark.parametrize(
    ("took_s", "others", "waiting", "rest_s"),
    [(0.01, 0, 0, None), (0.01, 1, 0, 0.03), (0.01, 0, 1, 0.03), (2.0, 5, 5, 0.1)],
    ids=["alone", "with-another", "before-another", "not-for-ever"],
)
async def test_a_batch_leaves_the_writer_three_times_its_own_time_to_clients(
    monkeypatch: pytest.MonkeyPatch, took_s: float, others: int, waiting: int, rest_s: float | None
) -> None:
    timed = Timed(took_s, others, waiting)
    monkeypatch.setattr(collect, "time", timed)
    monkeypatch.setattr(collect, "anyio", timed)
    monkeypatch.setattr(timed, "Lock", anyio.Lock, raising=False)
    sweeper = collect.Sweeper(timed, {})  # type: ignore[arg-type]
    for _ in range(2):
        await sweeper._mutate(lambda _db: None)
    assert timed.rests_s == ([] if rest_s is None else pytest.approx([rest_s] * 2))
    assert sweeper.rested_s == pytest.approx(sum(timed.rests_s))
