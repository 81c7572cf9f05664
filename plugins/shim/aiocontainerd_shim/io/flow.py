"""A flow of bytes from one descriptor to another, by the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

CHUNK_BYTES = 32 * 1024


class Flow:
    """Copies from one non-blocking fd to another, until the source ends and everything read is written.

    It closes neither fd. Regular files cannot be waited for: they are read and written at once.
    """

    def __init__(self, source: int, target: int, on_end: Callable[[], None] | None = None) -> None:
        """Start to copy; `on_end` is called once, when the flow has ended or was stopped."""
        self.ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._target = target
        self._on_end = on_end
        self._pending = b""
        self._turn: asyncio.Handle | None = None
        self._await_source()

    @property
    def is_blocked(self) -> bool:
        """Whether bytes are in hand that the target doesn't take now."""
        return bool(self._pending)

    def stop(self) -> None:
        """Stop at once; bytes in hand are lost. May be called again."""
        if self.ended.is_set():
            return
        self._leave_source()
        if self._pending:
            self._loop.remove_writer(self._target)
        self._pending = b""
        self.ended.set()
        if self._on_end is not None:
            self._on_end()

    def _await_source(self) -> None:
        try:
            self._loop.add_reader(self._source, self._read)
        except PermissionError:  # a regular file
            self._turn = self._loop.call_soon(self._read)

    def _leave_source(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
        else:
            self._loop.remove_reader(self._source)

    def _read(self) -> None:
        try:
            data = os.read(self._source, CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:  # EIO is how a pty tells that its last process has gone
            data = b""
        if not data:
            self.stop()
            return
        self._pending = self._write(data)
        if self._pending:
            self._leave_source()
            self._loop.add_writer(self._target, self._continue)
        elif self._turn is not None:
            self._await_source()

    def _continue(self) -> None:
        self._pending = self._write(self._pending)
        if not self._pending:
            self._loop.remove_writer(self._target)
            self._await_source()

    def _write(self, data: bytes) -> bytes:
        """Write what fits; return the rest. If the target has failed, drop all, so that the source goes on."""
        try:
            while data:
                data = data[os.write(self._target, data) :]
        except BlockingIOError:
            return data
        except OSError:
            return b""
        return b""
