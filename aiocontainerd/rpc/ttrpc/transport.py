"""Base of both sides of a ttrpc connection: reading, writing with back-pressure, the end of the connection."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import cast

from aiocontainerd.rpc.ttrpc.inbox import ReadGate

_CREDENTIALS = struct.Struct("3i")


class ConnectionProtocol(asyncio.Protocol):
    """Base of both sides. Subclasses take `data_received` and `connection_ended`."""

    def __init__(self) -> None:
        self.closed = False
        self._transport: asyncio.Transport | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._write_paused = False
        self.gate = ReadGate(self._pause, self._resume)

    @property
    def transport(self) -> asyncio.Transport:
        """Return the transport. Use it only while connected."""
        assert self._transport is not None
        return self._transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why it ended changes nothing
        self.closed = True
        self._wake()
        self.connection_ended()

    def connection_ended(self) -> None:
        """Take note that the connection is gone."""

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._wake()

    def write(self, data: bytes) -> None:
        """Send bytes; drop them if the connection is gone."""
        if data and not self.closed and not self.transport.is_closing():
            self.transport.write(data)

    async def drained(self) -> None:
        """Wait until the peer takes more, or the connection is gone."""
        while self._write_paused and not self.closed:
            await self._wait()

    async def wait_closed(self) -> None:
        """Wait for the end of the connection."""
        while not self.closed:
            await self._wait()

    async def _wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _pause(self) -> None:
        if not self.closed and not self.transport.is_closing():
            self.transport.pause_reading()

    def _resume(self) -> None:
        if not self.closed and not self.transport.is_closing():
            self.transport.resume_reading()


def same_user(sock: socket.socket) -> bool:
    """Return whether the peer of a unix socket has this process's effective uid and gid (facts/runtime 1.6)."""
    _pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return (uid, gid) == (os.geteuid(), os.getegid())
