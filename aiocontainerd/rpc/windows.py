"""The turns of calls whose answers wait until the client takes more (flow control, RFC 9113, 5.2).

A call waits for its own window, or with others for that of the connection. When that opens, as many calls go on as it
has room for, the longest waiting first. A call that had its turn and has more to send waits behind the others.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from aiocontainerd.rpc.http2 import Http2Connection, Stream

WOKEN_AT_ONCE = 64
"""Calls that go on in one step of the loop. Those that only ask whether the client takes anything use no room."""


class _Waiter(NamedTuple):
    future: asyncio.Future[None]
    size: int


class WindowTurns:
    """The waiting calls of one connection. `is_writable` says whether its socket takes more."""

    def __init__(self, http2: Http2Connection, is_writable: Callable[[], bool]) -> None:
        self._http2 = http2
        self._is_writable = is_writable
        self._shut: dict[Stream, _Waiter] = {}
        self._turns: OrderedDict[Stream, _Waiter] = OrderedDict()
        self._planned = False
        self.woken = 0

    def __repr__(self) -> str:
        return f"<WindowTurns {len(self._turns)} wait for the connection, {len(self._shut)} for their own window>"

    async def wait(self, stream: Stream, size: int) -> None:
        """Wait until the client may take up to `size` bytes more on a stream; 0 if they are not known yet."""
        waiter = _Waiter(asyncio.get_running_loop().create_future(), size)
        place = self._turns if self._http2.window_of(stream) > 0 else self._shut
        place[stream] = waiter
        try:
            await waiter.future
        finally:
            for one in (self._turns, self._shut):
                if one.get(stream) is waiter:
                    del one[stream]

    def opened(self, stream: Stream | None) -> None:
        """Let calls go on after the window of a stream opened, or with None that of the connection."""
        if stream is not None:
            self._take_turn(stream)
        self.go_on()

    def changed(self) -> None:
        """Let calls go on after the windows of all streams changed."""
        for stream in list(self._shut):
            self._take_turn(stream)
        self.go_on()

    def go_on(self) -> None:
        """Let as many calls go on as there is room for."""
        if self._planned or not self._turns or not self._is_writable():
            return
        room, count = self._http2.send_window, 0
        while self._turns and room > 0 and count < WOKEN_AT_ONCE:
            stream, waiter = self._turns.popitem(last=False)
            window = self._http2.window_of(stream)
            if window <= 0:
                self._shut[stream] = waiter
            elif not waiter.future.done():
                waiter.future.set_result(None)
                room -= min(waiter.size, window)
                count += 1
        self.woken += count
        if count and self._turns:
            # Those that go on have sent by then, unless they were cancelled or had nothing to send.
            self._planned = True
            asyncio.get_running_loop().call_soon(self._go_on_later)

    def _go_on_later(self) -> None:
        self._planned = False
        self.go_on()

    def _take_turn(self, stream: Stream) -> None:
        if self._http2.window_of(stream) > 0 and (waiter := self._shut.pop(stream, None)) is not None:
            self._turns[stream] = waiter
