"""The descriptors that a shim keeps while it rests.

Records name them by their place in the list. Each comes with the poll mask that wakes the shim: `NEVER` for one that is
only held, `HANG_UP` for one of which only the hang-up counts.
"""

from __future__ import annotations

import select

NEVER = -1
HANG_UP = 0
READABLE = select.POLLIN


class Descriptors:
    """The descriptors of a hand-over, in the order of their places."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self.masks: list[int] = []

    def put(self, fd: int, mask: int = NEVER) -> int:
        """Add one; returns its place."""
        self.fds.append(fd)
        self.masks.append(mask)
        return len(self.fds) - 1
