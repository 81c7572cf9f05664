"""Tell whether a file system is read-only, and keep which databases wait until theirs is not.

SQLite has one code for a full disk and a read-only one, and a flag does not tell of every read-only file system: ext4
keeps its flag when it stops taking changes because of damage. So a file is made where it matters.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

_waiting: set[Path] = set()


def has_flag(directory: Path) -> bool:
    """Return whether the file system of a directory has the flag of a read-only one; False if it cannot be read."""
    try:
        return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def is_read_only(directory: Path) -> bool:
    """Return whether the file system of a directory takes no changes now. Blocking."""
    if has_flag(directory):
        return True
    probe = directory / f".probe-{os.getpid()}"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        probe.unlink()
    except OSError as error:
        return error.errno == errno.EROFS
    return False


def wait_for(database: Path) -> None:
    """Note that this process uses a copy of a database, because the file system of the database is read-only."""
    _waiting.add(database)


def give_up(database: Path) -> None:
    """Forget what `wait_for` noted."""
    _waiting.discard(database)


def waiting() -> list[Path]:
    """Return the databases of which this process uses copies."""
    return sorted(_waiting)


def some_can_be_written() -> bool:
    """Return whether the file system of a database that waits takes changes again. Blocking."""
    return any(not is_read_only(database.parent) for database in waiting())
