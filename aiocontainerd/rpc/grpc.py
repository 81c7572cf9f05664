"""gRPC server: services on a listening socket, on our own HTTP/2 layer (`http2`).

Each call runs in its own task and context, which carries the namespace and lease of its headers. A call is cancelled
when its client resets it, goes away, or set a deadline that passed. A call that breaks a limit or a rule of the
protocol fails alone; its connection goes on.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, cast

from aiocontainerd import errors
from aiocontainerd.rpc import binding, http2
from aiocontainerd.rpc.big_messages import CodecThread
from aiocontainerd.rpc.grpc_call import ServedCall
from aiocontainerd.rpc.grpc_stream import MAX_MESSAGE_BYTES, WireStatus
from aiocontainerd.rpc.metrics import Metrics
from aiocontainerd.rpc.outgoing import Outgoing
from aiocontainerd.rpc.sockets import BACKLOG
from aiocontainerd.rpc.windows import WindowTurns

if TYPE_CHECKING:
    import ssl

    from aiocontainerd.interfaces.rpc_service import Service
    from aiocontainerd.rpc.binding import BoundMethod

log = logging.getLogger(__name__)

CANCEL_TIMEOUT_S = 5.0
"""How long `stop` waits for cancelled calls to clean up."""
CLOSE_TIMEOUT_S = 1.0
"""How long `stop` waits for a client to take the last bytes."""
GATHER_BYTES = 64 << 10
"""Output of at least this size is written at once. Smaller output is written at the end of the loop's step."""
CANCELLED_AT_ONCE = 64
MESSAGES_UNREAD = 4
"""A connection may leave so many of the largest requests half received, if that is more than its usual limit."""
MAX_ALL_UNREAD_BYTES = 192 << 20
"""Headers and unread data of the calls of all connections, beside one that has all it may. The connection that holds
most is closed beyond it."""
MAX_UNSENT_BYTES = 4 << 20
"""Output that a client may leave untaken. Answers wait long before; only protocol frames come to so much."""
CHUNK_BYTES = 256 << 10
"""The socket is given so much of an answer before it is asked whether it takes more."""


