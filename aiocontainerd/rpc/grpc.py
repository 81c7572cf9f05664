"""gRPC front end: services on a listening socket, on the HTTP/2 layer of grpclib.

Each call runs in a task and a context of its own, which carries the namespace and lease of its headers. It is
cancelled when its client resets it, goes away or set a deadline that passed. A call that breaks a limit or a rule of
the protocol fails alone; its connection goes on.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from grpclib.config import Configuration
from grpclib.metadata import decode_timeout
from grpclib.protocol import AbstractHandler, H2Protocol, Stream
from h2.config import H2Configuration
from h2.events import UnknownFrameReceived
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

from aiocontainerd import context, errors
from aiocontainerd.errors import ContainerdError, InvalidArgument
from aiocontainerd.rpc import binding, codec
from aiocontainerd.rpc.grpc_stream import (
    CONTENT_TYPE,
    MAX_MESSAGE_BYTES,
    Headers,
    WireStatus,
    frame,
    receive,
    status_headers,
)
from aiocontainerd.rpc.metrics import Metrics

if TYPE_CHECKING:
    import ssl

    from aiocontainerd.interfaces.service import Service
    from aiocontainerd.rpc.binding import BoundMethod

log = logging.getLogger(__name__)

CANCEL_TIMEOUT_S = 5.0
"""How long stopping waits for cancelled calls to give back what they took."""
CLOSE_TIMEOUT_S = 1.0
"""How long stopping waits for a client to take what was sent to it last."""
MAX_STREAMS = (1 << 31) - 1
"""Calls at once on one connection: no limit, since each waiting `Tasks.Wait` of a client is one."""

_RESPONSE_HEADERS: Headers = [(":status", "200"), ("content-type", CONTENT_TYPE)]
_H2_CONFIG = H2Configuration(
    client_side=False,
    header_encoding="ascii",
    validate_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_inbound_headers=False,
    normalize_outbound_headers=False,
)


class GrpcFrontEnd:
    """Serves services to every connection of one socket."""

    def __init__(
        self,
        services: Iterable[Service],
        *,
        max_recv_message_size: int = MAX_MESSAGE_BYTES,
        max_send_message_size: int = MAX_MESSAGE_BYTES,
        metrics: Metrics | None = None,
        accept_peer: Callable[[asyncio.BaseTransport], bool] | None = None,
    ) -> None:
        """Sizes in bytes; `accept_peer` decides whether a new connection may stay."""
        self._methods = binding.bind_all(services)
        self._services = {bound.service for bound in self._methods.values()}
        self.max_recv_message_size = max_recv_message_size
        self.max_send_message_size = max_send_message_size
        self.metrics = Metrics() if metrics is None else metrics
        self.accept_peer = accept_peer
        self.stopping = False
        self.connections: set[_Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.closed = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._config = Configuration().__for_server__()

    def __repr__(self) -> str:
        return f"<GrpcFrontEnd {self.statistics()}>"

    def statistics(self) -> dict[str, int]:
        """Services, connections and calls now, calls started so far."""
        return {
            "services": len(self._services),
            "connections": len(self.connections),
            "calls": len(self.tasks),
            "started": self.metrics.started.total(),
        }

    async def start(self, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Begin to accept connections of a bound socket, which is closed by `stop`."""
        loop = asyncio.get_running_loop()
        if sock.family == socket.AF_UNIX:
            self._listener = await loop.create_unix_server(self._connection, sock=sock, ssl=tls)
        else:
            self._listener = await loop.create_server(self._connection, sock=sock, ssl=tls)

    async def stop(self, grace_s: float) -> None:
        """Stop accepting, end streams that only the server feeds, let other calls end for `grace_s`, then cancel them.

        Returns when every call has ended and every connection is closed.
        """
        self.stopping = True
        if self._listener is not None:
            self._listener.close()
        for connection in self.connections:
            connection.cancel_subscriptions()
        await self._settled(grace_s)
        for task in self.tasks:
            task.cancel()
        await self._settled(CANCEL_TIMEOUT_S)
        await self._drop_connections()

    def lookup(self, path: str) -> BoundMethod:
        """The method of a path. Raises WireStatus in gRPC's words."""
        bound = self._methods.get(path)
        if bound is not None and bound.call is not None:
            return bound
        service, _, method = path.removeprefix("/").rpartition("/")
        if not service:
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

    def _connection(self) -> H2Protocol:
        return _Protocol(_Connection(self), self._config, _H2_CONFIG)


