"""ttrpc without input or output: bytes in, events out, bytes to send (facts/runtime 1.1-1.6).

A connection object holds what one side knows of the streams. `receive` takes received bytes and returns events. The
protocol's own answers and everything sent gather until `data_to_send` returns them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum, IntFlag

import msgspec

from aiocontainerd import api
from aiocontainerd.errors import InvalidArgument, ResourceExhausted
from aiocontainerd.wire import codec

MAX_LENGTH = 4 << 20
"""Largest payload of a frame, bytes."""
MAX_METADATA_BYTES = 64 << 10
"""Most bytes of a request beside its names and payload. gRPC's headers have the same limit."""

_HEADER = struct.Struct(">IIBB")


class FrameType(IntEnum):
    """What a frame carries. Values beyond these are ignored."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


class Flags(IntFlag):
    """Flags of a frame."""

    NONE = 0
    REMOTE_CLOSED = 1
    REMOTE_OPEN = 2
    NO_DATA = 4


class Frame(msgspec.Struct, frozen=True):
    """One received frame of the announced `length`. `payload` is None if it was too large and skipped."""

    stream_id: int
    type: int
    flags: int
    length: int
    payload: bytes | None


class RequestReceived(msgspec.Struct, frozen=True):
    """A client calls. `payload` is a streaming method's first message, None if the client sends it later."""

    stream_id: int
    service: str
    method: str
    payload: bytes | None
    timeout_s: float | None
    metadata: dict[str, str]


class MessageReceived(msgspec.Struct, frozen=True):
    """A message of a stream."""

    stream_id: int
    payload: bytes


class PeerDone(msgspec.Struct, frozen=True):
    """The other side sends no more messages on a stream."""

    stream_id: int


class ResponseReceived(msgspec.Struct, frozen=True):
    """The end of a call: status code 0 with the result, or an error's code and message."""

    stream_id: int
    code: int
    message: str
    payload: bytes


ServerEvent = RequestReceived | MessageReceived | PeerDone
ClientEvent = ResponseReceived | MessageReceived | PeerDone


def oversize_message(length: int) -> str:
    """Return the text of the error for a payload over the limit."""
    return f"message length {length} exceed maximum message size of {MAX_LENGTH}"


def encode_frame(stream_id: int, kind: FrameType, flags: int, payload: bytes) -> bytes:
    """Return the bytes of a frame. Raises ResourceExhausted for a payload over the limit."""
    if len(payload) > MAX_LENGTH:
        raise ResourceExhausted(oversize_message(len(payload)))
    return _HEADER.pack(len(payload), stream_id, kind, flags) + payload


class FrameReader:
    """Reader that cuts a byte stream into frames. It drops the bytes of a payload over the limit."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._to_skip = 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Return the frames that `data` completes."""
        self._buffer += data
        while True:
            self._skip()
            if self._to_skip or len(self._buffer) < _HEADER.size:
                return
            length, stream_id, kind, flags = _HEADER.unpack_from(self._buffer)
            if length > MAX_LENGTH:
                del self._buffer[: _HEADER.size]
                self._to_skip = length
                yield Frame(stream_id, kind, flags, length, None)
                continue
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield Frame(stream_id, kind, flags, length, payload)

    @property
    def between_frames(self) -> bool:
        """Return whether no frame is half received."""
        return not self._buffer and not self._to_skip

    def _skip(self) -> None:
        skipped = min(self._to_skip, len(self._buffer))
        del self._buffer[:skipped]
        self._to_skip -= skipped


