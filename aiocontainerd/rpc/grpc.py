"""gRPC server: services on a listening socket, on our own HTTP/2 layer (`http2`).

Each call runs in its own task and context, which carries the namespace and lease of its headers. A call is cancelled
when its client resets it, goes away, or set a deadline that passed. A call that breaks a limit or a rule of the
protocol fails alone; its connection goes on.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from aiocontainerd import context, errors
from aiocontainerd.errors import ContainerdError, InvalidArgument
from aiocontainerd.rpc import binding, http2
from aiocontainerd.rpc.big_messages import CodecThread
from aiocontainerd.rpc.feed import Feed
from aiocontainerd.rpc.grpc_stream import (
    CONTENT_TYPE,
    MAX_MESSAGE_BYTES,
    WireStatus,
    frame,
    receive,
    status_headers,
    timeout_s,
)
from aiocontainerd.rpc.metrics import Metrics
from aiocontainerd.rpc.sockets import BACKLOG
from aiocontainerd.wire import codec

if TYPE_CHECKING:
    import ssl

    from aiocontainerd.interfaces.rpc_service import Service
    from aiocontainerd.rpc.binding import BoundMethod

log = logging.getLogger(__name__)

CANCEL_TIMEOUT_S = 5.0
"""How long `stop` waits for cancelled calls to clean up."""
CLOSE_TIMEOUT_S = 1.0
"""How long `stop` waits for a client to take the last bytes."""
PUSHED_BYTES = 64 << 10
"""Longest message that is pushed. A longer one waits for its turn as an answer."""
GATHER_BYTES = 64 << 10
"""Output of at least this size is written at once. Smaller output is written at the end of the loop's step."""

_STOPPING = "the daemon is stopping: transport is closing"
"""The last words are those of grpc-go for a server that has stopped; clients look for them."""
_RESPONSE_HEADERS = http2.header_block([(":status", "200"), ("content-type", CONTENT_TYPE)])
_OK_TRAILERS = http2.header_block(status_headers(0, ""))


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
        self.front = front
        self.http2 = http2.Http2Connection(self)
        self._calls: dict[http2.Stream, _Call] = {}
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._window_opened: asyncio.Future[None] | None = None
        self._flush_planned = False
        self._client_leaves = self._dropped = False

    def __repr__(self) -> str:
        return f"<Connection {self.http2!r}, {len(self._calls)} calls>"

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
        try:
            self.http2.feed(data)
        except http2.ConnectionBroken as broken:
            log.debug("a client broke HTTP/2: %s", broken)
            self.http2.go_away(broken.code)
            self.drop()
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the Protocol's signature
        self._transport = None
        self._writable.set()
        self.front.connections.discard(self)
        self.front.closed.set()
        for call in self._calls.values():
            call.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def requested(self, stream: http2.Stream) -> None:
        """Start the call of a stream."""
        call = self._calls[stream] = _Call(self, stream)
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

    def may_send(self) -> None:
        """Wake every call that waits for a window."""
        opened, self._window_opened = self._window_opened, None
        if opened is not None:
            opened.set_result(None)

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
            size = self.http2.sendable(stream)
            if size <= 0:
                await self._window()
                continue
            self.http2.send_data(stream, rest[:size])
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
        if not self._writable.is_set():
            await self._writable.wait()

    async def _window(self) -> None:
        self.flush()
        if self._window_opened is None:
            self._window_opened = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._window_opened)

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


