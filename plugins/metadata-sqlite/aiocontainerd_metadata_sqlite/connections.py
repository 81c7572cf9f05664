"""Open the connections of the metadata database: the writer, which checks and migrates it, and readers."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from aiocontainerd.index import backup, database
from aiocontainerd.index.read_only import MemoryCopy, copied
from aiocontainerd.index.reserve import Reserve, with_room
from aiocontainerd_metadata_sqlite.schema import NAME, migrate

BUSY_TIMEOUT_S = 5.0
_CACHED_STATEMENTS = 256


class Opened:
    """A database that was opened: the connection of its writer, and where readers connect."""

    def __init__(self, path: Path, reserve: Reserve, *, sync: bool) -> None:
        """Open, check and migrate the database, or a copy of it where its file system is read-only.

        Raise FailedPrecondition for a database that cannot be used, ReadOnlyFileSystem for one that cannot be made;
        sqlite3.Error.
        """
        self.path = path
        self._sync = sync
        self.copy: MemoryCopy | None = copied(path, NAME)
        """What is read instead of a database on a read-only file system. No change of it lasts."""
        if self.copy is not None:
            try:
                self.writer = self._checked(self.copy.uri)
            except BaseException:
                self.copy.close()
                raise
            return
        self.writer = with_room(reserve, lambda: self._checked(path))
        backup.keep_former(self.writer, path, NAME)
        self._inode = path.stat().st_ino
        _sync_directory(path.parent)

    def __repr__(self) -> str:
        return f"<Opened {self.copy or self.path}>"

    def reader(self) -> sqlite3.Connection:
        """Connect once more. Raise FileNotFoundError if the file is no longer the one that the writer has open."""
        if self.copy is not None:
            return connect(self.copy.uri, sync=self._sync)
        if self.path.stat().st_ino != self._inode:
            raise FileNotFoundError(f"{self.path} is another file")
        return connect(self.path, sync=self._sync)

    def close(self) -> None:
        """Close the writer."""
        self.writer.close()
        if self.copy is not None:
            self.copy.close()

    def _checked(self, where: Path | str) -> sqlite3.Connection:
        connection = connect(where, sync=self._sync)
        try:
            database.check(connection, self.path, NAME)
            migrate(connection, self.path)
        except BaseException:
            connection.close()
            raise
        return connection


def connect(where: Path | str, *, sync: bool) -> sqlite3.Connection:
    """Connect to a database by its path, or by the URI of a copy."""
    connection = sqlite3.connect(
        where,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=_CACHED_STATEMENTS,
        uri=isinstance(where, str),
    )
    for pragma in (
        "journal_mode = WAL",
        f"synchronous = {'FULL' if sync else 'OFF'}",
        "foreign_keys = ON",
        "temp_store = MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _sync_directory(directory: Path) -> None:
    """Sync a directory, which makes the names of a new database and its log durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
