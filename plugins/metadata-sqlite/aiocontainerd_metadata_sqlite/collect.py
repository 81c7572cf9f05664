"""Collect garbage among the records (facts/core 10): mark on a read snapshot, sweep in batches on the writer.

No lock is held between the two. While a collection runs, SQL triggers note every resource that is new, or gets a new
edge or new attributes. Calls in progress pin the resources that they work on. Before each batch is deleted, all of
these are spared until the next collection, and so is every unmarked resource that they lead to.

A collection gives way to clients: its batches are small, and while clients write it rests between them.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import anyio
import msgspec

from aiocontainerd import timestamps
from aiocontainerd_metadata_sqlite import resources
from aiocontainerd_metadata_sqlite.engine import Engine
from aiocontainerd_metadata_sqlite.references import CONTENT, INGESTS
from aiocontainerd_metadata_sqlite.resources import Connection

T = TypeVar("T")

BATCH = 16
"""Records deleted in one mutation: about a millisecond, which is how long a client's write may wait for it."""
_UNMARKED_AT_ONCE = 400
_REST = 3.0
"""While clients write, the sweep rests after each batch for this many times the time that the batch took."""
_LONGEST_REST_S = 0.1

# CROSS JOIN makes SQLite join in the written order: from what was reached outwards, each step by an index. All ids come
# in one row, since each row takes the interpreter's lock from the event loop.
_MARK = """
WITH RECURSIVE live (id, flat) AS (
    SELECT id, flat FROM resources WHERE rooted AND (expires_ns IS NULL OR expires_ns > :now)
    UNION
    SELECT t.id, live.flat FROM live
        CROSS JOIN refs f ON f.source = live.id
        CROSS JOIN resources t ON t.namespace = f.namespace AND t.type = f.type AND t.key = f.key
        WHERE f.kind <> 3 AND (f.kind <= 1 OR NOT live.flat)
        AND (f.kind <> 4 OR (:now - t.used_at_ns < f.younger_than_ns AND :now - t.used_at_ns > f.older_than_ns))
    UNION
    SELECT f.source, 0 FROM live
        CROSS JOIN resources l ON l.id = live.id
        CROSS JOIN refs f ON f.namespace = l.namespace AND f.type = l.type AND f.key = l.key
        WHERE f.kind = 3
)
SELECT json_group_array(r.id) FILTER (WHERE l.id IS NULL), json_group_array(r.id) FILTER (WHERE l.flat)
    FROM resources r
    LEFT JOIN (SELECT id, min(flat) AS flat FROM live GROUP BY id) l ON l.id = r.id
    WHERE (l.id IS NULL OR l.flat)
    AND (r.type IN ('content', 'ingests', 'images', 'leases') OR r.type GLOB 'snapshots/*')
"""

_HELD = """
WITH RECURSIVE held (id) AS (
    SELECT id FROM resources WHERE rooted AND expires_ns IS NULL AND type <> 'leases'
    UNION
    SELECT t.id FROM held
        CROSS JOIN refs f ON f.source = held.id
        CROSS JOIN resources t ON t.namespace = f.namespace AND t.type = f.type AND t.key = f.key
        WHERE f.kind < 3
    UNION
    SELECT f.source FROM held
        CROSS JOIN resources l ON l.id = held.id
        CROSS JOIN refs f ON f.namespace = l.namespace AND f.type = l.type AND f.key = l.key
        WHERE f.kind = 3
)
SELECT id FROM held
"""
"""What a root leads to that neither ends by itself nor is a lease: a collection does not delete it unless asked to."""

_SPARE = """
WITH RECURSIVE reached (id) AS (
    SELECT id FROM temp.touched
    UNION
    SELECT t.id FROM reached
        CROSS JOIN refs f ON f.source = reached.id
        CROSS JOIN resources t ON t.namespace = f.namespace AND t.type = f.type AND t.key = f.key
        CROSS JOIN temp.unmarked u ON u.id = t.id
        WHERE f.kind <> 3
    UNION
    SELECT f.source FROM reached
        CROSS JOIN resources l ON l.id = reached.id
        CROSS JOIN refs f ON f.namespace = l.namespace AND f.type = l.type AND f.key = l.key
        CROSS JOIN temp.unmarked u ON u.id = f.source
        WHERE f.kind = 3
)
INSERT OR IGNORE INTO temp.spared SELECT id FROM reached
"""

_WATCH = (
    "CREATE TEMP TABLE touched (id INTEGER PRIMARY KEY)",
    "CREATE TEMP TABLE spared (id INTEGER PRIMARY KEY)",
    "CREATE TEMP TABLE unmarked (id INTEGER PRIMARY KEY)",
    "CREATE TEMP TRIGGER watch_new AFTER INSERT ON main.resources"
    " BEGIN INSERT OR IGNORE INTO touched VALUES (new.id); END",
    "CREATE TEMP TRIGGER watch_changed AFTER UPDATE ON main.resources"
    " BEGIN INSERT OR IGNORE INTO touched VALUES (new.id); END",
    "CREATE TEMP TRIGGER watch_edge AFTER INSERT ON main.refs WHEN new.kind <> 3"
    " BEGIN INSERT OR IGNORE INTO touched SELECT id FROM resources"
    " WHERE namespace = new.namespace AND type = new.type AND key = new.key; END",
    "CREATE TEMP TRIGGER watch_back_edge AFTER INSERT ON main.refs WHEN new.kind = 3"
    " BEGIN INSERT OR IGNORE INTO touched VALUES (new.source); END",
)
_UNWATCH = (
    *(
        f"DROP TRIGGER IF EXISTS temp.{name}"
        for name in ("watch_new", "watch_changed", "watch_edge", "watch_back_edge")
    ),
    *(f"DROP TABLE IF EXISTS temp.{name}" for name in ("touched", "spared", "unmarked")),
)


