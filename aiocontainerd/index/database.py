"""Recognise a database that is not ours or is damaged, before anything is written, and say what an operator can do."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

from aiocontainerd.errors import FailedPrecondition, os_text
from aiocontainerd.index import backup, pages

_BOLT_MAGIC = 0xED0CDAED
_BOLT_MAGIC_OFFSET = 16
_KINDS = {stat.S_IFDIR: "directory", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}
_CREATED = re.compile(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+)")
_DAMAGES = ("malformed", "not a database", "disk I/O error", "corrupt")


class ForeignDatabaseError(FailedPrecondition):
    """Raised for a database that another program wrote: containerd's have the same names as ours."""


class DamagedDatabaseError(FailedPrecondition):
    """Raised for a database of ours that cannot be read. The text has the path, the cause and the remedy."""


def refuse_foreign(path: Path, what: str) -> None:
    """Raise ForeignDatabaseError for a file of containerd, DamagedDatabaseError for one that is no database.

    Only reads. A missing or empty file passes. `what` names the database in messages.
    """
    for file in (path, path.with_name(f"{path.name}-wal")):
        if wrong := _no_file(file):
            raise damaged(path, what, f"{'it' if file == path else f'its log {file.name}'} is {wrong}")
    try:
        start = _start_of(path)
    except OSError as error:
        raise damaged(path, what, f"it cannot be read: {os_text(error)}") from error
    if not start or start.startswith(pages.SQLITE_MAGIC):
        return
    if _is_bolt(start):
        raise ForeignDatabaseError(
            f"{what} {path} was written by another program, probably containerd; "
            "give this daemon a root of its own (--root)"
        )
    raise damaged(path, what, "it is not a database")


def check(connection: sqlite3.Connection, path: Path, what: str) -> None:
    """Raise DamagedDatabaseError if the pages of an open database do not fit together. Takes 3 ms a megabyte."""
    if fault := pages.fault(connection):
        raise damaged(path, what, fault)


def refuse_tables_of_others(connection: sqlite3.Connection, path: Path, what: str, version: int) -> None:
    """Raise ForeignDatabaseError for a database without our version that has tables: it is another program's."""
    if not version and _tables(connection):
        raise ForeignDatabaseError(
            f"{what} {path} was written by another program; give this daemon a root of its own (--root)"
        )


def require_tables(connection: sqlite3.Connection, path: Path, what: str, scripts: Iterable[str]) -> None:
    """Raise DamagedDatabaseError if a table is missing that `scripts` have made, or the identity."""
    wanted = {name for script in scripts for name in _CREATED.findall(script)}
    missing = sorted(wanted - _tables(connection))
    if missing:
        raise damaged(path, what, f"it has no table {missing[0]}")
    if connection.execute("SELECT count(*) FROM identity").fetchone()[0] != 1:
        raise damaged(path, what, "it has no identity")


def _tables(connection: sqlite3.Connection) -> set[str]:
    rows = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    return {row[0] for row in rows}


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether an error of SQLite means that the file is damaged, and not that it is busy or the disk is full."""
    return any(word in str(error) for word in _DAMAGES)


def damaged(path: Path, what: str, cause: str) -> DamagedDatabaseError:
    """Return the error for a damaged database, with the command that goes back to its newest copy."""
    import shlex  # a start imports nothing for what hardly ever happens

    copy, shown = backup.newest(path), shlex.quote(str(path))
    if copy is not None:
        remedy = f"aiocontainerd index restore {shown} (to the copy of {backup.time_of(copy)})"
    else:
        without = "no copy can be read" if backup.copies(path) else "there is no copy"
        remedy = f"aiocontainerd index restore --empty {shown} ({without}; it begins empty)"
    return DamagedDatabaseError(
        f"{what} {path} is damaged: {cause}. With the daemon stopped, run: {remedy}. "
        "Data that it then does not know is kept"
    )


def way_back(path: Path) -> str:
    """Return how to go back to the copy of the database that was here before this one, "" without one."""
    import shlex  # as above

    former = backup.former(path)
    if not pages.is_sound(former):
        return ""
    return (
        f"to go back to the copy of {backup.time_of(former)}, stop the daemon and run: "
        f"aiocontainerd index restore --former {shlex.quote(str(path))}"
    )


def _no_file(path: Path) -> str:
    """Return what is at a path instead of a file, "" for a file or nothing. Opening a fifo could last for ever."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return f"a link to {os.readlink(path)}, which is missing" if path.is_symlink() else ""
    except NotADirectoryError:
        return ""  # the root is no directory, which is told when it is made
    except OSError as error:
        return f"not accessible: {os_text(error)}"
    return "" if stat.S_ISREG(mode) else f"a {_KINDS.get(stat.S_IFMT(mode), 'device')}"


def _start_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096 + _BOLT_MAGIC_OFFSET + 4)
    except (FileNotFoundError, NotADirectoryError):
        return b""


def _is_bolt(start: bytes) -> bool:
    """Return whether one of bbolt's two meta pages is there; the first may be torn."""
    offsets = (_BOLT_MAGIC_OFFSET, 4096 + _BOLT_MAGIC_OFFSET)
    return any(
        len(start) >= offset + 4 and struct.unpack_from("<I", start, offset)[0] == _BOLT_MAGIC for offset in offsets
    )
