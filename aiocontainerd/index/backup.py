"""Keep a few copies of a database beside it, to go back to when it is damaged or lost.

`meta.db.backup-1` is the newest copy, `meta.db.backup-2` the one before. A copy is whole or not there: it is written
under another name, synced, and renamed. It is made from one snapshot of the database while that is in use.

A database that was lost begins anew, and its copies would soon have pushed out those of the right one. So the newest
copy of a database that was here before is set apart as `meta.db.backup-former`, until an operator lets go of it.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from aiocontainerd.errors import os_text
from aiocontainerd.index import pages

log = logging.getLogger(__name__)

KEPT = 3
"""Copies that are kept, the newest of them."""
_ROOM = 3
"""A copy is made only where the disk has this many times its size free."""


def copies(path: Path) -> list[Path]:
    """Return the copies of a database that exist, the newest first."""
    named = [_copy(path, number) for number in range(1, KEPT + 1)]
    return [copy for copy in named if copy.is_file()]


def former(path: Path) -> Path:
    """Return where the newest copy of the database is that was here before this one."""
    return path.with_name(f"{path.name}.backup-former")


def newest(path: Path) -> Path | None:
    """Return the newest copy that can be read."""
    found = [copy for copy in [*copies(path), former(path)] if copy.is_file()]
    found.sort(key=lambda copy: copy.stat().st_mtime_ns, reverse=True)
    return next((copy for copy in found if pages.is_sound(copy)), None)


def set_apart(path: Path, identities: Collection[str]) -> None:
    """Keep the newest copy of a database that has none of `identities`, those of the database now.

    Of two such copies, that of the higher generation is kept. Raise OSError.
    """
    other = next((copy for copy in copies(path) if pages.is_sound(copy)), None)
    if other is None:
        return
    identity, generation = _standing(other)
    kept = former(path)
    if identity and identity not in identities and (not pages.is_sound(kept) or generation > _standing(kept)[1]):
        other.replace(kept)


def keep_former(connection: sqlite3.Connection, path: Path, what: str) -> None:
    """Set the copies of another database apart, for a database of ours that is open. What fails is logged."""
    rows = connection.execute("SELECT id FROM identity UNION SELECT id FROM past")
    try:
        set_apart(path, {row[0] for row in rows})
    except OSError as error:
        log.warning("a copy of the database before %s %s is not kept: %s", what, path, os_text(error))


def _standing(copy: Path) -> tuple[str, int]:
    """Return the identity and the generation of a copy, "" and 0 for one of an earlier release."""
    try:
        with closing(pages.read_only(copy)) as db:
            (identity,) = db.execute("SELECT id FROM identity").fetchone()
            (generation,) = db.execute("SELECT ifnull(max(seq), 0) FROM sqlite_sequence").fetchone()
            return str(identity), int(generation)
    except (sqlite3.Error, TypeError):
        return "", 0


def time_of(copy: Path) -> str:
    """Return when a copy was made, as UTC text."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(copy.stat().st_mtime))


def has_room(path: Path) -> bool:
    """Return whether the disk has room for another copy of a database."""
    found = os.statvfs(path.parent)
    return found.f_bfree * found.f_frsize >= _ROOM * path.stat().st_size


def is_due(path: Path, interval_s: float) -> bool:
    """Return whether the newest copy is older than the interval, or missing."""
    found = copies(path)
    return not found or time.time() - found[0].stat().st_mtime >= interval_s


def make(connection: sqlite3.Connection, path: Path) -> Path:
    """Make the newest copy of the database at `path`, which `connection` has open and no transaction in.

    The oldest copy beyond `KEPT` is replaced. Raise sqlite3.Error or OSError; the copies before are kept then.
    """
    fresh = path.with_name(f".{path.name}.backup")
    fresh.unlink(missing_ok=True)
    try:
        connection.execute("VACUUM INTO ?", (str(fresh),))
        fresh.chmod(0o600)
        _sync(fresh)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    for number in range(KEPT - 1, 0, -1):
        older = _copy(path, number)
        if older.exists():
            older.replace(_copy(path, number + 1))
    newest = _copy(path, 1)
    fresh.replace(newest)
    _sync(path.parent)
    return newest


def _copy(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.backup-{number}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
