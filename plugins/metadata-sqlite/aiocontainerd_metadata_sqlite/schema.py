"""Create the tables of the metadata database, and migrate older versions of them.

Everything that has a name in a namespace is a row of `resources`: its type is `content`, `ingests`, `images`,
`containers`, `sandboxes`, `leases` or `snapshots/<snapshotter>`, as in the API of leases. Ids and numbers from
`sequences` are never used twice, so a garbage collector may hold on to them. `refs` are the edges of its graph; they
name their target, which need not exist yet. Times are nanoseconds since 1970.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from aiocontainerd.errors import FailedPrecondition
from aiocontainerd.index import database

NAME = "metadata database"
_FIRST = """
CREATE TABLE namespaces (name TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE namespace_labels (
    namespace TEXT NOT NULL REFERENCES namespaces ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (namespace, key)
) STRICT, WITHOUT ROWID;

-- rooted: is kept for its own sake while expires_ns, if set, lies in the future. flat: a lease that keeps what it
-- holds without following labels. used_at_ns: what conditional references to a snapshot look at.
CREATE TABLE resources (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT NOT NULL REFERENCES namespaces ON DELETE CASCADE,
    type TEXT NOT NULL,
    key TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL,
    rooted INTEGER NOT NULL,
    flat INTEGER NOT NULL,
    expires_ns INTEGER,
    used_at_ns INTEGER,
    UNIQUE (namespace, type, key)
) STRICT;
CREATE INDEX roots ON resources (expires_ns) WHERE rooted;
CREATE INDEX blobs_by_digest ON resources (key) WHERE type = 'content';
CREATE TABLE labels (
    resource INTEGER NOT NULL REFERENCES resources ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (resource, key)
) STRICT, WITHOUT ROWID;

-- kind: references.Kind. The ages bound a conditional reference, and nothing else.
CREATE TABLE refs (
    source INTEGER NOT NULL REFERENCES resources ON DELETE CASCADE,
    kind INTEGER NOT NULL,
    namespace TEXT NOT NULL,
    type TEXT NOT NULL,
    key TEXT NOT NULL,
    younger_than_ns INTEGER NOT NULL,
    older_than_ns INTEGER NOT NULL,
    PRIMARY KEY (source, kind, type, key, younger_than_ns, older_than_ns)
) STRICT, WITHOUT ROWID;
CREATE INDEX refs_by_target ON refs (namespace, type, key, kind);

CREATE TABLE containers (
    id INTEGER PRIMARY KEY REFERENCES resources ON DELETE CASCADE,
    image TEXT NOT NULL,
    runtime_name TEXT NOT NULL,
    runtime_options_url TEXT,
    runtime_options BLOB,
    spec_url TEXT,
    spec BLOB,
    snapshotter TEXT NOT NULL,
    snapshot_key TEXT NOT NULL,
    sandbox TEXT NOT NULL
) STRICT;
CREATE TABLE container_extensions (
    container INTEGER NOT NULL REFERENCES containers ON DELETE CASCADE,
    key TEXT NOT NULL,
    url TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (container, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE images (
    id INTEGER PRIMARY KEY REFERENCES resources ON DELETE CASCADE,
    media_type TEXT NOT NULL,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    annotations BLOB NOT NULL
) STRICT;
CREATE TABLE content (
    id INTEGER PRIMARY KEY REFERENCES resources ON DELETE CASCADE,
    size INTEGER NOT NULL
) STRICT;
CREATE TABLE ingests (
    id INTEGER PRIMARY KEY REFERENCES resources ON DELETE CASCADE,
    backend_ref TEXT NOT NULL UNIQUE
) STRICT;
CREATE TABLE snapshots (
    id INTEGER PRIMARY KEY REFERENCES resources ON DELETE CASCADE,
    snapshotter TEXT NOT NULL,
    backend_key TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    parent TEXT NOT NULL
) STRICT;
CREATE INDEX snapshots_by_backend ON snapshots (snapshotter, sequence);

CREATE TABLE sequences (name TEXT PRIMARY KEY, reserved INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""

_SECOND = """
-- id: who this database is, for the marks beside the data (aiocontainerd/index). upgraded: it was begun before there
-- were marks. owned: backends that it has claimed. kept: objects of backends that it does not know and must not delete.
CREATE TABLE identity (id TEXT NOT NULL, upgraded INTEGER NOT NULL) STRICT;
INSERT INTO identity SELECT lower(hex(randomblob(16))), EXISTS (SELECT 1 FROM sqlite_sequence);
CREATE TABLE owned (type TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE kept (
    type TEXT NOT NULL,
    key TEXT NOT NULL,
    PRIMARY KEY (type, key)
) STRICT, WITHOUT ROWID;
"""

_THIRD = """
-- past: the identities that the database had, the newest last; it takes a new one each time it is opened. closed: the
-- backend was listed when the database was closed last, and then had `leftovers` that no record knew.
CREATE TABLE IF NOT EXISTS past (number INTEGER PRIMARY KEY, id TEXT NOT NULL) STRICT;
ALTER TABLE owned ADD COLUMN closed INTEGER NOT NULL DEFAULT 0;
CREATE TABLE IF NOT EXISTS leftovers (
    type TEXT NOT NULL,
    key TEXT NOT NULL,
    PRIMARY KEY (type, key)
) STRICT, WITHOUT ROWID;
"""

MIGRATIONS: tuple[str, ...] = (_FIRST, _SECOND, _THIRD)
"""Script n migrates version n to n + 1. Only append to this: databases of every version exist."""

VERSION = len(MIGRATIONS)


def migrate(connection: sqlite3.Connection, path: Path) -> int:
    """Bring the database to `VERSION` in one transaction and return the version it had.

    Raise FailedPrecondition for a database of a newer release or another program, and nothing is changed then; also for
    one that lacks tables.
    """
    found = version(connection)
    database.refuse_tables_of_others(connection, path, NAME, found)
    if found > VERSION:
        raise FailedPrecondition(
            f"metadata database {path} has version {found}, this release knows versions up to {VERSION}: "
            "run the release that wrote it, or a newer one"
        )
    if found < VERSION:
        steps = "\n".join(MIGRATIONS[found:])
        try:
            connection.executescript(f"BEGIN IMMEDIATE; {steps}; PRAGMA user_version = {VERSION}; COMMIT;")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    database.require_tables(connection, path, NAME, MIGRATIONS)
    return found


def version(connection: sqlite3.Connection) -> int:
    """Return the version of an open database; 0 for an empty one."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
