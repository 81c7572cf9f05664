"""`metadata.db`: the records of a snapshotter in SQLite, with group commit.

Concurrent changes join the open group. The group is committed with one fsync, then all of its callers return. A change
is on disk when `put` or `delete` returns.

`owned` finds out which layers the database may delete.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from aiocontainerd.errors import FailedPrecondition, Internal, ReadOnlyFileSystem, ResourceExhausted, text_of
from aiocontainerd.index import backup, database
from aiocontainerd.index.mark import MarkFile
from aiocontainerd.index.read_only import MemoryCopy, copied, read_only, refusal
from aiocontainerd.index.reserve import Reserve, is_full, with_room
from aiocontainerd.interfaces.snapshotter import Kind, SnapshotInfo, Usage
from aiocontainerd.snapshots import foreign, owned
from aiocontainerd.snapshots.layer import Layer

log = logging.getLogger(__name__)

RESERVE_BYTES = 1 << 20
FULL = "the disk of %s %s is full: until there is room, only deletions are possible"
COPY_INTERVAL_S = 3600.0
"""The least time between two copies of the database while it is open."""
COPIED_AT_STOP_BYTES = 32 << 20
"""The largest database that is copied when it is closed."""
MARK = "snapshots.mark"
"""File name of the mark in the snapshotter's root."""
SCHEMA_VERSION = 3
_SCHEMA = """
CREATE TABLE snapshots (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    kind INTEGER NOT NULL,
    parent_id INTEGER REFERENCES snapshots (id),
    labels BLOB NOT NULL,
    created_at_ns INTEGER NOT NULL,
    updated_at_ns INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    inodes INTEGER NOT NULL
) STRICT
"""
_IDENTITY = """
CREATE TABLE identity (id TEXT NOT NULL, upgraded INTEGER NOT NULL, claimed INTEGER NOT NULL) STRICT;
CREATE TABLE kept (name TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
"""
"""`kept` names files that this database does not know and must not delete."""
_PASTS = """
ALTER TABLE identity ADD COLUMN closed INTEGER NOT NULL DEFAULT 0;
CREATE TABLE IF NOT EXISTS past (number INTEGER PRIMARY KEY, id TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS leftovers (name TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
"""
"""`past` has the identities that it had before. `closed`: it was closed in order, and then did not know `leftovers`."""
_SELECT = """
SELECT s.id, s.key, s.kind, s.parent_id, p.key, s.labels, s.created_at_ns, s.updated_at_ns, s.size_bytes, s.inodes
FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent_id ORDER BY s.id
"""
_PUT = """
INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET key = excluded.key,
kind = excluded.kind, parent_id = excluded.parent_id, labels = excluded.labels, created_at_ns = excluded.created_at_ns,
updated_at_ns = excluded.updated_at_ns, size_bytes = excluded.size_bytes, inodes = excluded.inodes
"""
_DELETE = "DELETE FROM snapshots WHERE id = ?"

Change = tuple[str, tuple[object, ...]]


