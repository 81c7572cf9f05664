"""gRPC client over one connection to a unix socket or a TCP address.

It connects at the first call, and again after the connection was lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from grpclib.client import Handler
from grpclib.config import Configuration
from grpclib.exceptions import StreamTerminatedError
from grpclib.metadata import encode_timeout
from grpclib.protocol import H2Protocol, Stream
from grpclib.utils import Wrapper
from h2.config import H2Configuration
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError

from aiocontainerd import context, errors
from aiocontainerd.errors import ContainerdError, Internal, LocalDeadline, Unavailable, from_status
from aiocontainerd.rpc import binding
from aiocontainerd.rpc.grpc_stream import (
    CONTENT_TYPE,
    MAX_MESSAGE_BYTES,
    Headers,
    WireStatus,
    frame,
    receive,
    status_of,
)
from aiocontainerd.wire import codec

if TYPE_CHECKING:
    import ssl

    import betterproto2

    from aiocontainerd.interfaces.rpc_service import Service
    from aiocontainerd.rpc.binding import BoundMethod

_H2_CONFIG = H2Configuration(
    client_side=True,
    header_encoding="ascii",
    validate_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_inbound_headers=False,
    normalize_outbound_headers=False,
)
_HTTP_ERRORS: dict[str, type[ContainerdError]] = {
    "401": errors.Unauthenticated,
    "403": errors.PermissionDenied,
    "404": errors.Unimplemented,
    "429": Unavailable,
    "502": Unavailable,
    "503": Unavailable,
    "504": Unavailable,
}


CONNECT_TIMEOUT_S = 10.0


class Unreachable(Unavailable):
    """Error for a server that cannot be reached, or that went away during the call."""


class GrpcClient:
    """Client that calls methods by name. Use it as an async context manager, or close it with `close`."""

    def __init__(
        self,
        address: str,
        *,
        tls: ssl.SSLContext | None = None,
        max_message_size: int = MAX_MESSAGE_BYTES,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        """Take an address `/path`, `unix:///path` or `host:port`. `max_message_size` is in bytes, each way.

        A connection, TLS included, that takes longer than `connect_timeout_s` seconds is Unreachable.
        `on_lost` is called whenever a connection ends, whichever side ended it.
        """
        self.address = address
        self._on_lost = on_lost
        self._tls = tls
        self._limit = max_message_size
        self._connect_timeout_s = connect_timeout_s
        self._protocol: H2Protocol | None = None
        self._connecting = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<GrpcClient {self.address}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls in flight fail with Unavailable."""
        if self._protocol is not None:
            self._protocol.processor.close("connection closed")
            self._protocol = None

    @property
    def is_connected(self) -> bool:
        """Return whether there is an open connection."""
        return self._protocol is not None and not self._protocol.connection.is_closing()

    async def connect(self) -> None:
        """Connect now, unless connected. Raises Unreachable."""
        try:
            await self._connected()
        except OSError as error:
            raise Unreachable(f"connection to {self.address}: {errors.text_of(error)}") from error

    async def unary(
        self,
        service: str | type[Service],
        method: str,
        request: betterproto2.Message,
        *,
        namespace: str = "",
        lease: str = "",
        timeout_s: float | None = None,
    ) -> betterproto2.Message:
        """Call a unary method of a service of the API, or of a service class with `methods` of its own.

        Raises the error the server answered with, LocalDeadline after `timeout_s`, Unreachable where the server
        cannot be reached or goes away, ResourceExhausted for a message over the limit.
        """
        async with self.stream(service, method, namespace=namespace, lease=lease, timeout_s=timeout_s) as call:
            await call.send(request, end=True)
            response = await call.recv()
            if response is None:
                raise Internal(f"{call.path} ended without a response")
            await call.recv()
            return response

    async def server_stream(
        self,
        service: str | type[Service],
        method: str,
        request: betterproto2.Message,
        *,
        namespace: str = "",
        lease: str = "",
        timeout_s: float | None = None,
    ) -> AsyncIterator[betterproto2.Message]:
        """Yield the messages of a server stream. Raises as `unary`. Closing the iterator cancels the call."""
        async with self.stream(service, method, namespace=namespace, lease=lease, timeout_s=timeout_s) as call:
            await call.send(request, end=True)
            while (message := await call.recv()) is not None:
                yield message

    @asynccontextmanager
    async def stream(
        self,
        service: str | type[Service],
        method: str,
        *,
        namespace: str = "",
        lease: str = "",
        timeout_s: float | None = None,
    ) -> AsyncIterator[GrpcCall]:
        """Open a call of any kind. Leaving the block before its end cancels it. Raises as `unary`."""
        bound = binding.signature(service, method)
        headers = self._headers(bound, namespace, lease, timeout_s)
        deadline = asyncio.timeout(timeout_s)
        try:
            async with deadline:
                call = await self._open(bound, headers)
                try:
                    yield call
                finally:
                    call.close()
        except TimeoutError as error:
            if deadline.expired():
                raise LocalDeadline(f"grpc call {bound.path}") from error
            raise

    async def _open(self, bound: BoundMethod, headers: Headers) -> GrpcCall:
        termination = _Termination()
        try:
            protocol = await self._connected()
            with termination:
                stream = protocol.processor.connection.create_stream(wrapper=termination)
                termination.stream = stream
                release = await stream.send_request(headers, _processor=protocol.processor)
        except (OSError, StreamTerminatedError, ProtocolError) as error:
            raise Unreachable(f"connection to {self.address}: {errors.text_of(error)}") from error
        return GrpcCall(bound, stream, termination, release, self._limit)

    async def _connected(self) -> H2Protocol:
        async with self._connecting:
            protocol = self._protocol
            if protocol is None or protocol.connection.is_closing():
                self._protocol = protocol = await self._connect()
            return protocol

    async def _connect(self) -> H2Protocol:
        limit = asyncio.timeout(self._connect_timeout_s)
        try:
            async with limit:
                return await self._dial()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutError(f"not made within {self._connect_timeout_s:g} s") from error

    async def _dial(self) -> H2Protocol:
        loop = asyncio.get_running_loop()
        if self.address.startswith(("/", "unix:")):
            path = self.address.removeprefix("unix://").removeprefix("unix:")
            _, protocol = await loop.create_unix_connection(self._new_protocol, path, ssl=self._tls)
        else:
            host, _, port = self.address.rpartition(":")
            _, protocol = await loop.create_connection(self._new_protocol, host.strip("[]"), int(port), ssl=self._tls)
        return protocol

    def _new_protocol(self) -> H2Protocol:
        return _Protocol(self._on_lost)

    def _headers(self, bound: BoundMethod, namespace: str, lease: str, timeout_s: float | None) -> Headers:
        headers = [
            (":method", "POST"),
            (":scheme", "https" if self._tls else "http"),
            (":path", bound.path),
            (":authority", "localhost" if self.address.startswith(("/", "unix:")) else self.address),
            ("te", "trailers"),
            ("content-type", CONTENT_TYPE),
            ("user-agent", "aiocontainerd"),
        ]
        if timeout_s is not None:
            headers.append(("grpc-timeout", encode_timeout(timeout_s)))
        if namespace:
            headers.append((context.GRPC_NAMESPACE_HEADER, namespace))
        if lease:
            headers.append((context.GRPC_LEASE_HEADER, lease))
        return headers


