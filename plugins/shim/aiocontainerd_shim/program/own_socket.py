"""The file of the socket that a shim listens on.

The next shim of the same name listens at the same path, as soon as the daemon has been told that this one ends. So the
file goes before the answer to Shutdown, and what goes later is only removed if it is still this shim's.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress


class OwnSocket:
    """The file of one listening socket. Raises OSError if it is gone already."""

    def __init__(self, listener: socket.socket) -> None:
        self._path: str = listener.getsockname()
        self._file = _identity(self._path)

    def __repr__(self) -> str:
        return f"<OwnSocket {self._path}>"

    def remove(self) -> None:
        """Remove the file, unless it is gone or belongs to another shim by now."""
        with suppress(FileNotFoundError):
            if _identity(self._path) == self._file:
                os.unlink(self._path)


def _identity(path: str) -> tuple[int, int, int]:
    """Return what no other file has: the number alone may be used again."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_ctime_ns
