"""Run one guarded stream: the plugin's iterator runs in one task, ahead of its reader, with a deadline for each item.

The task is a `Call` without a deadline of its own. While the reader waits for an item, a timer runs (`_Patience`); when
it ends before an item came, the call is cut off like any other (`call`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from inspect import iscoroutine
from typing import Any

from aiocontainerd.errors import Unknown
from aiocontainerd.guard.call import Call
from aiocontainerd.guard.clock import running
from aiocontainerd.guard.health import OPENS_AFTER, MethodRecord

AHEAD = 64
"""How many items the plugin may be ahead of the reader."""
_SOONEST_S = 0.01

Source = Callable[..., AsyncIterator[Any]]


class _Flow:
    """Items on their way from the plugin's iterator, which runs in `fill`, to the reader."""

    def __init__(self) -> None:
        self.items: deque[Any] = deque()
        self.arrived, self.room = asyncio.Event(), asyncio.Event()

    async def fill(self, record: MethodRecord, source: Source, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        iterator = _iterator(record, source(*args, **kwargs))
        try:
            async for item in iterator:
                self.items.append(item)
                self.arrived.set()
                while len(self.items) >= AHEAD:
                    self.room.clear()
                    await self.room.wait()
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()


async def guarded_stream(
    record: MethodRecord, source: Source, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> AsyncIterator[Any]:
    """Yield the items of a plugin's stream. Raises what the plugin raises, DeadlineExceeded, Unavailable."""
    if record.failures >= OPENS_AFTER:
        record.admit()
    flow = _Flow()
    call = Call(record, None, flow.fill, (record, source, args, kwargs), {})
    call.waiter.add_done_callback(lambda _waiter: flow.arrived.set())
    try:
        while flow.items or not call.waiter.done():
            while flow.items:
                yield flow.items.popleft()
                flow.room.set()
            if not call.waiter.done():
                await _arrival(flow, call, record.limit_s)
        call.waiter.result()
    finally:
        await call.leave()
        del call  # an error keeps this frame, and the call keeps the error


async def _arrival(flow: _Flow, call: Call, limit_s: float) -> None:
    flow.arrived.clear()
    if flow.items or call.waiter.done():
        return
    patience = _Patience(call, limit_s) if limit_s else None
    reader = running.get()
    if reader is not None:
        reader.stop()
    try:
        await flow.arrived.wait()
    finally:
        if reader is not None:
            reader.go_on()
        if patience is not None:
            patience.end()


class _Patience:
    """The deadline of one item. Time in which the plugin waits for other plugins does not count."""

    def __init__(self, call: Call, limit_s: float) -> None:
        self._call = call
        self._until = time.monotonic() - call.clock.lent_s + limit_s
        self._timer = call.loop.call_later(limit_s, self._check)

    def _check(self) -> None:
        left_s = self._until - (time.monotonic() - self._call.clock.lent_s)
        if left_s > 0:
            self._timer = self._call.loop.call_later(max(left_s, _SOONEST_S), self._check)
        else:
            self._call.expire()

    def end(self) -> None:
        self._timer.cancel()


def _iterator(record: MethodRecord, given: Any) -> AsyncIterator[Any]:
    if hasattr(given, "__aiter__"):
        iterator: AsyncIterator[Any] = given
        return iterator
    if iscoroutine(given):
        given.close()
    raise Unknown(
        f"plugin {record.plugin.uri}: {record.method} gave {type(given).__name__}, which is no asynchronous iterator; "
        f"write it with async def and yield"
    )