class _Call:
    """One call, from its request headers to its trailers."""

    def __init__(self, connection: GrpcConnection, stream: http2.Stream) -> None:
        self._connection = connection
        self._front = connection.front
        self._stream = stream
        self._headers = stream.headers
        self._path = self._headers.get(":path", "")
        self._headers_sent = self._sending = False
        self._woken: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None
        self._cancelled = False
        self._bound: BoundMethod | None = None
        self._leaves = False

    def cancel(self) -> None:
        """Cancel the handler, once: the connection of a reset call may be lost while the handler cleans up."""
        if self.task is not None and not self._cancelled:
            self._cancelled = True
            self.task.cancel()

    def leave(self) -> None:
        """End the call if nobody knows how long it goes on. A stream at work on a client's message ends with that."""
        bound = self._bound
        if bound is None or not (bound.streaming or bound.open_ended):
            return
        self._leaves = True
        if not bound.client_streaming or self._woken is not None:
            self.cancel()

    def ended(self, task: asyncio.Task[None]) -> None:
        """End the call. A task that was cancelled, maybe before it began, has not answered the client yet."""
        if task.cancelled():
            self._finish_cancelled()
        self._front.tasks.discard(task)
        self._connection.ended(self._stream)

    def wake(self) -> None:
        """Go on reading: there is more input, or there will be none."""
        woken, self._woken = self._woken, None
        if woken is not None and not woken.done():
            woken.set_result(None)

    async def recv_data(self, size: int) -> bytes:
        """Return exactly `size` bytes of the request, none at its end. Raises EOFError if it ends in between."""
        stream = self._stream
        while len(stream.buffer) < size and not stream.remote_closed:
            self._check_cancelled()
            if self._leaves:
                self.cancel()
            self._connection.http2.acknowledge(stream)
            self._connection.flush()
            self._woken = asyncio.get_running_loop().create_future()
            await self._woken
        data = bytes(stream.buffer[:size])
        if data and len(data) < size:
            raise EOFError
        del stream.buffer[:size]
        self._connection.http2.acknowledge(stream)
        return data

    async def run(self) -> None:
        """Serve the call. `ended` answers one that was cancelled."""
        try:
            bound = self._admit()
        except WireStatus as status:
            await self._finish(status.code, status.message)
            return
        started = time.perf_counter()
        self._front.metrics.started[bound.path] += 1
        code = errors.Cancelled.code
        try:
            code = await self._serve(bound)
        finally:
            self._front.metrics.finished(bound.path, code, time.perf_counter() - started)

    def _admit(self) -> BoundMethod:
        if self._headers.get(":method") != "POST":
            raise WireStatus(errors.Internal.code, f'invalid HTTP method "{self._headers.get(":method")}"')
        if not self._headers.get("content-type", "").startswith(CONTENT_TYPE):
            received = self._headers.get("content-type", "")
            raise WireStatus(errors.InvalidArgument.code, f'invalid gRPC request content-type "{received}"')
        self._bound = self._front.lookup(self._path)
        return self._bound

    async def _serve(self, bound: BoundMethod) -> int:
        try:
            context.enter(_call_context(self._headers))
            if "grpc-timeout" in self._headers:
                async with asyncio.timeout(_timeout_s(self._headers)):
                    await self._answer(bound)
            else:
                await self._answer(bound)
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - the edge of a request
            code, message = self._status(error, bound)
        else:
            code, message = 0, ""
        await self._finish(code, message)
        return code

    async def _answer(self, bound: BoundMethod) -> None:
        assert bound.call is not None
        given = self._requests(bound) if bound.client_streaming else await self._only(bound)
        if not bound.server_streaming:
            await self._send(bound, await bound.call(given))
            return
        async with aclosing(bound.call(given)) as responses:
            if isinstance(responses, Feed):
                responses.push_to(partial(self._push, bound))
            async for response in responses:
                await self._send(bound, response)

    async def _only(self, bound: BoundMethod) -> Any:
        request = await self._request(bound)
        if request is None:
            raise WireStatus(errors.Internal.code, "grpc: the request has no message")
        return request

    async def _requests(self, bound: BoundMethod) -> AsyncIterator[Any]:
        while (request := await self._request(bound)) is not None:
            yield request

    async def _request(self, bound: BoundMethod) -> Any:
        """Return the next message, None at the end of the stream."""
        payload = await receive(self, self._front.max_recv_message_size, self._headers.get("grpc-encoding", ""))
        if payload is None:
            return None
        self._front.metrics.received[bound.path] += 1
        try:
            return await self._front.codec.decode(bound.request_class, payload)
        except InvalidArgument as error:
            text = f"grpc: error unmarshalling request: {error.message}"
            raise WireStatus(errors.Internal.code, text) from error

    async def _send(self, bound: BoundMethod, message: Any) -> None:
        self._sending = True
        try:
            await self._send_when_taken(bound, message)
        finally:
            self._sending = False

    def _push(self, bound: BoundMethod, message: codec.Encoded) -> bool:
        """Send a message if the client takes all of it now and no message is on its way."""
        data = message.data
        if self._sending or self._cancelled or len(data) > min(self._front.max_send_message_size, PUSHED_BYTES):
            return False
        if not self._connection.push(self._stream, b"" if self._headers_sent else _RESPONSE_HEADERS, message.framed):
            return False
        self._headers_sent = True
        self._front.metrics.sent[bound.path] += 1
        return True

    async def _send_when_taken(self, bound: BoundMethod, message: Any) -> None:
        self._check_cancelled()
        data = frame(await self._front.codec.encode(message), self._front.max_send_message_size)
        await self._connection.writable()
        if not self._headers_sent:
            self._connection.http2.send_headers(self._stream, _RESPONSE_HEADERS)
            self._headers_sent = True
        await self._connection.send_data(self._stream, data)
        self._front.metrics.sent[bound.path] += 1

    def _check_cancelled(self) -> None:
        """Raise CancelledError again in a handler that swallowed its cancellation: its client is gone for good."""
        if self._cancelled:
            raise asyncio.CancelledError

    async def _finish(self, code: int, message: str) -> None:
        await self._connection.writable()
        self._end(code, message)
        # The client may still be sending: it is told that nobody reads.
        self._connection.http2.reset(self._stream)
        self._connection.flush()

    def _finish_cancelled(self) -> None:
        """Tell a client that is still there."""
        error = errors.Unavailable(_STOPPING, complete=True) if self._front.stopping else errors.Cancelled()
        self._end(*errors.to_status(error))

    def _end(self, code: int, message: str) -> None:
        trailers = http2.header_block(status_headers(code, message)) if code or message else _OK_TRAILERS
        block = trailers if self._headers_sent else _RESPONSE_HEADERS + trailers
        self._connection.http2.send_headers(self._stream, block, end=True)

    @staticmethod
    def _status(error: BaseException, bound: BoundMethod) -> tuple[int, str]:
        if isinstance(error, WireStatus):
            return error.code, error.message
        if not isinstance(error, ContainerdError | TimeoutError):
            implementation = type(getattr(bound.call, "__self__", None)).__name__
            log.error("%s (%s) failed unexpectedly", bound.path, implementation, exc_info=error)
        return errors.to_status(error)


def _timeout_s(headers: http2.Headers) -> float:
    try:
        return timeout_s(headers["grpc-timeout"])
    except ValueError as bad:
        raise WireStatus(errors.Internal.code, str(bad)) from None


def _call_context(headers: http2.Headers) -> context.CallContext:
    return context.CallContext(
        namespace=headers.get(context.GRPC_NAMESPACE_HEADER, ""), lease=headers.get(context.GRPC_LEASE_HEADER, "")
    )
