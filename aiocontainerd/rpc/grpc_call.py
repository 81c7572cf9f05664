"""One gRPC call of our server, from its request headers to its trailers."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from aiocontainerd import context, errors
from aiocontainerd.errors import ContainerdError, InvalidArgument
from aiocontainerd.rpc import failures, http2
from aiocontainerd.rpc.big_messages import BIG_BYTES, BIG_PARTS
from aiocontainerd.rpc.feed import Feed
from aiocontainerd.rpc.grpc_stream import CONTENT_TYPE, WireStatus, frame, receive, status_headers, timeout_s
from aiocontainerd.rpc.outgoing import Answer
from aiocontainerd.wire import codec

if TYPE_CHECKING:
    from aiocontainerd.rpc.big_messages import CodecThread
    from aiocontainerd.rpc.binding import BoundMethod
    from aiocontainerd.rpc.http2 import Http2Connection, Stream
    from aiocontainerd.rpc.metrics import Metrics
    from aiocontainerd.rpc.outgoing import Outgoing, Share

log = logging.getLogger(__name__)

PUSHED_BYTES = 64 << 10
"""Longest message that is pushed. A longer one waits for its turn as an answer."""

STREAM_BATCH = 32
"""Answers of a stream after which others have their turn, where the handler never waits."""

_STOPPING = "the daemon is stopping: transport is closing"
"""The last words are those of grpc-go for a server that has stopped; clients look for them."""
_RESPONSE_HEADERS = http2.header_block([(":status", "200"), ("content-type", CONTENT_TYPE)])
_OK_TRAILERS = http2.header_block(status_headers(0, ""))


class CallServer(Protocol):
    """The server of a call."""

    codec: CodecThread
    outgoing: Outgoing
    metrics: Metrics
    tasks: set[asyncio.Task[None]]
    stopping: bool
    max_recv_message_size: int
    max_send_message_size: int

    def lookup(self, path: str) -> BoundMethod:
        """Return the method of a path. Raises WireStatus."""
        ...


class CallCarrier(Protocol):
    """The connection of a call."""

    http2: Http2Connection
    share: Share

    @property
    def front(self) -> CallServer:
        """Return the server."""
        ...

    def flush(self) -> None:
        """Write the gathered output."""
        ...

    def push(self, stream: Stream, headers: bytes, data: bytes) -> bool:
        """Send headers and data, if the client takes them now. Return whether they were sent."""
        ...

    async def send_data(self, stream: Stream, data: bytes) -> None:
        """Send data as the client takes it."""
        ...

    async def taking(self, stream: Stream) -> None:
        """Wait until the client takes data on a stream, or the stream is over."""
        ...

    async def writable(self) -> None:
        """Wait until the socket takes more."""
        ...

    def ended(self, stream: Stream) -> None:
        """Forget a call that is over."""
        ...


class ServedCall:
    """One call, from its request headers to its trailers."""

    def __init__(self, connection: CallCarrier, stream: Stream) -> None:
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
            self._connection.http2.acknowledge(stream, ahead=True)
            self._connection.flush()
            self._woken = asyncio.get_running_loop().create_future()
            await self._woken
        if len(stream.buffer) <= size:  # a whole message, which may be big: it is copied once
            data, stream.buffer = bytes(stream.buffer), bytearray()
        else:
            data = bytes(stream.buffer[:size])
            del stream.buffer[:size]
        if data and len(data) < size:
            raise EOFError
        self._connection.http2.acknowledge(stream)
        return data

    async def run(self) -> None:
        """Serve the call. `ended` answers one that was cancelled."""
        try:
            bound = self._method()
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

    def _method(self) -> BoundMethod:
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
        except BaseException as error:  # the edge of a request: whatever a method raises is its answer
            if errors.is_ordered(error):
                raise
            code, message = self._status(error, bound)
            self._front.metrics.failed(bound.path, message)
        else:
            code, message = 0, ""
        await self._finish(code, message)
        return code

    async def _answer(self, bound: BoundMethod) -> None:
        assert bound.call is not None
        given = self._requests(bound) if bound.client_streaming else await self._only(bound)
        if not bound.server_streaming:
            await self._answer_once(bound, given)
            return
        async with aclosing(bound.call(given)) as responses:
            if isinstance(responses, Feed):
                responses.push_to(partial(self._push, bound))
            sent = 0
            while (data := await self._next(bound, responses)) is not None:
                await self._send(bound, data)
                sent += 1
                if not sent % STREAM_BATCH:
                    await asyncio.sleep(0)

    async def _answer_once(self, bound: BoundMethod, given: Any) -> None:
        """Build the answer when there is room for it, and hold nothing but its bytes while the client takes them."""
        assert bound.call is not None
        outgoing = self._front.outgoing
        share, expected = self._connection.share, outgoing.expected(bound.path)
        held = await share.room(expected) if expected or share.is_crowded else None
        try:
            data = await self._encoded(bound, await bound.call(given))
            outgoing.learn(bound.path, len(data))
            if held is None and self._send_now(bound, data):
                return
            held = held or Answer(share, 0)
            held.is_of(len(data))
            await self._send(bound, data)
        finally:
            if held is not None:
                held.end()

    async def _next(self, bound: BoundMethod, responses: AsyncIterator[Any]) -> bytes | None:
        """Return the next answer of a stream, None after the last. A client that takes nothing is waited for first."""
        if not bound.client_streaming:
            await self._connection.taking(self._stream)
        response = await anext(responses, None)
        return None if response is None else await self._encoded(bound, response)

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
            if len(payload) < BIG_BYTES:
                return codec.decode(bound.request_class, payload)
            return await self._front.codec.decode(bound.request_class, payload)
        except InvalidArgument as error:
            text = f"grpc: error unmarshalling request: {error.message}"
            raise WireStatus(errors.Internal.code, text) from error

    def _push(self, bound: BoundMethod, message: codec.Encoded) -> bool:
        """Send a message if the client takes all of it now and no message is on its way."""
        if len(message.data) > self._front.max_send_message_size:
            return False
        return self._send_now(bound, message.framed)

    def _send_now(self, bound: BoundMethod, data: bytes) -> bool:
        if self._sending or self._cancelled or len(data) > PUSHED_BYTES:
            return False
        if not self._connection.push(self._stream, b"" if self._headers_sent else _RESPONSE_HEADERS, data):
            return False
        self._headers_sent = True
        self._front.metrics.sent[bound.path] += 1
        return True

    async def _encoded(self, bound: BoundMethod, message: Any) -> bytes:
        self._check_cancelled()
        try:
            small = codec.parts(message, BIG_PARTS) < BIG_PARTS
            payload = codec.encode(message) if small else await self._front.codec.encode_big(message)
        except (TypeError, ValueError, AttributeError) as error:
            raise failures.wrong_answer(bound, message, error) from error
        return frame(payload, self._front.max_send_message_size)

    async def _send(self, bound: BoundMethod, data: bytes) -> None:
        self._sending = True
        try:
            await self._connection.writable()
            if not self._headers_sent:
                self._connection.http2.send_headers(self._stream, _RESPONSE_HEADERS)
                self._headers_sent = True
            await self._connection.send_data(self._stream, data)
        finally:
            self._sending = False
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
        if isinstance(error, ContainerdError | TimeoutError) or getattr(error, "errno", 0) == errno.EROFS:
            return errors.to_status(error)
        failures.tell(log, error, bound)
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
