"""Room on a disk that is kept for deleting, so that a full disk can be freed.

A database needs room to delete records, too: in its log, and in its file when the log is copied there. While it is
open, its log has blocks beyond its end that nobody else gets. `meta.db.reserve` is a file that is emptied when the disk
is full, so that the log can be copied into the database and begin anew. It is filled again when the database is closed,
or when there is room. Until then only deletions pass.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_PART_OF_DISK = 32
"""The reserve is at most this part of the disk, so that a tiny one is not used up by it."""
_KEEP_SIZE = 1
_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_FULL_CODES = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)
_OPENING_CODES = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)


class Reserve:
    """The reserve of one database: `size_bytes`, less on a tiny disk."""

    def __init__(self, database: Path, size_bytes: int) -> None:
        self._database = database
        self.path = database.with_name(f"{database.name}.reserve")
        self._size_bytes = size_bytes

    def __repr__(self) -> str:
        return f"<Reserve {self.path}>"

    def fill(self) -> bool:
        """Take the room on the disk. Return False if there is not enough, or the disk is read-only."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            return _refused(error)
        try:
            wanted = self._wanted(descriptor)
            if os.fstat(descriptor).st_size < wanted:
                os.posix_fallocate(descriptor, 0, wanted)
            return True
        except OSError as error:
            os.ftruncate(descriptor, 0)
            return _refused(error)
        finally:
            os.close(descriptor)

    def release(self) -> bool:
        """Give the room back to the disk. Return whether there was any."""
        try:
            held = self.path.stat().st_size > 0
            os.truncate(self.path, 0)
            return held
        except OSError:
            return False

    def hold_log(self) -> bool:
        """Give the log of the open database blocks beyond its end. Return False where that is not possible."""
        try:
            descriptor = os.open(f"{self._database}-wal", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return _hold(descriptor, self._wanted(descriptor) // 2)
        finally:
            os.close(descriptor)

    def has_room(self) -> bool:
        """Return whether the disk has room for more than the reserve."""
        disk = os.statvfs(self.path.parent)
        return disk.f_bfree * disk.f_frsize > 2 * self._size_bytes

    def _wanted(self, descriptor: int) -> int:
        disk = os.fstatvfs(descriptor)
        return min(self._size_bytes, disk.f_blocks * disk.f_frsize // _PART_OF_DISK)


def _hold(descriptor: int, size_bytes: int) -> bool:
    """Give an open file blocks beyond its end; its size stays. Return whether the file system did."""
    libc = ctypes.CDLL(None, use_errno=True)
    return not libc.fallocate(descriptor, _KEEP_SIZE, ctypes.c_long(0), ctypes.c_long(size_bytes))


def is_full(error: BaseException) -> bool:
    """Return whether an error means that the disk is full."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) in _FULL_CODES
    return isinstance(error, OSError) and error.errno in _FULL_ERRNOS


def with_room(reserve: Reserve, step: Callable[[], T]) -> T:
    """Do a step of opening a database, which makes files. On a full disk, do it again with the room of the reserve."""
    try:
        return step()
    except (sqlite3.OperationalError, OSError) as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if not (is_full(error) or code in _OPENING_CODES) or not reserve.release():
            raise
    return step()


def _refused(error: OSError) -> bool:
    """Return False for a disk that is full or read-only; raise any other error."""
    if error.errno in (*_FULL_ERRNOS, errno.EROFS):
        return False
    raise error