class _Group:
    """Changes that are committed together."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.done = anyio.Event()
        self.error: Exception | None = None


class Store:
    """The database of one snapshotter. `load` opens it. One event loop uses it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.commits = 0
        self._copied = 0
        self._mark = MarkFile(path.with_name(MARK))
        self._connection: sqlite3.Connection | None = None
        self._copy: MemoryCopy | None = None
        self._groups: dict[bool, _Group] = {}
        self._reserve = Reserve(path, RESERVE_BYTES)
        self._full = False
        self._turn = anyio.Lock()
        self._limiter = anyio.CapacityLimiter(1)

    def __repr__(self) -> str:
        return f"<Store {self.path} {'open' if self._connection else 'closed'}, {self.commits} commits>"

    async def load(self) -> tuple[list[Layer], int]:
        """Open the database, or create it. Return its layers and the last id that was ever used.

        Raises FailedPrecondition when the file is another kind of database, or is in use by another process.
        """
        return await anyio.to_thread.run_sync(self._load, limiter=self._limiter)

    def _load(self) -> tuple[list[Layer], int]:
        try:
            self._copy = copied(self.path, foreign.WHAT)
            self._connection = _opened_copy(self._copy) if self._copy is not None else self._opened_here()
            rows = self._connection.execute(_SELECT).fetchall()
            return _layers(rows), owned.last_id(self._connection)
        except ValueError as error:
            raise database.damaged(self.path, foreign.WHAT, f"a record cannot be read: {error}") from error
        except sqlite3.DatabaseError as error:
            if database.is_damage(error):
                raise database.damaged(self.path, foreign.WHAT, str(error)) from error
            raise FailedPrecondition(f"{foreign.WHAT} {self.path} cannot be used: {error}") from error

    def _opened_here(self) -> sqlite3.Connection:
        connection = with_room(self._reserve, partial(_opened, self.path))
        self._reserve.hold_log()
        self._full = not self._reserve.fill()
        if self._full:
            log.warning(FULL, foreign.WHAT, self.path)
        return connection

    @property
    def is_copy(self) -> bool:
        """Whether a copy in memory is read, because the file system of the database was read-only at the start."""
        return self._copy is not None

    def refusal(self) -> ReadOnlyFileSystem:
        """Return the error for a change on a read-only file system."""
        return refusal(self.path, foreign.WHAT)

    async def claim(self, stored: Collection[str]) -> owned.Claimed:
        """Compare the database with the names on storage, before the first change. Return what it must keep.

        If the database cannot prove that the files are its own, it keeps all that it does not know, for good, and
        claims the rest. Raise sqlite3.Error or OSError if that cannot be written down; then nothing is claimed. On a
        read-only file system nothing is claimed either, and nothing can be deleted.
        """
        connection = self._connection
        assert connection is not None
        if self.is_copy:
            kept = await anyio.to_thread.run_sync(owned.kept_of, connection, limiter=self._limiter)
            return owned.Claimed(kept & frozenset(stored))
        return await anyio.to_thread.run_sync(
            owned.claim, connection, self.path, self._mark, frozenset(stored), limiter=self._limiter
        )

    async def put(self, layer: Layer) -> None:
        """Write the record of a layer. Raises ResourceExhausted on a full disk, ReadOnlyFileSystem, Internal."""
        await self._write((_PUT, _row(layer)), frees=False)

    async def delete(self, layer_id: str) -> None:
        """Delete the record of a layer. Raises ReadOnlyFileSystem, or Internal when the disk refuses it otherwise."""
        await self._write((_DELETE, (int(layer_id),)), frees=True)

    async def copy_if_due(self) -> None:
        """Copy the database beside it if it changed and the newest copy is old. What fails is logged."""
        if self._connection is not None:
            await anyio.to_thread.run_sync(self._copy_of, self._connection, COPY_INTERVAL_S, limiter=self._limiter)

    def _copy_of(self, connection: sqlite3.Connection, interval_s: float) -> None:
        commits = self.commits
        if commits == self._copied or not backup.is_due(self.path, interval_s):
            return
        try:
            if backup.has_room(self.path):
                backup.make(connection, self.path)
                self._copied = commits
        except (sqlite3.Error, OSError) as error:
            log.warning("there is no copy of %s: %s", self.path, text_of(error))

    async def note_leftovers(self, stored: Collection[str]) -> None:
        """Write down which of the names on storage no record knows. Call it last, if the database was claimed.

        Raise sqlite3.Error or OSError; then what is there counts as after a crash.
        """
        async with self._turn:
            if self._connection is not None and not self.is_copy:
                await anyio.to_thread.run_sync(
                    owned.note_leftovers, self._connection, frozenset(stored), limiter=self._limiter
                )

    async def aclose(self) -> None:
        """Wait for the open group and close the file."""
        async with self._turn:
            connection, self._connection = self._connection, None
            if connection is not None:
                await anyio.to_thread.run_sync(self._close, connection, limiter=self._limiter)

    def _close(self, connection: sqlite3.Connection) -> None:
        self._mark.close()
        if self._copy is not None:
            connection.close()
            self._copy.close()
            self._copy = None
            return
        if self.path.exists() and self.path.stat().st_size <= COPIED_AT_STOP_BYTES:
            self._copy_of(connection, 0.0)
        connection.close()
        self._reserve.fill()

    async def _write(self, change: Change, *, frees: bool) -> None:
        """Join the open group of changes that free room, or of those that do not: a full disk fails only these."""
        if self.is_copy:
            raise self.refusal()
        # A cancelled caller must stay: the group may depend on it as its leader, and it must learn the outcome.
        with anyio.CancelScope(shield=True):
            joined = self._groups.get(frees)
            group = joined or _Group()
            group.changes.append(change)
            if joined is None:
                self._groups[frees] = group
                await self._lead(group, frees)
            else:
                await group.done.wait()
        if isinstance(group.error, ResourceExhausted | FailedPrecondition):
            raise type(group.error)(group.error.message)
        if group.error is not None:
            raise Internal(f"snapshot metadata {self.path}: {group.error}") from group.error

    async def _lead(self, group: _Group, frees: bool) -> None:
        async with self._turn:
            del self._groups[frees]
            try:
                await anyio.to_thread.run_sync(self._commit_with_room, group.changes, frees, limiter=self._limiter)
            except (sqlite3.Error, OSError, ResourceExhausted, FailedPrecondition) as error:
                group.error = error
            finally:
                group.done.set()

    def _commit_with_room(self, changes: Sequence[Change], frees: bool) -> None:
        """Commit. On a full disk, commit what frees room with the room of the reserve, and refuse the rest."""
        if self._full and not frees:
            if not (self._reserve.has_room() and self._reserve.fill()):
                raise ResourceExhausted(f"{foreign.WHAT} {self.path}: no space left on device")
            self._full = False
            self._reserve.hold_log()
            log.warning("there is room again for %s %s", foreign.WHAT, self.path)
        try:
            self._commit(changes)
        except sqlite3.Error as error:
            if refused := read_only(self.path, foreign.WHAT):
                raise refused from error
            if not is_full(error):
                raise
            if not self._full:
                log.warning(FULL, foreign.WHAT, self.path)
            self._full = True
            self._reserve.release()
            self._empty_log()
            if not frees:
                raise ResourceExhausted(f"{foreign.WHAT} {self.path}: no space left on device") from error
            self._commit(changes)

    def _empty_log(self) -> None:
        """Copy the log into the database, so that it begins anew and needs no more room."""
        assert self._connection is not None
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.OperationalError as error:
            log.warning("the log of %s %s cannot be emptied: %s", foreign.WHAT, self.path, error)

    def _commit(self, changes: Sequence[Change]) -> None:
        connection = self._connection
        if connection is None:
            raise sqlite3.ProgrammingError("the database is closed")
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement, values in changes:
                connection.execute(statement, values)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self.commits += 1
        if self._full:
            self._empty_log()
        self._mark.advance(
            max((owned.number_of(str(values[0])) for statement, values in changes if statement is _PUT), default=0)
        )


