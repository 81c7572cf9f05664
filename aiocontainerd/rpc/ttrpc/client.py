"""ttrpc client on one unix socket connection. It needs only a running event loop.

A call whose deadline passes or whose caller is cancelled is forgotten here, and runs on at the server, which has the
same deadline. The protocol has no way to cancel it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from aiocontainerd import context
from aiocontainerd.errors import LocalDeadline, Unavailable, from_status
from aiocontainerd.rpc import binding
from aiocontainerd.rpc.ttrpc.inbox import Inbox
from aiocontainerd.rpc.ttrpc.transport import ConnectionProtocol
from aiocontainerd.rpc.ttrpc.wire import ClientConnection, ClientEvent, Flags, MessageReceived, ResponseReceived
from aiocontainerd.wire import codec

if TYPE_CHECKING:
    import betterproto2

    from aiocontainerd.rpc.binding import BoundMethod


class TtrpcClosed(Unavailable):
    """Error for a lost connection. Whether the server carried out the call is unknown."""


class TtrpcClient:
    """Client of one connection. Made by `connect`; closed by `aclose`, or by the server."""

    def __init__(self, protocol: _ClientProtocol, address: str) -> None:
        self._protocol = protocol
        self._address = address

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self._protocol.in_flight} calls in flight"
        return f"<TtrpcClient {self._address} {state}>"

    @classmethod
    async def connect(cls, address: str, *, timeout_s: float) -> Self:
        """Connect to `unix:///path` or `/path`.

        Raises OSError if nobody listens there, LocalDeadline if connecting takes too long.
        """
        path = address.removeprefix("unix://")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                _, protocol = await loop.create_unix_connection(_ClientProtocol, path)
        except TimeoutError as error:
            raise LocalDeadline(f"connect to {path}") from error
        return cls(protocol, path)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def closed(self) -> bool:
        """Return whether the connection is gone."""
        return self._protocol.closed

    async def wait_closed(self) -> None:
        """Wait until the connection is gone."""
        await self._protocol.wait_closed()

    async def aclose(self) -> None:
        """Close; calls in flight fail with TtrpcClosed."""
        self._protocol.abort()
        await self._protocol.wait_closed()

    async def call(
        self, service: str, method: str, request: betterproto2.Message, *, timeout_s: float, namespace: str = ""
    ) -> betterproto2.Message:
        """Call a unary method.

        Raises the error the server answered with, LocalDeadline after `timeout_s`, TtrpcClosed where the connection
        goes first, ResourceExhausted for a request over 4 MiB.
        """
        bound = binding.signature(service, method)
        payload = codec.encode(request)
        response = await self._protocol.call(bound, payload, timeout_s, namespace)
        return codec.decode(bound.response_class, response)

    @asynccontextmanager
    async def stream(
        self,
        service: str,
        method: str,
        request: betterproto2.Message | None = None,
        *,
        timeout_s: float | None = None,
        namespace: str = "",
    ) -> AsyncIterator[TtrpcStream]:
        """Open a streaming call; `request` is its first message.

        A method whose client does not stream needs `request`. Leaving the block forgets the stream.
        """
        bound = binding.signature(service, method)
        stream = self._protocol.open_stream(bound, request, timeout_s, namespace)
        try:
            yield stream
        finally:
            self._protocol.forget(stream.id)


class TtrpcStream:
    """The client's side of a streaming call."""

    def __init__(self, protocol: _ClientProtocol, stream_id: int, bound: BoundMethod, inbox: Inbox) -> None:
        self.id = stream_id
        self._protocol = protocol
        self._bound = bound
        self._inbox = inbox

    def __repr__(self) -> str:
        return f"<TtrpcStream {self.id} {self._bound.path} {self._inbox!r}>"

    async def send(self, message: betterproto2.Message) -> None:
        """Send a message, waiting while the server takes none. Raises TtrpcClosed."""
        self._protocol.send(self.id, codec.encode(message))
        await self._protocol.drained()

    def end(self) -> None:
        """Say that no more messages follow. Raises TtrpcClosed."""
        self._protocol.send(self.id, None)

    async def recv(self) -> betterproto2.Message | None:
        """Return the next message, None at the end. Raises the error the server answered with, or TtrpcClosed."""
        payload = await self._inbox.get()
        return None if payload is None else codec.decode(self._bound.response_class, payload)

    async def __aiter__(self) -> AsyncIterator[betterproto2.Message]:
        while (message := await self.recv()) is not None:
            yield message