class _Connection:
    def __init__(self) -> None:
        self._reader = FrameReader()
        self._out: list[bytes] = []

    @property
    def at_rest(self) -> bool:
        """Return whether nothing is half received and nothing waits to be sent."""
        return self._reader.between_frames and not self._out

    def data_to_send(self) -> bytes:
        """Return everything to write now, once."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def send_message(self, stream_id: int, payload: bytes) -> None:
        """Send one message of a stream. Raises ResourceExhausted for one over the limit."""
        self._put(stream_id, FrameType.DATA, Flags.NONE, payload)

    def send_end(self, stream_id: int) -> None:
        """Say that no more messages of this side follow on a stream."""
        self._put(stream_id, FrameType.DATA, Flags.REMOTE_CLOSED | Flags.NO_DATA, b"")

    def _put(self, stream_id: int, kind: FrameType, flags: int, payload: bytes) -> None:
        self._out.append(encode_frame(stream_id, kind, flags, payload))


class TtrpcConnection(_Connection):
    """The server's side. `is_streaming(service, method)`, not the flags, decides how a request is read."""

    def __init__(self, is_streaming: Callable[[str, str], bool], last_id: int = 0) -> None:
        super().__init__()
        self._is_streaming = is_streaming
        self._last_id = last_id
        self._open: dict[int, bool] = {}

    def __repr__(self) -> str:
        return f"<ttrpc ServerConnection last stream {self._last_id}, {len(self._open)} streams open>"

    @property
    def last_id(self) -> int:
        """Return the newest stream that the client has opened."""
        return self._last_id

    def receive(self, data: bytes) -> Iterator[ServerEvent]:
        """Return the events of `data`. Breaches of the protocol are answered, not raised."""
        for frame in self._reader.feed(data):
            yield from self._take(frame)

    def respond(self, stream_id: int, payload: bytes) -> None:
        """End a call with its result, or with RESOURCE_EXHAUSTED if the result is over the limit."""
        response = codec.encode(api.ttrpc.Response(payload=payload)) if payload else b""
        if len(response) > MAX_LENGTH:
            self.fail(stream_id, ResourceExhausted.code, oversize_message(len(response)))
            return
        self._open.pop(stream_id, None)
        self._put(stream_id, FrameType.RESPONSE, Flags.NONE, response)

    def fail(self, stream_id: int, code: int, message: str) -> None:
        """End a call with a status."""
        self._open.pop(stream_id, None)
        self._put_status(stream_id, code, message)

    def finish(self, stream_id: int) -> None:
        """End a server's stream with success."""
        self._open.pop(stream_id, None)
        self.send_end(stream_id)

    def _take(self, frame: Frame) -> Iterator[ServerEvent]:
        if frame.payload is None:
            self.fail(frame.stream_id, ResourceExhausted.code, oversize_message(frame.length))
        elif frame.stream_id % 2 != 1:
            self._refuse(frame.stream_id, "StreamID must be odd for client initiated streams")
        elif frame.type == FrameType.DATA:
            yield from self._data(frame, frame.payload)
        elif frame.type == FrameType.REQUEST:
            yield from self._request(frame, frame.payload)

    def _put_status(self, stream_id: int, code: int, message: str) -> None:
        response = api.ttrpc.Response(status=api.rpc.Status(code=code, message=message))
        self._put(stream_id, FrameType.RESPONSE, Flags.NONE, codec.encode(response))

    def _refuse(self, stream_id: int, message: str) -> None:
        self.fail(stream_id, InvalidArgument.code, message)

    def _request(self, frame: Frame, payload: bytes) -> Iterator[ServerEvent]:
        stream_id = frame.stream_id
        if stream_id <= self._last_id:
            self._put_status(stream_id, InvalidArgument.code, "StreamID cannot be re-used and must increment")
            return
        self._last_id = stream_id
        beside = len(payload)
        if beside > MAX_METADATA_BYTES:
            beside = codec.work_to_decode(api.ttrpc.Request, payload)
        if beside > MAX_METADATA_BYTES:
            text = f"request has {beside} bytes beside its payload, more than {MAX_METADATA_BYTES}"
            self.fail(stream_id, ResourceExhausted.code, text)
            return
        try:
            request = codec.decode(api.ttrpc.Request, payload)
        except InvalidArgument as error:
            self._refuse(stream_id, f"unmarshal request error: {error.message}")
            return
        streaming = self._is_streaming(request.service, request.method)
        more = streaming and bool(frame.flags & Flags.REMOTE_OPEN)
        yield RequestReceived(
            stream_id,
            request.service,
            request.method,
            None if more and not request.payload else request.payload,
            request.timeout_nano / 1e9 if request.timeout_nano > 0 else None,
            _first_values(request.metadata),
        )
        if streaming:
            self._open[stream_id] = more
            if not more:
                yield PeerDone(stream_id)

    def _data(self, frame: Frame, payload: bytes) -> Iterator[ServerEvent]:
        stream_id = frame.stream_id
        if stream_id not in self._open:
            self._refuse(stream_id, "StreamID is no longer active")
            return
        if not self._open[stream_id]:
            self._refuse(stream_id, "data handling error: ttrpc: stream closed")
            return
        if frame.flags & Flags.REMOTE_CLOSED:
            self._open[stream_id] = False
            if payload:
                self._refuse(stream_id, "data close message cannot include data")
            yield PeerDone(stream_id)
        elif not frame.flags & Flags.NO_DATA:
            yield MessageReceived(stream_id, payload)


