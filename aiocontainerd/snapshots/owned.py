"""Which layers the records of a snapshotter may delete (`aiocontainerd/index`).

The database has an identity, and leaves its mark beside the layers (`aiocontainerd/index`). `claim` finds out whether
it may delete what it does not know. It takes a new identity each time it is opened, and remembers those that it had.
So of two databases that were one, neither passes for the other. When it is closed, it notes what it does not know.
What comes to that until it is opened again was brought by somebody, and is kept.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from pathlib import Path

import msgspec

from aiocontainerd.index import database
from aiocontainerd.index.claim import BROUGHT, Standing, doubt
from aiocontainerd.index.mark import Mark, MarkFile, renewal

_PAST = 1000
"""Identities that are remembered, the newest of them."""


class Claimed(msgspec.Struct, frozen=True):
    """What a database found beside it: names that it keeps although it does not know them, and why ("": none new).

    `remedy` is how to go back to the copy of the database before, "" without one.
    """

    kept: frozenset[str] = frozenset()
    cause: str = ""
    remedy: str = ""


def claim(connection: sqlite3.Connection, path: Path, file: MarkFile, stored: frozenset[str]) -> Claimed:
    """Compare the database at `path` with its mark and the names on storage, and claim them. See `Store.claim`."""
    identity, upgraded, met, closed = connection.execute(
        "SELECT id, upgraded, claimed, closed FROM identity"
    ).fetchone()
    past = frozenset(row[0] for row in connection.execute("SELECT id FROM past"))
    last, mark = last_id(connection), file.read()
    known = {str(row[0]) for row in connection.execute("SELECT id FROM snapshots")}
    before = kept_of(connection) & stored
    cause = doubt(
        Standing(identity=identity, generation=last, met=met, upgraded=upgraded, recognises=last > 0, past=past),
        mark,
    )
    doubtful = stored - known - before
    if not cause and mark is None:
        doubtful = frozenset(name for name in doubtful if number_of(name) > last)
        cause = "an earlier release wrote it, and it has not given out their numbers" if doubtful else ""
    elif not cause:
        doubtful -= {row[0] for row in connection.execute("SELECT name FROM leftovers")} if closed else doubtful
        cause = BROUGHT if doubtful else ""
    remedy = database.way_back(path) if before or doubtful else ""
    generation = max(last, mark.generation if mark else 0)
    if cause:
        generation = max([generation, *map(number_of, stored)]) + 1
    try:
        renewed = renewal(identity)
        _write_claim(connection, doubtful, generation, renewed)
        file.replace(Mark(renewed, generation))
    except (sqlite3.Error, OSError):
        if cause or mark is None:
            raise
        file.open()  # on a full disk: the mark is one that the database had before
    return Claimed(before | doubtful, cause if doubtful else "", remedy)


def _write_claim(connection: sqlite3.Connection, kept: Collection[str], generation: int, identity: str) -> None:
    """Keep names, give out no number up to `generation` any more, and take an identity."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.executemany("INSERT OR IGNORE INTO kept VALUES (?)", [(name,) for name in kept])
        connection.execute("INSERT INTO past (id) SELECT id FROM identity")
        connection.execute("DELETE FROM past WHERE number <= (SELECT max(number) FROM past) - ?", (_PAST,))
        connection.execute("UPDATE identity SET id = ?, claimed = 1, closed = 0", (identity,))
        connection.execute("DELETE FROM leftovers")
        connection.execute("DELETE FROM sqlite_sequence WHERE name = 'snapshots'")
        connection.execute("INSERT INTO sqlite_sequence VALUES ('snapshots', ?)", (generation,))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def note_leftovers(connection: sqlite3.Connection, stored: frozenset[str]) -> None:
    """Write down which of the names on storage no record knows, as the last change of the database."""
    known = {str(row[0]) for row in connection.execute("SELECT id FROM snapshots")}
    kept = kept_of(connection)
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.executemany("INSERT INTO leftovers VALUES (?)", [(name,) for name in stored - known - kept])
        connection.execute("UPDATE identity SET closed = 1")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def kept_of(connection: sqlite3.Connection) -> frozenset[str]:
    """Return the names that are kept although no record knows them."""
    return frozenset(row[0] for row in connection.execute("SELECT name FROM kept"))


def last_id(connection: sqlite3.Connection) -> int:
    """Return the last id that was ever given to a layer."""
    last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'snapshots'").fetchone()
    return int(last[0]) if last else 0


def number_of(name: str) -> int:
    """Return the number that a layer's files have as their name, 0 for a name that no layer has."""
    return int(name) if name.isascii() and name.isdecimal() else 0
