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
from aiocontainerd.index import backup, database, pages

NAMES = ("meta.db", "metadata.db")
"""File names of the databases that index data, in the directories of the plugins."""
_LOGS = ("-wal", "-shm")
_WITH_IDENTITY = 2
"""Versions of both kinds of databases that have an identity."""
_OURS = ("CREATE TABLE identity", "CREATE TABLE kept")


class Found(msgspec.Struct, frozen=True):
    """A database below a root: what is wrong with it ("" if nothing), what it keeps, the times of its copies.

    `former` is the time of the copy of the database that was there before, "" without one.
    """

    path: Path
    problem: str
    kept: int
    copies: tuple[str, ...]
    former: str = ""


def find(root: Path) -> list[Found]:
    """Return the databases in the directories of a root's plugins, and those of which only copies are left."""
    paths = {path for name in NAMES for path in root.glob(f"*/{name}")}
    paths |= {path.with_name(name) for name in NAMES for path in root.glob(f"*/{name}.backup-1")}
    return [_look_at(path) for path in sorted(paths)]


def restore(path: Path, *, empty: bool = False, former: bool = False) -> Path | None:
    """Put the newest copy of a database that can be read in its place, or nothing.

    `former` chooses the copy of the database that was there before this one. Return where the database was moved to,
    if there was one; its log is moved with it. Raise NotFound without a copy, OSError.
    """
    copy = None if empty else _chosen(path, former)
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
    moved = [log for log in _LOGS if _move(path.with_name(path.name + log), aside.with_name(aside.name + log))]
    if not _move(path, aside):
        aside = aside.with_name(aside.name + moved[0]) if moved else aside
    if copy is not None:
        _copy(copy, path)
    return aside if os.path.lexists(aside) else None


def _chosen(path: Path, former: bool) -> Path:
    copy = backup.newest(path)
    if former:
        copy = backup.former(path) if pages.is_sound(backup.former(path)) else None
    if copy is None:
        which = "of the database that was there before" if former else "that can be read"
        raise NotFound(f"no copy of {path} {which}; --empty begins an empty database, and keeps all data beside it")
    return copy


def _move(path: Path, target: Path) -> bool:
    """Rename whatever is at a path. Return whether there was something."""
    try:
        path.rename(target)
    except FileNotFoundError:
        return False
    return True


def release(path: Path) -> int:
    """Forget what a database keeps although no record knows it, and the copy of the database before it.

    The next start deletes what is forgotten. Return how much that was. Raise FailedPrecondition for a database that
    cannot be used.
    """
    try:
        with closing(_opened(path)) as db, db:
            if _has(db, "leftovers"):
                db.execute("INSERT OR IGNORE INTO leftovers SELECT * FROM kept")
            forgotten = db.execute("DELETE FROM kept").rowcount
    except sqlite3.Error as error:
        raise FailedPrecondition(f"{path} cannot be used: {error}") from error
    backup.former(path).unlink(missing_ok=True)
    return forgotten


def _opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)


def _look_at(path: Path) -> Found:
    problem, kept = "", 0
    try:
        database.refuse_foreign(path, "database")
        if not path.exists() or not path.stat().st_size:
            problem = "empty" if path.exists() else "missing"
        else:
            with closing(_opened(path)) as db:
                database.check(db, path, "database")
                if db.execute("PRAGMA user_version").fetchone()[0] >= _WITH_IDENTITY:
                    database.require_tables(db, path, "database", _OURS)
                kept = _kept(db)
    except (FailedPrecondition, sqlite3.Error) as error:
        problem = str(error)
    former = backup.former(path)
    return Found(
        path, problem, kept, tuple(map(_shown, backup.copies(path))), _shown(former) if former.is_file() else ""
    )


def _shown(copy: Path) -> str:
    return backup.time_of(copy) + ("" if pages.is_sound(copy) else " (damaged)")


def _kept(db: sqlite3.Connection) -> int:
    """Return the number of kept names; none in a database of an earlier release."""
    if not _has(db, "kept"):
        return 0
    return int(db.execute("SELECT count(*) FROM kept").fetchone()[0])


def _has(db: sqlite3.Connection, table: str) -> bool:
    return db.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (table,)).fetchone() is not None


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