class Swept(msgspec.Struct, frozen=True):
    """A record that was deleted."""

    namespace: str
    type: str
    key: str


class Marked(msgspec.Struct, frozen=True):
    """Ids that the mark did not reach, newest first, and ids that it reached only from flat leases."""

    dead: Sequence[int]
    flat: Sequence[int]


def mark(db: Connection, now_ns: int) -> Marked:
    """Find the resources that no root leads to, in the read snapshot of `db`."""
    dead, flat = db.execute(_MARK, {"now": now_ns}).fetchone()
    return Marked(sorted(json.loads(dead), reverse=True), json.loads(flat))


def recorded(db: Connection, resource_type: str, *, held: bool = False) -> frozenset[str]:
    """Return the names that records of a type have in their backend; with `held` only those that stay."""
    if resource_type == CONTENT:
        rows = db.execute("SELECT id, key FROM resources WHERE type = 'content'")
    elif resource_type == INGESTS:
        rows = db.execute("SELECT id, backend_ref FROM ingests")
    else:
        name = resource_type.partition("/")[2]
        rows = db.execute("SELECT id, backend_key FROM snapshots WHERE snapshotter = ?", (name,))
    if not held:
        return frozenset(row[1] for row in rows)
    staying = {row[0] for row in db.execute(_HELD)}
    return frozenset(row[1] for row in rows if row[0] in staying)


class Sweeper:
    """Runs collections of records, one at a time."""

    def __init__(self, engine: Engine, pinned: Mapping[tuple[str, str, str], int]) -> None:
        self._engine = engine
        self._pinned = pinned
        self._lock = anyio.Lock()
        self.rested_s = 0.0
        """Seconds that collections have rested for clients since the start."""

    async def run(self, swept: Callable[[Sequence[Swept]], None]) -> Mapping[str, int]:
        """Mark and sweep. Call `swept(batch)` after the commit of each batch. Return the numbers deleted, by type."""
        removed: Counter[str] = Counter()

        def done(batch: Sequence[Swept]) -> None:
            removed.update(record.type for record in batch)
            if batch:
                swept(batch)

        async with self._lock:
            await self._engine.write(_watch, frees=True)
            try:
                now = timestamps.now_ns()
                marked = await self._engine.read(lambda db: mark(db, now))
                await self._sweep(marked, done)
            finally:
                await self._engine.write(_unwatch, frees=True)
        return dict(removed)

    async def _sweep(self, marked: Marked, done: Callable[[Sequence[Swept]], None]) -> None:
        if not marked.dead:
            return
        for ids in _batches([*marked.dead, *marked.flat], _UNMARKED_AT_ONCE):
            await self._mutate(lambda db, ids=ids: _note_unmarked(db, ids))  # type: ignore[misc]  # mypy infers no lambda with a default
        for ids in _batches(marked.dead, BATCH):
            await self._mutate(lambda db, ids=ids: self._sweep_batch(db, ids), then=done)  # type: ignore[misc]  # mypy infers no lambda with a default

    async def _mutate(self, function: Callable[[Connection], T], *, then: Callable[[T], None] | None = None) -> None:
        """Run one mutation. Rest after it if clients wrote meanwhile, or wait to."""
        before, began_s = self._engine.statistics().mutations, time.monotonic()
        await self._engine.write(function, then=then, frees=True)
        took_s, after = time.monotonic() - began_s, self._engine.statistics()
        if after.mutations - before > 1 or after.waiting:
            rest_s = min(_REST * took_s, _LONGEST_REST_S)
            self.rested_s += rest_s
            await anyio.sleep(rest_s)

    def _sweep_batch(self, db: Connection, ids: Sequence[int]) -> list[Swept]:
        """Delete those of `ids` that nothing has reached since the mark."""
        for namespace, resource_type, key in list(self._pinned):
            resource = resources.find(db, namespace, resource_type, key)
            if resource is not None:
                db.execute("INSERT OR IGNORE INTO temp.touched VALUES (?)", (resource,))
        if db.execute("SELECT EXISTS (SELECT 1 FROM temp.touched)").fetchone()[0]:
            db.execute(_SPARE)
            db.execute("DELETE FROM temp.touched")
        rows = db.execute(
            "SELECT r.id, r.namespace, r.type, r.key FROM json_each(?) j JOIN resources r ON r.id = j.value"
            " WHERE r.id NOT IN (SELECT id FROM temp.spared)",
            (json.dumps(ids),),
        ).fetchall()
        db.executemany("DELETE FROM resources WHERE id = ?", [(row[0],) for row in rows])
        return [Swept(*row[1:]) for row in rows]


def _watch(db: Connection) -> None:
    _unwatch(db)
    for statement in _WATCH:
        db.execute(statement)


def _unwatch(db: Connection) -> None:
    for statement in _UNWATCH:
        db.execute(statement)


def _note_unmarked(db: Connection, ids: Sequence[int]) -> None:
    db.execute("INSERT INTO temp.unmarked SELECT value FROM json_each(?)", (json.dumps(ids),))


def _batches(ids: Sequence[int], size: int) -> list[Sequence[int]]:
    return [ids[at : at + size] for at in range(0, len(ids), size)]
