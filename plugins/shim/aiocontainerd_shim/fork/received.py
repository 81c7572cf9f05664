"""Reads a request of the fork server from a connection, with the descriptor that may come along."""

from __future__ import annotations

import os
import socket

from aiocontainerd.errors import InvalidArgument
from aiocontainerd_shim.fork import protocol
from aiocontainerd_shim.fork.protocol import Request


class Received:
    """A request on a connection, with the descriptor that may have come along."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._fds: list[int] = []
        self._listener: socket.socket | None = None

    def __enter__(self) -> Received:
        return self

    def __exit__(self, *_: object) -> None:
        if self._listener is not None:
            self._listener.close()
        for fd in self._fds:
            os.close(fd)

    def request(self) -> Request:
        """Read the request. Raises InvalidArgument if it is malformed."""
        header, self._fds, _, _ = socket.recv_fds(self._connection, protocol.HEADER.size, 1)
        header += self._exactly(protocol.HEADER.size - len(header))
        return protocol.parse_request(self._exactly(protocol.body_length(header)))

    def listener(self) -> socket.socket:
        """Return the socket for a new shim. Raises InvalidArgument if none came along."""
        if not self._fds:
            raise InvalidArgument("a start comes with a listening socket")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, self._fds.pop())
        return self._listener

    def _exactly(self, count: int) -> bytes:
        parts = b""
        while len(parts) < count:
            part = self._connection.recv(count - len(parts))
            if not part:
                raise InvalidArgument("the request ended early")
            parts += part
        return parts