class GrpcFrontEnd:
    """A gRPC server: services for every connection of one socket."""

    def __init__(
        self,
        services: Iterable[Service],
        *,
        max_recv_message_size: int = MAX_MESSAGE_BYTES,
        max_send_message_size: int = MAX_MESSAGE_BYTES,
        metrics: Metrics | None = None,
        accept_peer: Callable[[asyncio.BaseTransport], bool] | None = None,
    ) -> None:
        """Take sizes in bytes. `accept_peer` decides whether a new connection may stay."""
        self._methods = binding.bind_all(services)
        self._services = {bound.service for bound in self._methods.values()}
        self.max_recv_message_size = max_recv_message_size
        self.max_send_message_size = max_send_message_size
        self.metrics = Metrics() if metrics is None else metrics
        self.accept_peer = accept_peer
        self.stopping = False
        self.codec = CodecThread()
        self.unread = http2.Unread(self.codec.trim_soon)
        self.max_unread_bytes = max(http2.MAX_UNREAD_BYTES, MESSAGES_UNREAD * max_recv_message_size)
        self.max_all_unread_bytes = MAX_ALL_UNREAD_BYTES + self.max_unread_bytes
        self.outgoing = Outgoing(self.codec.trim_soon)
        self.connections: set[GrpcConnection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.closed = asyncio.Event()
        self._listener: asyncio.Server | None = None

    def __repr__(self) -> str:
        return f"<GrpcFrontEnd {self.statistics()}>"

    def statistics(self) -> dict[str, int]:
        """Return the numbers of services, of connections and calls now, and of calls started so far."""
        return {
            "services": len(self._services),
            "connections": len(self.connections),
            "calls": len(self.tasks),
            "started": self.metrics.started.total(),
        }

    async def start(self, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Begin to accept connections of a bound socket. `stop` closes the socket."""
        loop = asyncio.get_running_loop()
        if sock.family == socket.AF_UNIX:
            self._listener = await loop.create_unix_server(self._accept, sock=sock, ssl=tls, backlog=BACKLOG)
        else:
            self._listener = await loop.create_server(self._accept, sock=sock, ssl=tls, backlog=BACKLOG)

    async def stop(self, grace_s: float) -> None:
        """Stop accepting, end streams and waits, give other calls `grace_s`, then cancel them.

        Returns when every call has ended and every connection is closed.
        """
        self.stopping = True
        if self._listener is not None:
            self._listener.close()
        for connection in self.connections:
            connection.end_open_calls()
        await self._settled(grace_s)
        for task in self.tasks:
            task.cancel()
        await self._settled(CANCEL_TIMEOUT_S)
        await self._drop_connections()
        self.codec.close()

    def shed(self) -> None:
        """Close the connection that holds most of what is received and unread."""
        worst = max(self.connections, key=lambda one: one.http2.unread)
        log.warning("a client is cut off: %d bytes of its calls are received and unread", worst.http2.unread)
        worst.abort()
        worst.http2.lost()

    def lookup(self, path: str) -> BoundMethod:
        """Return the method of a path. Raises WireStatus in gRPC's words."""
        bound = self._methods.get(path)
        if bound is not None and bound.call is not None:
            return bound
        service, _, method = path.removeprefix("/").rpartition("/")
        if not service or not path.startswith("/"):
            raise WireStatus(errors.Unimplemented.code, f'malformed method name: "{path}"')
        if service not in self._services:
            raise WireStatus(errors.Unimplemented.code, f"unknown service {service}")
        raise WireStatus(errors.Unimplemented.code, f"unknown method {method} for service {service}")

    async def _settled(self, timeout_s: float) -> None:
        if self.tasks:
            await asyncio.wait(set(self.tasks), timeout=timeout_s)

    async def _drop_connections(self) -> None:
        for connection in list(self.connections):
            connection.drop()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                while self.connections:
                    self.closed.clear()
                    await self.closed.wait()
        except TimeoutError:
            for connection in list(self.connections):
                connection.abort()

    def _accept(self) -> GrpcConnection:
        return GrpcConnection(self)


class GrpcConnection(asyncio.Protocol):
    """One HTTP/2 connection and its calls."""

    def __init__(self, front: GrpcFrontEnd) -> None:
        self._front = front
        self.http2 = http2.Http2Connection(self, all_unread=front.unread)
        self.http2.max_unread = front.max_unread_bytes
        self._calls: dict[http2.Stream, ServedCall] = {}
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.turns = WindowTurns(self.http2, self._writable.is_set)
        self._flush_planned = self._feed_planned = self._held_up = False
        self.share = front.outgoing.share(self.abort)
        self._client_leaves = self._dropped = False

    def __repr__(self) -> str:
        return f"<Connection {self.http2!r}, {len(self._calls)} calls>"

    @property
    def front(self) -> GrpcFrontEnd:
        """Return the server."""
        return self._front

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.front.connections.add(self)
        accept_peer = self.front.accept_peer
        if accept_peer is None or accept_peer(transport):
            self.flush()
        else:
            self.abort()

    def data_received(self, data: bytes) -> None:
        if self._dropped:  # TLS hands over what came with the handshake, even from a peer that was refused
            return
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        """Take received bytes. After many requests, others have their turn before this connection goes on."""
        try:
            if self.http2.feed(data):
                self._feed_later()
            elif self._held_up:
                self._read_on()
        except http2.ConnectionBroken as broken:
            log.debug("a client broke HTTP/2: %s", broken)
            self.http2.go_away(broken.code)
            self.drop()
        self.flush()
        if self._front.unread.total > self._front.max_all_unread_bytes:
            self._front.shed()

    def _feed_later(self) -> None:
        if self._transport is None or self._transport.is_closing() or self._feed_planned:
            return
        if not self._held_up:
            self._held_up = True
            self._transport.pause_reading()
        self._feed_planned = True
        asyncio.get_running_loop().call_soon(self._feed_on)

    def _read_on(self) -> None:
        self._held_up = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _feed_on(self) -> None:
        self._feed_planned = False
        if self._transport is not None and not self._dropped:
            self._feed(b"")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the Protocol's signature
        self._transport = None
        self._writable.set()
        self.front.connections.discard(self)
        self.share.close()
        self.http2.lost()
        self.front.closed.set()
        self._cancel_calls(list(self._calls.values()))

    def _cancel_calls(self, calls: list[ServedCall]) -> None:
        """Cancel calls of a client that is gone, some in each step of the loop: each runs once more."""
        for call in calls[-CANCELLED_AT_ONCE:]:
            call.cancel()
        if len(calls) > CANCELLED_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._cancel_calls, calls[:-CANCELLED_AT_ONCE])

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()
        self.turns.go_on()

    def requested(self, stream: http2.Stream) -> None:
        """Start the call of a stream."""
        call = self._calls[stream] = ServedCall(self, stream)
        # A bare task, because a protocol callback cannot await a task group. The front end owns every
        # task, and the end of its connection or of the front end cancels it.
        call.task = asyncio.get_running_loop().create_task(call.run())
        self.front.tasks.add(call.task)
        call.task.add_done_callback(call.ended)

    def received(self, stream: http2.Stream) -> None:
        """Wake the call that reads the stream."""
        call = self._calls.get(stream)
        if call is not None:
            call.wake()

    def was_reset(self, stream: http2.Stream) -> None:
        """Cancel the call of a stream."""
        call = self._calls.get(stream)
        if call is not None:
            call.cancel()

    def may_send(self, stream: http2.Stream | None) -> None:
        """Let calls go on that wait for a window."""
        self.turns.opened(stream)

    def windows_changed(self) -> None:
        """Let calls go on whose windows are open now."""
        self.turns.changed()

    def going_away(self) -> None:
        """Close the connection after the calls that the client has made; it makes no more (RFC 9113, 6.8)."""
        self._client_leaves = True
        if not self._calls:
            self.drop()

    def ended(self, stream: http2.Stream) -> None:
        """Forget a call that is over."""
        self.http2.reset(stream)
        self.flush()
        self._calls.pop(stream, None)
        if self._client_leaves and not self._calls:
            self.drop()

    def end_open_calls(self) -> None:
        """End streams, and calls that wait for something outside the daemon. What a client has asked is answered."""
        for call in self._calls.values():
            call.leave()

    def flush(self) -> None:
        """Write the gathered output."""
        out = self.http2.out
        if out:
            self.http2.out = bytearray()
            if self._transport is not None:
                self._transport.write(out)
                if not self._writable.is_set() and self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
                    log.warning("a client is cut off: it reads nothing of what it asks for")
                    self.abort()

    def flush_soon(self) -> None:
        """Write the gathered output by the end of this step of the loop."""
        if len(self.http2.out) >= GATHER_BYTES:
            self.flush()
        elif not self._flush_planned:
            self._flush_planned = True
            asyncio.get_running_loop().call_soon(self._planned_flush)

    async def send_data(self, stream: http2.Stream, data: bytes) -> None:
        """Send data as the client takes it."""
        rest = memoryview(data)
        while rest and not stream.local_closed:
            await self.writable()
            size = min(self.http2.sendable(stream), CHUNK_BYTES)
            if size <= 0:
                await self._window(stream, len(rest))
                continue
            self.http2.send_data(stream, rest[:size])
            self.share.moved()
            rest = rest[size:]
            self.flush_soon()

    def push(self, stream: http2.Stream, headers: bytes, data: bytes) -> bool:
        """Send headers, if any, and data, if the socket and the client take it now. Return whether they were sent."""
        if not self._writable.is_set() or stream.local_closed or self.http2.sendable(stream) < len(data):
            return False
        if headers:
            self.http2.send_headers(stream, headers)
        self.http2.send_data(stream, data)
        self.flush_soon()
        return True

    async def writable(self) -> None:
        """Wait until the socket takes more."""
        while not self._writable.is_set():
            await self._writable.wait()

    async def taking(self, stream: http2.Stream) -> None:
        """Wait until the client takes data on a stream, or the stream is over."""
        await self.writable()
        while self.http2.sendable(stream) <= 0 and not stream.local_closed:
            await self._window(stream, 0)
            await self.writable()

    async def _window(self, stream: http2.Stream, size: int) -> None:
        self.flush()
        await self.turns.wait(stream, size)

    def drop(self) -> None:
        """Close the connection once the client has taken all output. Its further input is not read."""
        self._dropped = True
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection now."""
        self._dropped = True
        if self._transport is not None:
            self._transport.abort()

    def _planned_flush(self) -> None:
        self._flush_planned = False
        self.flush()
