"""Received messages of one stream that wait for their reader (facts/runtime 1.5).

A full inbox stops the reading of its connection. If it stays full for a second, its stream fails, so that a stream
without a reader cannot hold up the others for longer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from aiocontainerd.errors import ResourceExhausted

CAPACITY = 64
"""Most messages of a stream that may wait."""
FULL_TIMEOUT_S = 1.0


class ReadGate:
    """The reading of one connection; it stops while any inbox holds it."""

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._pause = pause
        self._resume = resume
        self._held_by: set[int] = set()

    def hold(self, stream_id: int) -> None:
        """Stop reading for the sake of a stream."""
        if not self._held_by:
            self._pause()
        self._held_by.add(stream_id)

    def release(self, stream_id: int) -> None:
        """Read on, unless another stream holds the gate."""
        if stream_id in self._held_by:
            self._held_by.discard(stream_id)
            if not self._held_by:
                self._resume()


class Inbox:
    """The messages of one stream, for one reader. It ends normally, or with an error that follows the last message."""

    def __init__(self, stream_id: int, gate: ReadGate) -> None:
        self._stream_id = stream_id
        self._gate = gate
        self._messages: deque[bytes] = deque()
        self._ended = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._full_timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Inbox of stream {self._stream_id}: {len(self._messages)} waiting{', ended' if self._ended else ''}>"

    def put(self, payload: bytes) -> None:
        """Take a message. After the end, messages are dropped."""
        if self._ended:
            return
        self._messages.append(payload)
        if len(self._messages) >= CAPACITY and self._full_timer is None:
            self._gate.hold(self._stream_id)
            self._full_timer = asyncio.get_running_loop().call_later(FULL_TIMEOUT_S, self._overflow)
        self._wake()

    def end(self, error: Exception | None = None) -> None:
        """End the stream. Only the first call counts."""
        if not self._ended:
            self._ended, self._error = True, error
            self._drain()
            self._wake()

    async def get(self) -> bytes | None:
        """Return the next message, None after the last. Raises the error the stream ended with."""
        while not self._messages:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return None
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        payload = self._messages.popleft()
        if len(self._messages) < CAPACITY:
            self._drain()
        return payload

    def _overflow(self) -> None:
        self._full_timer = None
        self._messages.clear()
        self.end(ResourceExhausted("ttrpc: stream buffer full"))
        self._gate.release(self._stream_id)

    def _drain(self) -> None:
        if self._full_timer is not None:
            self._full_timer.cancel()
            self._full_timer = None
            self._gate.release(self._stream_id)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
