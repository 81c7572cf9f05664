"""The mark that an index leaves beside its data: who it is, and how far it got.

An index that is lost or put back from a copy cannot tell by itself that the data beside it is newer than it is. The
mark can. It is a file of one line that lies with the data:

    aiocontainerd index 5f0c9d... generation 00000000000000001842

The generation is a number of the index that only grows, such as the last row id that was ever given. It is written
after each commit that raises it, before the commit is answered, and without a sync. So it survives a kill of the
daemon. After a power failure it may be behind the index, never ahead of it.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import msgspec

_LINE = "aiocontainerd index {} generation {:020d}\n"
_FORM = re.compile(r"aiocontainerd index ([0-9a-f]{32}) generation ([0-9]{20})\n")


_LINE_DIGITS = 16


class Mark(msgspec.Struct, frozen=True):
    """Identity of an index, 32 hex digits, and its generation.

    An index takes a new identity each time it is opened. The first half stays: it tells an older index from another.
    """

    identity: str
    generation: int


def renewal(identity: str) -> str:
    """Return the next identity of an index."""
    return identity[:_LINE_DIGITS] + os.urandom(16).hex()[_LINE_DIGITS:]


def is_related(one: str, other: str) -> bool:
    """Return whether two identities are those of one index, or of two that were one."""
    return one[:_LINE_DIGITS] == other[:_LINE_DIGITS]


class MarkFile:
    """The mark at a path. The generation never goes back. May be used from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark: Mark | None = None
        self._fd = -1
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<MarkFile {self.path} {self._mark}>"

    @property
    def generation(self) -> int:
        """The generation of the file that is open, 0 without one."""
        return self._mark.generation if self._mark is not None else 0

    def read(self) -> Mark | None:
        """Return what the file says, None if it is missing or says nothing. Raise OSError if it cannot be read."""
        try:
            found = _FORM.fullmatch(self.path.read_text(errors="replace"))
        except FileNotFoundError:
            return None
        return Mark(found[1], int(found[2])) if found else None

    def replace(self, mark: Mark) -> None:
        """Write a mark of any identity and generation, durably, and keep the file open. Raise OSError."""
        fresh = self.path.with_name(f".{self.path.name}.new")
        with self._lock:
            self._close()
            self._fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            os.pwrite(self._fd, _line(mark), 0)
            os.fsync(self._fd)
            fresh.replace(self.path)
            _sync_directory(self.path.parent)
            self._mark = mark

    def open(self) -> None:
        """Keep the file open for `advance`. Raise OSError; FileNotFoundError for a file that says nothing."""
        found = self.read()
        if found is None:
            raise FileNotFoundError(f"{self.path} is no mark")
        with self._lock:
            self._close()
            self._fd, self._mark = os.open(self.path, os.O_RDWR | os.O_CLOEXEC), found

    def advance(self, generation: int) -> None:
        """Note a higher generation in the file that is open. A lower one is ignored. Raise OSError."""
        with self._lock:
            if self._mark is None or generation <= self._mark.generation:
                return
            mark = Mark(self._mark.identity, generation)
            os.pwrite(self._fd, _line(mark), 0)
            self._mark = mark

    def close(self) -> None:
        """Sync and close the file. May be called twice."""
        with self._lock:
            if self._fd >= 0:
                os.fsync(self._fd)
            self._close()
            self._mark = None

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _line(mark: Mark) -> bytes:
    return _LINE.format(mark.identity, mark.generation).encode()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
