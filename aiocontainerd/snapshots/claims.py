"""Claims on keys. Calls about one key take turns; calls about different keys never wait for each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio


class Claim:
    """The keys that one call holds."""

    def __init__(self, held: dict[str, anyio.Event]) -> None:
        self._held = held
        self._taken: set[str] = set()

    async def take(self, key: str) -> None:
        """Wait until no other call holds `key`, then hold it."""
        while (busy := self._held.get(key)) is not None:
            await busy.wait()
        self._held[key] = anyio.Event()
        self._taken.add(key)

    def release(self, *keys: str) -> None:
        """Give up those of `keys` that are held."""
        for key in keys:
            if key in self._taken:
                self._taken.discard(key)
                self._held.pop(key).set()

    def release_all(self) -> None:
        """Give up every key."""
        self.release(*tuple(self._taken))


class Claims:
    """The keys that calls hold, and the parents from which new snapshots are being made."""

    def __init__(self) -> None:
        self._held: dict[str, anyio.Event] = {}
        self._pins: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Claims held={sorted(self._held)} pinned={sorted(self._pins)}>"

    @asynccontextmanager
    async def hold(self, *keys: str) -> AsyncIterator[Claim]:
        """Hold `keys` for the length of the block. Keys are taken in sorted order, so that calls cannot deadlock."""
        claim = Claim(self._held)
        try:
            for key in sorted(set(keys)):
                await claim.take(key)
            yield claim
        finally:
            claim.release_all()

    @contextmanager
    def pin(self, key: str) -> Iterator[None]:
        """Protect the snapshot `key` from removal while a child is made from it."""
        self._pins[key] += 1
        try:
            yield
        finally:
            self._pins[key] -= 1
            if not self._pins[key]:
                del self._pins[key]

    def is_pinned(self, key: str) -> bool:
        """Return True while a child of `key` is being made."""
        return key in self._pins
