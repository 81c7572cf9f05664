"""The descriptors that a shim keeps while it rests, and what wakes it.

Each descriptor has a poll mask: `NEVER` if it is only held, `HANG_UP` if only the hang-up wakes the shim, `READABLE` if
bytes do. `REQUESTS` is for connections: bytes wake the shim, but an end without bytes does not. When a daemon dies, all
of its shims would wake for nothing at the moment when the next daemon starts.
"""

from __future__ import annotations

import select

NEVER = -1
HANG_UP = 0
READABLE = select.POLLIN
REQUESTS = select.POLLIN | select.POLLRDHUP


class Descriptors:
    """The descriptors of a hand-over. Records name them by their places in `fds`."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self.masks: list[int] = []

    def put(self, fd: int, mask: int = NEVER) -> int:
        """Add a descriptor and return its place."""
        self.fds.append(fd)
        self.masks.append(mask)
        return len(self.fds) - 1
