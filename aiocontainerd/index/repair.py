"""What an operator does to the databases of a root while no daemon runs: look at them, go back to a copy, let go."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import msgspec

from aiocontainerd.errors import FailedPrecondition, NotFound
from aiocontainerd.index import backup, database

NAMES = ("meta.db", "metadata.db")
"""File names of the databases that index data, in the directories of the plugins."""
_LOGS = ("-wal", "-shm")


class Found(msgspec.Struct, frozen=True):
    """A database below a root: what is wrong with it ("" if nothing), what it keeps, the times of its copies."""

    path: Path
    problem: str
    kept: int
    copies: tuple[str, ...]


def find(root: Path) -> list[Found]:
    """Return the databases in the directories of a root's plugins, and those of which only copies are left."""
    paths = {path for name in NAMES for path in root.glob(f"*/{name}")}
    paths |= {path.with_name(name) for name in NAMES for path in root.glob(f"*/{name}.backup-1")}
    return [_look_at(path) for path in sorted(paths)]


def restore(path: Path, *, empty: bool = False) -> Path | None:
    """Put the newest copy of a database in its place, or nothing. Return where the database was moved to, if it exists.

    Raise NotFound without a copy, OSError.
    """
    copies = backup.copies(path)
    if not copies and not empty:
        raise NotFound(f"no copy of {path}; --empty begins an empty database, and keeps all data beside it")
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}") if path.exists() else None
    for log in _LOGS:
        path.with_name(path.name + log).unlink(missing_ok=True)
    if aside is not None:
        path.replace(aside)
    if not empty:
        _copy(copies[0], path)
    return aside


def release(path: Path) -> int:
    """Forget what a database keeps although no record knows it: the next start deletes it. Return how much that was.

    Raise FailedPrecondition for a database that cannot be used.
    """
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True)) as db, db:
            return db.execute("DELETE FROM kept").rowcount
    except sqlite3.Error as error:
        raise FailedPrecondition(f"{path} cannot be used: {error}") from error


def _look_at(path: Path) -> Found:
    times = tuple(backup.time_of(copy) for copy in backup.copies(path))
    if not path.exists() or not path.stat().st_size:
        return Found(path, "empty" if path.exists() else "missing", 0, times)
    try:
        database.refuse_foreign(path, "database")
        with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True)) as db:
            database.check(db, path, "database")
            return Found(path, "", _kept(db), times)
    except (FailedPrecondition, sqlite3.Error) as error:
        return Found(path, str(error), 0, times)


def _kept(db: sqlite3.Connection) -> int:
    """Return the number of kept names; none in a database of an earlier release."""
    if db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'kept'").fetchone() is None:
        return 0
    return int(db.execute("SELECT count(*) FROM kept").fetchone()[0])


def _copy(source: Path, target: Path) -> None:
    fresh = target.with_name(f".{target.name}.restored")
    shutil.copyfile(source, fresh)
    fresh.chmod(0o600)
    descriptor = os.open(fresh, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fresh.replace(target)
