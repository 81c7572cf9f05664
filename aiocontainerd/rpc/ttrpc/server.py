"""ttrpc server on a listening unix socket, on plain asyncio or uvloop.

Unary handlers of a connection run concurrently, each in a task and context of its own; all of them are cancelled when
the connection goes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Container, Coroutine, Iterable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from aiocontainerd import context, errors
from aiocontainerd.rpc import binding, failures
from aiocontainerd.rpc.sockets import BACKLOG
from aiocontainerd.rpc.ttrpc.inbox import Inbox
from aiocontainerd.rpc.ttrpc.transport import ConnectionProtocol, same_user
from aiocontainerd.rpc.ttrpc.wire import MessageReceived, RequestReceived, ServerEvent, TtrpcConnection
from aiocontainerd.wire import codec

if TYPE_CHECKING:
    import betterproto2

    from aiocontainerd.interfaces.rpc_service import Service
    from aiocontainerd.rpc.binding import BoundMethod

    MessageT = TypeVar("MessageT", bound=betterproto2.Message)

log = logging.getLogger(__name__)

CANCEL_TIMEOUT_S = 5.0
"""How long `aclose` waits for cancelled handlers to clean up."""


class MessageCodec(Protocol):
    """Codec of requests and answers. A server with other clients takes one that lets them go on meanwhile."""

    async def decode(self, cls: type[MessageT], data: bytes) -> MessageT:
        """Return the message of `data`. Raises as `codec.decode`."""
        ...

    async def encode(self, message: betterproto2.Message) -> bytes:
        """Return the bytes of a message."""
        ...

    def close(self) -> None:
        """End what the codec runs."""


class LoopCodec:
    """The codec of a server with one client: it works in the loop and needs no thread."""

    async def decode(self, cls: type[MessageT], data: bytes) -> MessageT:
        """Return the message of `data`. Raises as `codec.decode`."""
        return codec.decode(cls, data)

    async def encode(self, message: betterproto2.Message) -> bytes:
        """Return the bytes of a message."""
        return codec.encode(message)

    def close(self) -> None:
        """Do nothing."""


class RestedConnection(msgspec.Struct, frozen=True):
    """A connection to be served by another process: its newest stream and the calls in flight."""

    last_id: int
    calls: list[RequestReceived]


class TtrpcServer:
    """A ttrpc server: services for every connection of a socket, until it is closed."""

    def __init__(
        self, services: Iterable[Service], *, check_peer: bool = True, message_codec: MessageCodec | None = None
    ) -> None:
        """With `check_peer`, drop peers of another effective uid or gid without an answer (facts/runtime 1.6)."""
        self.codec = message_codec or LoopCodec()
        self._methods = binding.bind_all(services)
        self._services = {bound.service for bound in self._methods.values()}
        self._check_peer = check_peer
        self._connections: set[_ServerProtocol] = set()
        self._listener: asyncio.Server | None = None
        self._closed = asyncio.Event()
        self._changed = asyncio.Event()
        self.requests = 0
        """Calls received so far."""

    def __repr__(self) -> str:
        return f"<TtrpcServer {self.statistics()}>"

    def statistics(self) -> dict[str, int]:
        """Return the numbers of connections and calls now."""
        return {"connections": len(self._connections), "calls": sum(c.in_flight for c in self._connections)}

    async def serve(self, sock: socket.socket) -> None:
        """Serve a bound unix socket until `aclose` or cancellation; the socket is closed at the end."""
        await self.start(sock)
        try:
            await self._closed.wait()
        finally:
            self._close_now()

    async def start(self, sock: socket.socket) -> None:
        """Begin to accept connections, as `serve` does before it waits."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_unix_server(self._connection, sock=sock, backlog=BACKLOG)

    async def aclose(self, grace_s: float) -> None:
        """Stop accepting, close idle connections, let calls in flight end for `grace_s`, then cancel the rest.

        A handler must not await it: it would wait for itself.
        """
        if self._listener is not None:
            self._listener.close()
        try:
            async with asyncio.timeout(grace_s):
                while self._close_idle():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            log.info("ttrpc server: %d calls cancelled at stop", self.statistics()["calls"])
        finally:
            tasks = self._close_now()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT_S)

    def can_rest(self, methods: Container[str]) -> bool:
        """Return whether another process could take over: all calls are of `methods`, and nothing is half done."""
        return all(connection.can_rest(methods) for connection in self._connections)

    def rested(self) -> list[tuple[int, RestedConnection]]:
        """Return descriptor and state of every connection, for `resume` in another process; this one serves no more."""
        return [(connection.fileno, connection.rested()) for connection in self._connections if not connection.closed]

    async def resume(self, sock: socket.socket, rested: RestedConnection) -> None:
        """Take over a connection. Its calls in flight are carried out anew, with the time they had left."""
        loop = asyncio.get_running_loop()
        _, protocol = await loop.connect_accepted_socket(lambda: _ServerProtocol(self, rested.last_id), sock)
        protocol.resume(rested.calls)

    def lookup(self, service: str, method: str) -> BoundMethod:
        """Return the method of a request. Raises Unimplemented in the words of ttrpc."""
        bound = self._methods.get(f"/{service}/{method}")
        if bound is not None and bound.call is not None:
            return bound
        raise errors.Unimplemented(f"method {method}" if service in self._services else f"service {service}")

    def is_streaming(self, service: str, method: str) -> bool:
        """Return whether a request opens a stream; False for a method that is not served."""
        bound = self._methods.get(f"/{service}/{method}")
        return bound is not None and bound.call is not None and bound.streaming

    def accepts(self, sock: socket.socket) -> bool:
        """Return whether the peer of a new connection may stay."""
        return not self._check_peer or same_user(sock)

    def add(self, connection: _ServerProtocol) -> None:
        """Add a new connection."""
        self._connections.add(connection)

    def changed(self, connection: _ServerProtocol) -> None:
        """Take note that a call or a connection ended."""
        if connection.closed:
            self._connections.discard(connection)
        self._changed.set()

    def _connection(self) -> _ServerProtocol:
        return _ServerProtocol(self)

    def _close_idle(self) -> bool:
        """Close connections without calls. Return whether any is left."""
        for connection in list(self._connections):
            if not connection.in_flight:
                connection.close()
        return any(connection.in_flight for connection in self._connections)

    def _close_now(self) -> set[asyncio.Task[None]]:
        """Close everything and return the tasks, which are about to be cancelled."""
        if self._listener is not None:
            self._listener.close()
        tasks: set[asyncio.Task[None]] = set()
        for connection in list(self._connections):
            tasks |= connection.tasks
            if connection.in_flight:
                connection.abort()
            else:
                connection.close()  # its last answer still leaves
        self._closed.set()
        self.codec.close()
        return tasks


