"""Limits of what a server holds of answers that clients do not read.

Each connection has a share. A call whose answer is expected to be big waits, before its answer is built, while its
connection or all connections together hold too much. How big the answers of a method are is learned from its last ones.
Small answers never wait, except on a connection that leaves thousands of them unread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)

SMALL_BYTES = 64 << 10
"""Answers up to this size do not wait for others."""
LIST_BYTES = 1 << 20
"""Expected size of a first answer that is a list."""
OBJECTS_FACTOR = 5
"""The objects that an answer is made of take so many times its bytes."""
CONNECTION_BYTES = 4 << 20
"""Big answers that are built for one connection, or that it leaves unread."""
UNREAD_BYTES = 24 << 20
"""Answers of any size that one connection may leave unread. It is more than the largest single one."""
TOTAL_BYTES = 32 << 20
"""Big answers that are built for all connections together, or that they leave unread."""
MUCH_BYTES = 16 << 20
"""After so much was held, memory is worth giving back."""
STALLED_S = 10.0
"""A connection that took nothing for so long is closed if others wait for what it holds."""
_FORGET = 0.9


class Outgoing:
    """The answers that one server holds."""

    def __init__(self, emptied: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        """Call `emptied` when little is held any more after much was."""
        self._emptied = emptied
        self._peak = 0
        self.clock = clock
        self.held = 0
        self.shares: set[Share] = set()
        self._sizes: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Outgoing {self.held} bytes of {len(self.shares)} connections>"

    def expected(self, path: str) -> int:
        """Return the memory that it takes to build a method's answer; 0 for a small one.

        `path` is `/package.Service/Method`. The answers of `List` and `Metrics` are lists.
        """
        size = self._sizes.get(path)
        if size is None:
            size = LIST_BYTES if path.rpartition("/")[2].startswith(("List", "Metrics")) else 0
        return size * OBJECTS_FACTOR if size > SMALL_BYTES else 0

    def learn(self, path: str, size: int) -> None:
        """Note the size of an answer. A big one is remembered for some dozen calls."""
        self._sizes[path] = max(size, int(self._sizes.get(path, 0) * _FORGET))

    def share(self, drop: Callable[[], None]) -> Share:
        """Return the share of a new connection, which `drop` closes."""
        share = Share(self, drop)
        self.shares.add(share)
        return share

    def is_full(self, expected: int) -> bool:
        """Return whether so much more is too much. One answer always fits."""
        return bool(self.held) and self.held + expected > TOTAL_BYTES

    def add(self, size: int) -> None:
        """Count bytes that are held, or no longer."""
        self.held += size
        if self.held > self._peak:
            self._peak = self.held
        elif self._peak > MUCH_BYTES and self.held < self._peak // 8:
            self._peak = self.held
            self._emptied()

    def freed(self, size: int) -> None:
        """Let those begin for whom there is room now, if all together held too much before."""
        if self.held + size + LIST_BYTES > TOTAL_BYTES:
            for share in list(self.shares):
                share.admit()

    def evict(self) -> None:
        """Close the connection that holds most of those that take nothing."""
        stalled = [one for one in self.shares if one.held and self.clock() - one.moved_at > STALLED_S]
        if stalled:
            worst = max(stalled, key=lambda one: one.held)
            log.warning("a client that read nothing for %d s is cut off: %d bytes wait for it", STALLED_S, worst.held)
            worst.drop()


class Share:
    """The answers that one connection holds."""

    def __init__(self, outgoing: Outgoing, drop: Callable[[], None]) -> None:
        self._outgoing = outgoing
        self.drop = drop
        self.held = 0
        self.moved_at = outgoing.clock()
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def __repr__(self) -> str:
        return f"<Share {self.held} bytes, {len(self._waiting)} wait>"

    def moved(self) -> None:
        """Note that the client took something."""
        self.moved_at = self._outgoing.clock()

    def close(self) -> None:
        """Forget the connection."""
        self._outgoing.shares.discard(self)

    @property
    def is_crowded(self) -> bool:
        """Return whether even a small answer has to wait."""
        return bool(self._waiting) or self.held >= UNREAD_BYTES

    async def room(self, expected: int) -> Answer:
        """Wait until an answer of `expected` bytes may be built; 0 means a small one."""
        if self._waiting or not self._fits(expected):
            await self._wait(expected)
        else:
            self.add(expected)
        return Answer(self, expected)

    def add(self, size: int) -> None:
        """Count bytes that are held, or no longer."""
        if size > 0 and not self.held:
            self.moved()
        self.held += size
        self._outgoing.add(size)
        if size < 0:
            self.admit()
            self._outgoing.freed(-size)

    def admit(self) -> None:
        """Let those begin that wait and fit now, in their order."""
        while self._waiting and self._fits(self._waiting[0][0]):
            expected, future = self._waiting.popleft()
            if not future.done():
                self.add(expected)
                future.set_result(None)

    def _fits(self, expected: int) -> bool:
        if not expected:
            return self.held < UNREAD_BYTES
        if self.held and self.held + expected > CONNECTION_BYTES:
            return False
        return not self._outgoing.is_full(expected)

    async def _wait(self, expected: int) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((expected, future))
        try:
            while not future.done():
                await asyncio.wait({future}, timeout=STALLED_S)
                if not future.done() and self._outgoing.is_full(expected):
                    self._outgoing.evict()
        except asyncio.CancelledError:
            if future.done():
                self.add(-expected)
            future.cancel()
            raise


class Answer:
    """The bytes that one call holds."""

    def __init__(self, share: Share, expected: int) -> None:
        self._share = share
        self._held = expected

    def is_of(self, size: int) -> None:
        """Count the true size in place of the expected one."""
        self._share.add(size - self._held)
        self._held = size

    def end(self) -> None:
        """Hold nothing any more."""
        self._share.add(-self._held)
        self._held = 0