class _Protocol(H2Protocol):
    """One HTTP/2 connection."""

    handler: _Connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        h2 = self.connection._connection
        h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS})
        self.connection.flush()
        # Extension frames may come at any time and are ignored (RFC 9113, 4.1).
        self.processor.processors[UnknownFrameReceived] = lambda _event: None
        self.handler.opened(transport)


class _Connection(AbstractHandler):
    """The calls of one connection."""

    def __init__(self, front: GrpcFrontEnd) -> None:
        self._front = front
        self._calls: dict[Stream, tuple[asyncio.Task[None], _Call]] = {}
        self._transport: asyncio.Transport | None = None

    def opened(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._front.connections.add(self)
        accept_peer = self._front.accept_peer
        if accept_peer is not None and not accept_peer(transport):
            self.drop()

    def accept(self, stream: Stream, headers: Any, release_stream: Callable[[], None]) -> None:
        call = _Call(self._front, stream, headers)
        # The one place that makes tasks: a protocol callback cannot await a task group. The front end owns every
        # task, and the end of its connection or of the front end cancels it.
        task = asyncio.get_running_loop().create_task(call.run())
        self._calls[stream] = (task, call)
        self._front.tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._front.tasks.discard(task)
            self._calls.pop(stream, None)
            release_stream()

        task.add_done_callback(ended)

    def cancel(self, stream: Stream) -> None:
        running = self._calls.get(stream)
        if running is not None:
            running[0].cancel()

    def close(self) -> None:
        self._front.connections.discard(self)
        self._front.closed.set()
        for task, _ in self._calls.values():
            task.cancel()

    def cancel_subscriptions(self) -> None:
        for task, call in self._calls.values():
            if call.is_subscription:
                task.cancel()

    def drop(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Call:
    """One call, from its request headers to its trailers."""

    def __init__(self, front: GrpcFrontEnd, stream: Stream, headers: Iterable[tuple[str, str]]) -> None:
        self._front = front
        self._stream = stream
        self._headers = _first_values(headers)
        self._path = self._headers.get(":path", "")
        self._headers_sent = False
        self.is_subscription = False

    async def run(self) -> None:
        """Serve the call. Cancellation ends it without a status where the client is gone."""
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
        except asyncio.CancelledError:
            self._finish_cancelled()
            raise
        finally:
            self._front.metrics.finished(bound.path, code, time.perf_counter() - started)

    def _admit(self) -> BoundMethod:
        if self._headers.get(":method") != "POST":
            raise WireStatus(errors.Internal.code, f'invalid HTTP method "{self._headers.get(":method")}"')
        if not self._headers.get("content-type", "").startswith(CONTENT_TYPE):
            received = self._headers.get("content-type", "")
            raise WireStatus(errors.InvalidArgument.code, f'invalid gRPC request content-type "{received}"')
        bound = self._front.lookup(self._path)
        self.is_subscription = bound.server_streaming and not bound.client_streaming
        return bound

    async def _serve(self, bound: BoundMethod) -> int:
        try:
            async with asyncio.timeout(_timeout_s(self._headers)):
                context.enter(_call_context(self._headers))
                await self._answer(bound)
        except Exception as error:  # noqa: BLE001 - the edge of a request
            code, message = self._status(error, bound)
        else:
            code, message = 0, ""
        await self._finish(code, message)
        return code

    async def _answer(self, bound: BoundMethod) -> None:
        assert bound.call is not None
        requests = self._requests(bound)
        given = requests if bound.client_streaming else await self._only(requests)
        if not bound.server_streaming:
            await self._send(bound, await bound.call(given), last=True)
            return
        async with aclosing(bound.call(given)) as responses:
            async for response in responses:
                await self._send(bound, response, last=False)

    @staticmethod
    async def _only(requests: AsyncIterator[Any]) -> Any:
        async for request in requests:
            return request
        raise WireStatus(errors.Internal.code, "grpc: the request has no message")

    async def _requests(self, bound: BoundMethod) -> AsyncIterator[Any]:
        encoding = self._headers.get("grpc-encoding", "")
        limit = self._front.max_recv_message_size
        while (payload := await receive(self._stream, limit, encoding)) is not None:
            self._front.metrics.received[bound.path] += 1
            try:
                message = codec.decode(bound.request_class, payload)
            except InvalidArgument as error:
                text = f"grpc: error unmarshalling request: {error.message}"
                raise WireStatus(errors.Internal.code, text) from error
            yield message

    async def _send(self, bound: BoundMethod, message: Any, *, last: bool) -> None:
        data = frame(codec.encode(message), self._front.max_send_message_size)
        await self._stream.connection.write_ready.wait()
        h2, stream_id = self._stream._h2_connection, self._stream.id
        assert stream_id is not None
        if not self._headers_sent:
            h2.send_headers(stream_id, _RESPONSE_HEADERS)
            self._headers_sent = True
        if last and len(data) <= min(h2.local_flow_control_window(stream_id), h2.max_outbound_frame_size):
            # It leaves with the trailers, in one write.
            h2.send_data(stream_id, data)
        else:
            await self._stream.send_data(data)
        self._front.metrics.sent[bound.path] += 1

    async def _finish(self, code: int, message: str) -> None:
        try:
            await self._stream.send_headers(self._trailers(code, message), end_stream=True)
            if self._stream.closable:
                # The client still sends: it is told that nobody reads.
                self._stream.reset_nowait()
        except ProtocolError:
            log.debug("the client of %s is gone", self._path)

    def _finish_cancelled(self) -> None:
        """Tell a client that is still there, without waiting."""
        if not self._stream.closable:
            return
        error = errors.Unavailable("the daemon is stopping") if self._front.stopping else errors.Cancelled()
        h2 = self._stream._h2_connection
        assert self._stream.id is not None
        try:
            h2.send_headers(self._stream.id, self._trailers(*errors.to_status(error)), end_stream=True)
            self._stream.connection.flush()
        except ProtocolError:
            log.debug("the client of %s is gone", self._path)

    def _trailers(self, code: int, message: str) -> Headers:
        trailers = status_headers(code, message)
        return trailers if self._headers_sent else _RESPONSE_HEADERS + trailers

    @staticmethod
    def _status(error: Exception, bound: BoundMethod) -> tuple[int, str]:
        if isinstance(error, WireStatus):
            return error.code, error.message
        if isinstance(error, ProtocolError):
            return errors.to_status(errors.Cancelled())  # the client reset the stream while it was written to
        if not isinstance(error, ContainerdError | TimeoutError):
            implementation = type(getattr(bound.call, "__self__", None)).__name__
            log.error("%s (%s) failed unexpectedly", bound.path, implementation, exc_info=error)
        return errors.to_status(error)


def _first_values(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    values: dict[str, str] = {}
    for key, value in headers:
        values.setdefault(key, value)
    return values


def _timeout_s(headers: dict[str, str]) -> float | None:
    value = headers.get("grpc-timeout")
    if value is None:
        return None
    try:
        return decode_timeout(value)
    except ValueError:
        raise WireStatus(errors.Internal.code, f"malformed grpc-timeout: {value}") from None


def _call_context(headers: dict[str, str]) -> context.CallContext:
    return context.CallContext(
        namespace=headers.get(context.GRPC_NAMESPACE_HEADER, ""), lease=headers.get(context.GRPC_LEASE_HEADER, "")
    )
