"""A database on a read-only file system is read from a copy, whether or not it has a log; nothing is written there."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from aiocontainerd.errors import ReadOnlyFileSystem, to_status
from aiocontainerd.index.database import DamagedDatabaseError
from aiocontainerd.index.read_only import MemoryCopy, copied, read_only
from aiocontainerd.sys import read_only as file_systems
from aiocontainerd.testing.disks import MemoryDisk

WHAT = "test database"
pytestmark = pytest.mark.root


def filled(path: Path, *, killed: bool) -> None:
    """Make a database in a process that ends in order, or as if it was killed."""
    pid = os.fork()
    if not pid:
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE things (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL) STRICT")
        db.execute("PRAGMA user_version = 7")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.executemany("INSERT INTO things (name) VALUES (?)", [(f"n{number}",) for number in range(500)])
        if not killed:
            db.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def copy_of(path: Path) -> MemoryCopy:
    copy = copied(path, WHAT)
    assert copy is not None
    return copy


def connected(copy: MemoryCopy) -> sqlite3.Connection:
    return sqlite3.connect(copy.uri, uri=True, isolation_level=None)


@pytest.mark.parametrize("killed", [True, False])
def test_all_that_was_committed_is_in_the_copy(disk: MemoryDisk, killed: bool) -> None:
    path = disk.directory / "a b?#%.db"
    filled(path, killed=killed)
    assert path.with_name(f"{path.name}-wal").exists() is killed
    before = disk.names()
    disk.remount("ro")
    copy = copy_of(path)
    with closing(connected(copy)) as one, closing(connected(copy)) as other:
        assert one.execute("SELECT count(*) FROM things").fetchone() == (500,)
        assert one.execute("PRAGMA user_version").fetchone() == (7,)
        one.execute("INSERT INTO things (name) VALUES ('new')")
        assert other.execute("SELECT max(id) FROM things").fetchone() == (501,)
    assert file_systems.waiting() == [path]
    copy.close()
    copy.close()
    assert file_systems.waiting() == []
    assert disk.names() == before
    with closing(connected(copy)) as gone:
        assert gone.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)


def test_a_database_that_can_be_written_is_not_copied(disk: MemoryDisk) -> None:
    path = disk.directory / "m.db"
    filled(path, killed=True)
    assert copied(path, WHAT) is None
    assert read_only(path, WHAT) is None


def test_a_change_is_refused_with_path_and_cause(disk: MemoryDisk) -> None:
    path = disk.directory / "m.db"
    disk.remount("ro")
    refused = read_only(path, WHAT)
    assert refused is not None
    assert to_status(refused) == (9, f"test database {path}: read-only file system")
    with pytest.raises(ReadOnlyFileSystem, match=f"test database {path}: read-only file system"):
        copied(path, WHAT)


def test_a_damaged_database_is_told_as_ever(disk: MemoryDisk) -> None:
    path = disk.directory / "m.db"
    filled(path, killed=False)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    disk.remount("ro")
    with pytest.raises(DamagedDatabaseError, match="is damaged"):
        copied(path, WHAT)
    assert file_systems.waiting() == []