class _ServerProtocol(ConnectionProtocol):
    def __init__(self, server: TtrpcServer, last_id: int = 0) -> None:
        super().__init__()
        self._server = server
        self._wire = TtrpcConnection(server.is_streaming, last_id)
        self._calls: dict[asyncio.Task[None], tuple[RequestReceived, float]] = {}
        self._inboxes: dict[int, Inbox] = {}

    @property
    def in_flight(self) -> int:
        return len(self._calls)

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        return set(self._calls)

    @property
    def fileno(self) -> int:
        return int(self.transport.get_extra_info("socket").fileno())

    def can_rest(self, methods: Container[str]) -> bool:
        if self.transport.is_closing() or self.transport.get_write_buffer_size() or self._inboxes:
            return False
        return self._wire.at_rest and all(request.method in methods for request, _ in self._calls.values())

    def rested(self) -> RestedConnection:
        now = asyncio.get_running_loop().time()
        return RestedConnection(self._wire.last_id, [_left(*call, now) for call in self._calls.values()])

    def resume(self, calls: Iterable[RequestReceived]) -> None:
        for request in calls:
            self._begin(request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.add(self)
        if not self._server.accepts(transport.get_extra_info("socket")):
            log.warning("ttrpc server: a peer of another user was dropped")
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        for event in self._wire.receive(data):
            self._take(event)
        self._flush()

    def connection_ended(self) -> None:
        for inbox in self._inboxes.values():
            inbox.end(errors.Cancelled("ttrpc: closed"))
        for task in self._calls:
            task.cancel()
        self._server.changed(self)

    def close(self) -> None:
        self.transport.close()

    def abort(self) -> None:
        self.transport.abort()

    def _take(self, event: ServerEvent) -> None:
        if isinstance(event, RequestReceived):
            self._begin(event)
        elif isinstance(event, MessageReceived):
            inbox = self._inboxes.get(event.stream_id)
            if inbox is not None:
                inbox.put(event.payload)
        elif (inbox := self._inboxes.get(event.stream_id)) is not None:
            inbox.end()

    def _begin(self, request: RequestReceived) -> None:
        self._server.requests += 1
        try:
            bound = self._server.lookup(request.service, request.method)
        except errors.Unimplemented as error:
            self._wire.fail(request.stream_id, error.code, error.message)
            return
        if not bound.streaming:
            self._start(self._unary(bound, request), request)
            return
        inbox = self._inboxes[request.stream_id] = Inbox(request.stream_id, self.gate)
        if request.payload is not None:
            inbox.put(request.payload)
        self._start(self._streaming(bound, request, inbox), request)

    def _start(self, handler: Coroutine[Any, Any, None], request: RequestReceived) -> None:
        # A bare task, because a protocol callback cannot await a task group. `_calls` owns every task,
        # and the end of the connection cancels them.
        loop = asyncio.get_running_loop()
        task = loop.create_task(handler)
        self._calls[task] = request, loop.time()
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._calls[task]
        self._server.changed(self)

    async def _unary(self, bound: BoundMethod, request: RequestReceived) -> None:
        assert bound.call is not None
        _enter(request.metadata)
        try:
            async with asyncio.timeout(request.timeout_s):
                message = await self._server.codec.decode(bound.request_class, request.payload or b"")
                response = await self._encoded(bound, await bound.call(message))
        except BaseException as error:  # the edge of a request: whatever a method raises is its answer
            if errors.is_ordered(error):
                self._wire.fail(request.stream_id, *errors.to_status(error))
                raise
            self._wire.fail(request.stream_id, *_status(error, bound))
        else:
            self._wire.respond(request.stream_id, response)
        finally:
            self._flush()

    async def _streaming(self, bound: BoundMethod, request: RequestReceived, inbox: Inbox) -> None:
        _enter(request.metadata)
        try:
            async with asyncio.timeout(request.timeout_s):
                await self._run_stream(bound, request.stream_id, inbox)
        except BaseException as error:  # the edge of a request: whatever a method raises is its answer
            if errors.is_ordered(error):
                self._wire.fail(request.stream_id, *errors.to_status(error))
                raise
            self._wire.fail(request.stream_id, *_status(error, bound))
        finally:
            self._inboxes.pop(request.stream_id, None)
            inbox.end()
            self._flush()

    async def _run_stream(self, bound: BoundMethod, stream_id: int, inbox: Inbox) -> None:
        assert bound.call is not None
        requests = self._messages(bound, inbox)
        given = requests if bound.client_streaming else await anext(requests)
        if not bound.server_streaming:
            self._wire.respond(stream_id, await self._encoded(bound, await bound.call(given)))
            return
        async with aclosing(bound.call(given)) as responses:
            async for response in responses:
                self._wire.send_message(stream_id, await self._encoded(bound, response))
                self._flush()
                await self.drained()
        self._wire.finish(stream_id)

    async def _encoded(self, bound: BoundMethod, message: Any) -> bytes:
        try:
            return await self._server.codec.encode(message)
        except (TypeError, ValueError, AttributeError) as error:
            raise failures.wrong_answer(bound, message, error) from error

    async def _messages(self, bound: BoundMethod, inbox: Inbox) -> AsyncIterator[Any]:
        while (payload := await inbox.get()) is not None:
            yield await self._server.codec.decode(bound.request_class, payload)

    def _flush(self) -> None:
        self.write(self._wire.data_to_send())


def _left(request: RequestReceived, begun_at: float, now: float) -> RequestReceived:
    """Return the same call with the time it has left."""
    if request.timeout_s is None:
        return request
    return msgspec.structs.replace(request, timeout_s=max(request.timeout_s - (now - begun_at), 0.0))


def _enter(metadata: Mapping[str, str]) -> None:
    context.enter(context.CallContext(namespace=metadata.get(context.TTRPC_NAMESPACE_HEADER, "")))


# Classes of foreign errors that ttrpc tells apart, most special first (facts/runtime 1.4).
_FOREIGN: tuple[tuple[type[Exception], int], ...] = (
    (asyncio.IncompleteReadError, errors.FailedPrecondition.code),
    (EOFError, errors.OutOfRange.code),
    (FileExistsError, errors.AlreadyExists.code),
    (FileNotFoundError, errors.NotFound.code),
    (PermissionError, errors.PermissionDenied.code),
)


def _status(error: BaseException, bound: BoundMethod) -> tuple[int, str]:
    if not isinstance(error, errors.ContainerdError | TimeoutError):
        failures.tell(log, error, bound)
    for kind, code in _FOREIGN:
        if isinstance(error, kind):
            return code, errors.sendable(errors.text_of(error))
    return errors.to_status(error)