class ClientConnection(_Connection):
    """The client's side. Frames of unknown streams are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self._next_id = 1
        self._streams: set[int] = set()

    def __repr__(self) -> str:
        return f"<ttrpc ClientConnection next stream {self._next_id}, {len(self._streams)} open>"

    def request(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        flags: Flags = Flags.NONE,
        timeout_nano: int = 0,
        metadata: Mapping[str, str] | None = None,
    ) -> int:
        """Open a stream with a request and return its id. Raises ResourceExhausted over the size limit."""
        pairs = [api.ttrpc.KeyValue(key=k.lower(), value=v) for k, v in (metadata or {}).items()]
        request = api.ttrpc.Request(
            service=service, method=method, payload=payload, timeout_nano=timeout_nano, metadata=pairs
        )
        stream_id = self._next_id
        self._put(stream_id, FrameType.REQUEST, flags, codec.encode(request))
        self._next_id += 2
        self._streams.add(stream_id)
        return stream_id

    def forget(self, stream_id: int) -> None:
        """Drop further frames of a stream; there is no way to tell the server."""
        self._streams.discard(stream_id)

    def receive(self, data: bytes) -> Iterator[ClientEvent]:
        """Return the events of `data`."""
        for frame in self._reader.feed(data):
            if frame.stream_id in self._streams:
                yield from self._take(frame)

    def _take(self, frame: Frame) -> Iterator[ClientEvent]:
        stream_id = frame.stream_id
        if frame.payload is None:
            self.forget(stream_id)
            yield ResponseReceived(stream_id, ResourceExhausted.code, oversize_message(frame.length), b"")
        elif frame.type == FrameType.RESPONSE:
            self.forget(stream_id)
            yield _response(stream_id, frame.payload)
        elif frame.type == FrameType.DATA:
            if not frame.flags & Flags.NO_DATA:
                yield MessageReceived(stream_id, frame.payload)
            if frame.flags & Flags.REMOTE_CLOSED:
                self.forget(stream_id)
                yield PeerDone(stream_id)


def _response(stream_id: int, payload: bytes) -> ResponseReceived:
    try:
        response = codec.decode(api.ttrpc.Response, payload)
    except InvalidArgument as error:
        return ResponseReceived(stream_id, InvalidArgument.code, error.message, b"")
    if response.status is not None and response.status.code:
        return ResponseReceived(stream_id, response.status.code, response.status.message, b"")
    return ResponseReceived(stream_id, 0, "", response.payload)


def _first_values(metadata: list[api.ttrpc.KeyValue]) -> dict[str, str]:
    values: dict[str, str] = {}
    for pair in metadata:
        values.setdefault(pair.key.lower(), pair.value)
    return values
