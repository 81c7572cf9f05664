"""Keep a few copies of a database beside it, to go back to when it is damaged or lost.

`meta.db.backup-1` is the newest copy, `meta.db.backup-2` the one before. A copy is whole or not there: it is written
under another name, synced, and renamed. It is made from one snapshot of the database while that is in use.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

KEPT = 3
"""Copies that are kept, the newest of them."""
_ROOM = 3
"""A copy is made only where the disk has this many times its size free."""


def copies(path: Path) -> list[Path]:
    """Return the copies of a database that exist, the newest first."""
    named = [_copy(path, number) for number in range(1, KEPT + 1)]
    return [copy for copy in named if copy.is_file()]


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
