"""Read a database on a read-only file system, from a copy in memory.

SQLite cannot open a database with a log there as others do: it would have to make files beside it, and to lock it.
Nobody else can change it either. So it is read once, without locks, into memory. Connections of this process share the
copy, which may be changed, as by a migration. It ends with its last connection, so nothing is left anywhere.
"""

from __future__ import annotations

import secrets
import sqlite3
from contextlib import closing
from pathlib import Path

from aiocontainerd.errors import ReadOnlyFileSystem
from aiocontainerd.index import database
from aiocontainerd.sys.read_only import give_up, is_read_only, wait_for


class MemoryCopy:
    """A copy of the database at `path`. Connect to it with `uri`. `what` names the database in messages."""

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self.uri = f"file:/{secrets.token_hex(16)}?vfs=memdb"
        self._what = what
        self._keeper = sqlite3.connect(self.uri, uri=True, isolation_level=None, check_same_thread=False)
        try:
            with closing(_source(path)) as source:
                database.check(source, path, what)
                source.execute("VACUUM INTO ?", (self.uri,))
        except BaseException:
            self._keeper.close()
            raise
        wait_for(path)

    def __repr__(self) -> str:
        return f"<MemoryCopy of {self.path}>"

    def refusal(self) -> ReadOnlyFileSystem:
        """Return the error of every change."""
        return refusal(self.path, self._what)

    def close(self) -> None:
        """Let go of the copy. May be called twice."""
        give_up(self.path)
        self._keeper.close()


def copied(path: Path, what: str) -> MemoryCopy | None:
    """Return a copy of a database whose file system is read-only, None for another one.

    Raise ReadOnlyFileSystem if there is no database, which cannot be made now; DamagedDatabaseError; sqlite3.Error.
    """
    if not is_read_only(path.parent):
        return None
    if not path.exists() or not path.stat().st_size:
        raise refusal(path, what)
    return MemoryCopy(path, what)


def refusal(path: Path, what: str) -> ReadOnlyFileSystem:
    """Return the error for a change of a database. `what` names it in messages."""
    return ReadOnlyFileSystem(f"{what} {path}: {ReadOnlyFileSystem.text}")


def read_only(path: Path, what: str) -> ReadOnlyFileSystem | None:
    """Return the error to answer with if the file system of a database became read-only; None if a file can be made.

    Asked after a write that failed: SQLite has one code for both. `what` names the database.
    """
    return refusal(path, what) if is_read_only(path.parent) else None


def _source(path: Path) -> sqlite3.Connection:
    """Open a database for reading without making or locking a file."""
    log = path.with_name(f"{path.name}-wal")
    options = "mode=ro&vfs=unix-none" if log.exists() and log.stat().st_size else "immutable=1"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True, isolation_level=None)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # so the index of the log is in memory
    return connection
