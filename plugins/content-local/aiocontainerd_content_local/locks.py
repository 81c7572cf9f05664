"""Lock refs: one holder each. Waiting is short, since clients that find a ref locked poll (facts/core 4)."""

from __future__ import annotations

import time

import anyio

from aiocontainerd import durations
from aiocontainerd.errors import Unavailable


class _Held:
    """A taken lock: since when, and how waiters hear of its end."""

    def __init__(self) -> None:
        self.since_ns = time.time_ns()
        self.taken_s = time.monotonic()
        self.released = anyio.Event()


class RefLocks:
    """Exclusive locks by ref, of one store in one process."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._held: dict[str, _Held] = {}

    def __repr__(self) -> str:
        return f"<RefLocks {sorted(self._held)}>"

    def __len__(self) -> int:
        return len(self._held)

    async def acquire(self, ref: str) -> None:
        """Take the lock of `ref`, waiting a moment for a holder that is about to let go. Raise Unavailable."""
        with anyio.move_on_after(self._wait_s):
            while (held := self._held.get(ref)) is not None:
                await held.released.wait()
        held = self._held.get(ref)
        if held is not None:
            raise Unavailable(_locked(ref, held))
        self._held[ref] = _Held()

    def release(self, ref: str) -> None:
        """Let go of the lock of `ref`."""
        self._held.pop(ref).released.set()


def _locked(ref: str, held: _Held) -> str:
    age = durations.render(round(time.monotonic() - held.taken_s, 9))
    seconds, nanos = divmod(held.since_ns, 1_000_000_000)
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    return f"ref {ref} locked for {age} (since {since}.{nanos:09d} +0000 UTC)"