class GrpcCall:
    """One call: messages out, messages in, and its end."""

    def __init__(
        self, bound: BoundMethod, stream: Stream, termination: _Termination, release: Callable[[], None], limit: int
    ) -> None:
        self._bound = bound
        self._stream = stream
        self._termination = termination
        self._release = release
        self._limit = limit
        self._answered = False

    def __repr__(self) -> str:
        return f"<GrpcCall {self._bound.path} stream {self._stream.id}>"

    @property
    def path(self) -> str:
        """`/package.Service/Method`."""
        return self._bound.path

    async def send(self, message: betterproto2.Message, *, end: bool = False) -> None:
        """Send a message, the last one with `end`. Waits while the server takes none."""
        with self._translated():
            data = frame(codec.encode(message), self._limit)
            with self._termination:
                await self._stream.send_data(data, end_stream=end)

    async def end(self) -> None:
        """Say that no more messages follow."""
        with self._translated(), self._termination:
            await self._stream.end()

    async def recv(self) -> betterproto2.Message | None:
        """Return the next message, None at the end. Raises the error the server answered with."""
        with self._translated(), self._termination.receiving:
            await self._check_headers()
            payload = await receive(self._stream, self._limit)
            if payload is None:
                headers = await self._stream.recv_headers()
                _raise_for(headers if status_of(headers) else await self._stream.recv_trailers())
                return None
        return codec.decode(self._bound.response_class, payload)

    async def __aiter__(self) -> AsyncIterator[betterproto2.Message]:
        while (message := await self.recv()) is not None:
            yield message

    def close(self) -> None:
        """Leave the call. If it has not ended, the server cancels it."""
        if self._stream.closable:
            self._stream.reset_nowait(ErrorCodes.CANCEL)
        self._release()

    async def _check_headers(self) -> None:
        if self._answered:
            return
        headers = await self._stream.recv_headers()
        self._answered = True
        http_status = dict(headers).get(":status", "")
        if status_of(headers) is not None:
            _raise_for(headers)
        elif http_status != "200":
            kind = _HTTP_ERRORS.get(http_status, errors.Unknown)
            raise kind(f"unexpected HTTP status code received from server: {http_status}")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn errors of HTTP/2 into the status that the server sent before, else into Unavailable."""
        try:
            yield
        except WireStatus as status:
            raise from_status(status.code, status.message) from status
        except (StreamTerminatedError, ProtocolError, OSError) as error:
            for headers in (self._stream.trailers, self._stream.headers):
                if headers is not None and status_of(headers) is not None:
                    _raise_for(headers)
            raise Unreachable(f"{self._bound.path}: {errors.text_of(error)}") from error


class _Termination(Wrapper):
    """End of a call whose stream was reset or whose connection was lost: its waits end.

    A server that answers before its client has sent everything resets the stream after the trailers: then only the
    sending ends, and what came before can still be read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.receiving = Wrapper()
        self.stream: Stream | None = None

    def cancel(self, error: Exception) -> None:
        super().cancel(error)
        if self.stream is None or (self.stream.trailers is None and status_of(self.stream.headers or ()) is None):
            self.receiving.cancel(error)


def _raise_for(headers: Headers) -> None:
    code, message = status_of(headers) or (errors.Internal.code, "server closed the stream without sending trailers")
    if code:
        raise from_status(code, message)


class _Protocol(H2Protocol):
    """A connection that reports its end."""

    def __init__(self, on_lost: Callable[[], None] | None) -> None:
        super().__init__(Handler(), Configuration().__for_client__(), _H2_CONFIG)
        self._on_lost = on_lost

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self._on_lost is not None:
            self._on_lost()
