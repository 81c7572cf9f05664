"""Recognise a database that is not ours or is damaged, before anything is written, and say what an operator can do."""

from __future__ import annotations

import re
import sqlite3
import struct
from pathlib import Path

from aiocontainerd.errors import FailedPrecondition
from aiocontainerd.index import backup

_SQLITE_MAGIC = b"SQLite format 3\0"
_BOLT_MAGIC = 0xED0CDAED
_BOLT_MAGIC_OFFSET = 16
_OF_A_VALUE = re.compile(r"(NULL|non-\w+|\w+) value in ")
"""Complaints about single values come after those about pages. SQLite before 3.41 makes them of sound STRICT tables."""
_DAMAGES = ("malformed", "not a database", "disk I/O error", "corrupt")


class ForeignDatabaseError(FailedPrecondition):
    """Raised for a database that another program wrote: containerd's have the same names as ours."""


class DamagedDatabaseError(FailedPrecondition):
    """Raised for a database of ours that cannot be read. The text has the path, the cause and the remedy."""


def refuse_foreign(path: Path, what: str) -> None:
    """Raise ForeignDatabaseError for a file of containerd, DamagedDatabaseError for one that is no database.

    Only reads. A missing or empty file passes. `what` names the database in messages.
    """
    start = _start_of(path)
    if not start or start.startswith(_SQLITE_MAGIC):
        return
    if _is_bolt(start):
        raise ForeignDatabaseError(
            f"{what} {path} was written by another program, probably containerd; "
            "give this daemon a root of its own (--root)"
        )
    raise damaged(path, what, "it is not a database")


def check(connection: sqlite3.Connection, path: Path, what: str) -> None:
    """Raise DamagedDatabaseError if the pages of an open database do not fit together. Takes 3 ms a megabyte."""
    try:
        found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as error:
        raise damaged(path, what, str(error)) from error
    if found != "ok" and not _OF_A_VALUE.match(found):
        raise damaged(path, what, " ".join(found.split()))


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether an error of SQLite means that the file is damaged, and not that it is busy or the disk is full."""
    return any(word in str(error) for word in _DAMAGES)


def damaged(path: Path, what: str, cause: str) -> DamagedDatabaseError:
    """Return the error for a damaged database, with the command that goes back to its newest copy."""
    import shlex  # a start imports nothing for what hardly ever happens

    copies, shown = backup.copies(path), shlex.quote(str(path))
    if copies:
        remedy = f"aiocontainerd index restore {shown} (to the copy of {backup.time_of(copies[0])})"
    else:
        remedy = f"aiocontainerd index restore --empty {shown} (there is no copy; it begins empty)"
    return DamagedDatabaseError(
        f"{what} {path} is damaged: {cause}. With the daemon stopped, run: {remedy}. "
        "Data that it then does not know is kept"
    )


def _start_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096 + _BOLT_MAGIC_OFFSET + 4)
    except FileNotFoundError:
        return b""


def _is_bolt(start: bytes) -> bool:
    """Return whether one of bbolt's two meta pages is there; the first may be torn."""
    offsets = (_BOLT_MAGIC_OFFSET, 4096 + _BOLT_MAGIC_OFFSET)
    return any(
        len(start) >= offset + 4 and struct.unpack_from("<I", start, offset)[0] == _BOLT_MAGIC for offset in offsets
    )