def _opened(path: Path) -> sqlite3.Connection:
    foreign.refuse(path.parent)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
    try:
        # Only one process may own a snapshotter's root, since that process mirrors the records in memory.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        database.check(connection, path, foreign.WHAT)
        _migrate(connection, path)
        backup.keep_former(connection, path, foreign.WHAT)
    except BaseException:
        connection.close()
        raise
    path.chmod(0o600)
    return connection


def _opened_copy(copy: MemoryCopy) -> sqlite3.Connection:
    connection = sqlite3.connect(copy.uri, uri=True, isolation_level=None, check_same_thread=False)
    try:
        _migrate(connection, copy.path)
    except BaseException:
        connection.close()
        copy.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN EXCLUSIVE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    database.refuse_tables_of_others(connection, path, foreign.WHAT, version)
    if version > SCHEMA_VERSION:
        raise sqlite3.DatabaseError(
            f"schema version {version} is newer than {SCHEMA_VERSION}, the newest known: "
            "run the release that wrote it, or a newer one"
        )
    if version < 1:
        connection.execute(_SCHEMA)
    if version < 2:
        for statement in filter(str.strip, _IDENTITY.split(";")):
            connection.execute(statement)
        connection.execute("INSERT INTO identity VALUES (lower(hex(randomblob(16))), ?, 0)", (version == 1,))
    if version < SCHEMA_VERSION:
        for statement in filter(str.strip, _PASTS.split(";")):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")
    database.require_tables(connection, path, foreign.WHAT, (_SCHEMA, _IDENTITY, _PASTS))


def _row(layer: Layer) -> tuple[object, ...]:
    info = layer.info
    return (
        int(layer.id),
        info.name,
        int(info.kind),
        int(layer.parent_id) if layer.parent_id else None,
        msgspec.json.encode(dict(info.labels)),
        info.created_at_ns,
        info.updated_at_ns,
        layer.usage.size,
        layer.usage.inodes,
    )


def _layers(rows: Collection[tuple[int, str, int, int | None, str | None, bytes, int, int, int, int]]) -> list[Layer]:
    """Return the layers of rows. Raise ValueError for values that no layer has."""
    layers = [_layer(row) for row in rows]
    ids = {layer.id for layer in layers}
    for layer in layers:
        if layer.parent_id and layer.parent_id not in ids:
            raise ValueError(f"snapshot {layer.key} has a parent that is missing")
    return layers


def _layer(row: tuple[int, str, int, int | None, str | None, bytes, int, int, int, int]) -> Layer:
    layer_id, key, kind, parent_id, parent, labels, created, updated, size, inodes = row
    info = SnapshotInfo(
        kind=Kind(kind),
        name=key,
        parent=parent or "",
        labels=msgspec.json.decode(labels, type=dict[str, str]),
        created_at_ns=created,
        updated_at_ns=updated,
    )
    return Layer(
        id=str(layer_id),
        info=info,
        parent_id="" if parent_id is None else str(parent_id),
        usage=Usage(size, inodes),
    )
