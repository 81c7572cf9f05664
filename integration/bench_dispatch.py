"""What a guarded call costs: a method that does nothing, called as it is and through its guard, on uvloop.

Processor time, the best of several rounds: what other programs of the machine do is left out as far as can be.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import anyio

from aiocontainerd import kinds
from aiocontainerd.guard.dispatcher import Dispatcher
from aiocontainerd.guard.health import PluginHealth

CALLS, ROUNDS = 5000, 7


class Nothing:
    """A snapshotter whose `stat` does nothing."""

    async def stat(self, key: str) -> str:
        return key


def overhead_us() -> float:
    """Microseconds that a guarded call takes longer than a bare one."""
    return anyio.run(_measure, backend_options={"use_uvloop": True})


async def _measure() -> float:
    bare = Nothing()
    guarded = Dispatcher(lambda _key: 10.0).guard(PluginHealth("bench"), kinds.SNAPSHOTTER, bare)
    return await _best_us(guarded.stat) - await _best_us(bare.stat)


async def _best_us(call: Callable[[str], Awaitable[str]]) -> float:
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(CALLS):
            await call("key")
        rounds.append((time.process_time() - began) / CALLS * 1e6)
    return min(rounds)
