"""Records answered from memory: never older than an acknowledged change, and bounded."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiocontainerd_metadata_sqlite import resources
from aiocontainerd_metadata_sqlite.cache import RecordCache
from aiocontainerd_metadata_sqlite.engine import Engine

NAME = ("ns", "images", "a")

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    engine = Engine(tmp_path / "meta.db")
    await engine.open()
    yield engine
    await engine.aclose()


def add(db: sqlite3.Connection) -> None:
    resources.add(db, *NAME, created_ns=1, updated_ns=1, labels={})


async def find(engine: Engine) -> int | None:
    return await engine.lookup(NAME, lambda db: resources.find(db, *NAME))


async def test_a_second_lookup_reads_nothing(engine: Engine) -> None:
    await engine.write(add)
    assert await find(engine) == await find(engine) == 1
    assert engine.statistics().reads == 1


async def test_a_cache_of_no_bytes_keeps_nothing(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "meta.db", cache_bytes=0)
    await engine.open()
    try:
        await engine.write(add)
        assert await find(engine) == await find(engine) == 1
        assert engine.statistics().reads == 2
    finally:
        await engine.aclose()


async def test_a_lookup_sees_creation_and_removal(engine: Engine) -> None:
    assert await find(engine) is None
    await engine.write(add)
    assert await find(engine) == 1
    await engine.write(lambda db: resources.delete(db, 1))
    assert await find(engine) is None


async def test_a_lookup_sees_what_went_with_its_namespace(engine: Engine) -> None:
    await engine.write(add)
    assert await find(engine) == 1
    await engine.write(lambda db: db.execute("DELETE FROM namespaces"))
    assert await find(engine) is None


async def test_what_was_read_before_a_change_is_not_kept_after_it(engine: Engine) -> None:
    def read_then_commit(db: sqlite3.Connection) -> int | None:
        found = resources.find(db, *NAME)
        assert engine._loop is not None
        pending = engine._loop.call_soon_threadsafe
        pending(engine._answer, [])  # a group is answered while this snapshot is being read
        return found

    await engine.lookup(NAME, read_then_commit)
    assert len(engine._records) == 0


def test_the_cache_lets_go_of_what_was_longest_unused() -> None:
    cache = RecordCache(max_bytes=20)
    for key in "abc":
        cache.put(("n", "t", key), key, 8)
        cache.get(("n", "t", "a"))
    assert cache.get(("n", "t", "a")) is not None
    assert cache.get(("n", "t", "b")) is None
    assert len(cache) == 2