class _ClientProtocol(ConnectionProtocol):
    def __init__(self) -> None:
        super().__init__()
        self._wire = ClientConnection()
        self._calls: dict[int, asyncio.Future[bytes]] = {}
        self._inboxes: dict[int, Inbox] = {}

    @property
    def in_flight(self) -> int:
        return len(self._calls) + len(self._inboxes)

    async def call(self, bound: BoundMethod, payload: bytes, timeout_s: float, namespace: str) -> bytes:
        stream_id = self._request(bound, payload, Flags.NONE, timeout_s, namespace)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes] = loop.create_future()
        self._calls[stream_id] = future
        timer = loop.call_later(timeout_s, self._expire, future, bound.path)
        try:
            return await future
        finally:
            timer.cancel()
            del self._calls[stream_id]
            self._wire.forget(stream_id)

    def open_stream(
        self, bound: BoundMethod, request: betterproto2.Message | None, timeout_s: float | None, namespace: str
    ) -> TtrpcStream:
        if request is None and not bound.client_streaming:
            raise ValueError(f"{bound.path} needs a request")
        flags = Flags.REMOTE_OPEN if bound.client_streaming else Flags.REMOTE_CLOSED
        payload = b"" if request is None else codec.encode(request)
        stream_id = self._request(bound, payload, flags, timeout_s, namespace)
        inbox = self._inboxes[stream_id] = Inbox(stream_id, self.gate)
        return TtrpcStream(self, stream_id, bound, inbox)

    def send(self, stream_id: int, payload: bytes | None) -> None:
        self._check_open()
        if payload is None:
            self._wire.send_end(stream_id)
        else:
            self._wire.send_message(stream_id, payload)
        self.write(self._wire.data_to_send())

    def forget(self, stream_id: int) -> None:
        self._wire.forget(stream_id)
        inbox = self._inboxes.pop(stream_id, None)
        if inbox is not None:
            inbox.end()

    def abort(self) -> None:
        if not self.closed:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        for event in self._wire.receive(data):
            self._deliver(event)

    def connection_ended(self) -> None:
        for future in self._calls.values():
            _fail(future, TtrpcClosed("ttrpc: closed"))
        for inbox in self._inboxes.values():
            inbox.end(TtrpcClosed("ttrpc: closed"))

    def _request(
        self, bound: BoundMethod, payload: bytes, flags: Flags, timeout_s: float | None, namespace: str
    ) -> int:
        self._check_open()
        stream_id = self._wire.request(
            bound.service,
            bound.method,
            payload,
            flags=flags,
            timeout_nano=int(timeout_s * 1e9) if timeout_s else 0,
            metadata={context.TTRPC_NAMESPACE_HEADER: namespace} if namespace else None,
        )
        self.write(self._wire.data_to_send())
        return stream_id

    def _check_open(self) -> None:
        if self.closed or self.transport.is_closing():
            raise TtrpcClosed("ttrpc: closed")

    def _deliver(self, event: ClientEvent) -> None:
        future = self._calls.get(event.stream_id)
        if future is not None:
            _settle(future, event)
            return
        inbox = self._inboxes.get(event.stream_id)
        if inbox is None:
            return
        if isinstance(event, MessageReceived):
            inbox.put(event.payload)
        elif isinstance(event, ResponseReceived):
            if not event.code:
                inbox.put(event.payload)
            inbox.end(from_status(event.code, event.message) if event.code else None)
        else:
            inbox.end()

    @staticmethod
    def _expire(future: asyncio.Future[bytes], path: str) -> None:
        _fail(future, LocalDeadline(f"ttrpc call {path}"))


def _settle(future: asyncio.Future[bytes], event: ClientEvent) -> None:
    if future.done():
        return
    if not isinstance(event, ResponseReceived):
        future.set_exception(Unavailable("protocol error"))
    elif event.code:
        future.set_exception(from_status(event.code, event.message))
    else:
        future.set_result(event.payload)


def _fail(future: asyncio.Future[bytes], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
