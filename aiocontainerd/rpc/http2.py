"""HTTP/2 for a gRPC server (RFC 9113): one connection, bytes in and bytes out, without an event loop.

It does only what a gRPC server needs: no push, no priorities, responses without a dynamic header table. A general
library takes several times as long for a call.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from hpack import Decoder
from hpack.exceptions import HPACKError
from hpack.table import HeaderTable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WINDOW_BYTES = 4 << 20
"""Bytes that a client may send before we acknowledge any, on one stream and on the connection."""
MAX_FRAME_BYTES = 16384
"""Largest frame that either side takes, unless the other side said otherwise. We never do."""
_LARGEST_FRAME_BYTES = (1 << 24) - 1
MAX_HEADER_BYTES = 64 << 10
MAX_WINDOW = (1 << 31) - 1
_STREAM_ID = (1 << 31) - 1
MAX_STREAMS = 10_000
"""Calls at once on one connection. containerd has no limit; each waiting `Tasks.Wait` of a client is a call, so this is
more than a machine has containers. A client that knows the limit waits; a further call of another is refused."""
STEP_WORK = 64
"""Requests that are taken from one connection before others have their turn. Long headers count for several."""
_HEADER_WORK_BYTES = 256
MAX_UNREAD_BYTES = 64 << 20
"""Headers and unread data of all calls of one connection. The call whose data is too much for it is refused: half
received messages could wait for each other for ever."""

MUCH_UNREAD_BYTES = 16 << 20
"""After so much was held unread, memory is worth giving back."""
MAX_IDLE_FRAMES = 10_000
"""Frames without use (pings, settings, resets, empty data) that a client may send in a row within
`IDLE_FRAMES_PERIOD_S`. A client that keeps its connection alive for weeks sends more of them, but slowly."""
IDLE_FRAMES_PERIOD_S = 600.0

NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, COMPRESSION_ERROR = 0, 1, 3, 6, 9
REFUSED_STREAM, ENHANCE_YOUR_CALM = 7, 11
_DEFAULT_WINDOW = 65535
_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = (
    range(10)
)
_ACK = END_STREAM = 0x1
_END_HEADERS, _PADDED, _WITH_PRIORITY = 0x4, 0x8, 0x20
_SET_MAX_STREAMS, _SET_WINDOW, _SET_FRAME, _SET_HEADER_LIST = 3, 4, 5, 6
_SETTING = struct.Struct(">HI")
_HEAD = struct.Struct(">HBBBI")
_NUMBER = struct.Struct(">I")
_CACHED_BLOCKS = 256

Headers = dict[str, str]


class ConnectionBroken(Exception):
    """Error for a broken rule that ends the connection. `code` goes into the GOAWAY frame."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Unread:
    """Bytes that all connections of one server hold unread. Most of many being gone is told by calling `emptied`."""

    def __init__(self, emptied: Callable[[], None] = lambda: None) -> None:
        self._emptied = emptied
        self._peak = 0
        self.total = 0

    def __repr__(self) -> str:
        return f"<Unread {self.total} bytes>"

    def add(self, size: int) -> None:
        """Count bytes that are held, or no longer."""
        self.total += size
        if self.total > self._peak:
            self._peak = self.total
        elif self._peak > MUCH_UNREAD_BYTES and self.total < self._peak // 8:
            self._peak = self.total
            self._emptied()


class Stream:
    """One request and its response. `buffer` holds data that was received and not yet read.

    `counted` bytes of it are part of what the connection holds unread. `send_window` counts from the client's initial
    window, so that a change of that costs the same for any number of streams.
    """

    __slots__ = (
        "buffer",
        "counted",
        "header_bytes",
        "headers",
        "id",
        "local_closed",
        "remote_closed",
        "send_window",
        "unacknowledged",
        "window",
    )

    def __init__(self, stream_id: int, headers: Headers) -> None:
        self.id = stream_id
        self.headers = headers
        self.send_window = 0
        self.window = WINDOW_BYTES
        self.unacknowledged = 0
        self.counted = self.header_bytes = 0
        self.buffer = bytearray()
        self.remote_closed = self.local_closed = False


class Listener(Protocol):
    """The user of a connection, who is told of its events."""

    def requested(self, stream: Stream) -> None:
        """Take note of a new request."""

    def received(self, stream: Stream) -> None:
        """Take note that a stream's buffer grew, or that the client is done sending."""

    def was_reset(self, stream: Stream) -> None:
        """Take note that the client gave up a stream."""

    def may_send(self, stream: Stream | None) -> None:
        """Take note that the window of a stream opened, or with None that of the connection."""

    def windows_changed(self) -> None:
        """Take note that the client changed the windows of all streams."""

    def going_away(self) -> None:
        """Take note that the client ends the connection."""


class _Table(HeaderTable):
    """A header table that notes its changes: each change gives the blocks decoded before another meaning."""

    def __init__(self, changed: Callable[[], None]) -> None:
        super().__init__()
        self._changed = changed

    def add(self, name: bytes, value: bytes) -> None:
        self._changed()
        super().add(name, value)


class Http2Connection:
    """The state of one connection. Output gathers in `out`."""

    def __init__(
        self, listener: Listener, clock: Callable[[], float] = time.monotonic, all_unread: Unread | None = None
    ) -> None:
        self.out = bytearray()
        self._clock = clock
        self.streams: dict[int, Stream] = {}
        self._all_unread = Unread() if all_unread is None else all_unread
        self.max_unread = MAX_UNREAD_BYTES
        self.unread = 0
        """Bytes of headers of open streams and of data that nobody has read."""
        self._listener = listener
        self._in = bytearray()
        self._greeted = False
        self._last_id = 0
        self._block: tuple[int, int, bytearray] | None = None
        self._blocks: dict[bytes, Headers] = {}
        self._decoder = Decoder(MAX_HEADER_BYTES)
        self._decoder.header_table = _Table(self._blocks.clear)
        self._window = WINDOW_BYTES
        self._unacknowledged = 0
        self._idle_frames = self._work = 0
        self._idle_since_s = 0.0
        self._send_window = self._initial_send_window = _DEFAULT_WINDOW
        self._max_frame = MAX_FRAME_BYTES
        self._handlers: dict[int, Callable[[int, int, bytes], None]] = {
            _DATA: self._on_data,
            _HEADERS: self._on_headers,
            _RST_STREAM: self._on_reset,
            _SETTINGS: self._on_settings,
            _PUSH_PROMISE: self._on_push,
            _PING: self._on_ping,
            _GOAWAY: self._on_goaway,
            _WINDOW_UPDATE: self._on_window,
            _CONTINUATION: self._on_continuation,
        }
        self._greet()

    def __repr__(self) -> str:
        return f"<ServerConnection {len(self.streams)} streams, last {self._last_id}>"

    def feed(self, data: bytes) -> bool:
        """Take received bytes. Raises ConnectionBroken.

        Returns True where enough work was done for one step of the loop: feed no bytes to go on.
        """
        buffer = self._in
        buffer += data
        position = self._work = 0
        if not self._greeted and not self._take_preface():
            return False
        while self._work < STEP_WORK and len(buffer) - position >= 9:
            high, low, kind, flags, number = _HEAD.unpack_from(buffer, position)
            length = high << 8 | low
            if length > MAX_FRAME_BYTES:
                raise ConnectionBroken(FRAME_SIZE_ERROR, f"frame of {length} bytes")
            end = position + 9 + length
            if end > len(buffer):
                break
            payload = bytes(buffer[position + 9 : end])
            position = end
            self._on_frame(kind, flags, number & _STREAM_ID, payload)
        del buffer[:position]
        return self._work >= STEP_WORK

    @property
    def send_window(self) -> int:
        """Return how many bytes of data the client takes on all streams together."""
        return self._send_window

    def window_of(self, stream: Stream) -> int:
        """Return how many bytes of data the client takes on a stream, were it alone."""
        return self._initial_send_window + stream.send_window

    def sendable(self, stream: Stream) -> int:
        """Return how many bytes of data the client takes on a stream now."""
        return min(self._initial_send_window + stream.send_window, self._send_window)

    def send_headers(self, stream: Stream, block: bytes, *, end: bool = False) -> None:
        """Send an encoded header block (see `header_block`), unless the stream is gone."""
        if stream.local_closed:
            return
        kind, flags = _HEADERS, END_STREAM if end else 0
        while len(block) > self._max_frame:
            self._frame(kind, flags, stream.id, block[: self._max_frame])
            kind, flags, block = _CONTINUATION, 0, block[self._max_frame :]
        self._frame(kind, flags | _END_HEADERS, stream.id, block)
        if end:
            self._close_local(stream)

    def send_data(self, stream: Stream, data: bytes | memoryview) -> None:
        """Send data of at most `sendable` bytes, unless the stream is gone."""
        if stream.local_closed:
            return
        self._idle_frames = 0
        stream.send_window -= len(data)
        self._send_window -= len(data)
        for start in range(0, len(data), self._max_frame):
            self._frame(_DATA, 0, stream.id, data[start : start + self._max_frame])

    def reset(self, stream: Stream, code: int = NO_ERROR) -> None:
        """End both directions of a stream that is not over."""
        if self.streams.get(stream.id) is stream:
            self._frame(_RST_STREAM, 0, stream.id, _NUMBER.pack(code))
            self._forget(stream)

    def acknowledge(self, stream: Stream, *, ahead: bool = False) -> None:
        """Let the client send as much again as was read of a stream, once that is worth a frame.

        `ahead` is for a message that is half received: what has arrived of it counts as read.
        """
        size, stream.unacknowledged = stream.unacknowledged, 0
        self._acknowledge_connection(size)
        kept = len(stream.buffer)
        if kept != stream.counted:
            self._count(stream, kept)
        refill = WINDOW_BYTES - stream.window - (0 if ahead else kept)
        if refill >= WINDOW_BYTES // 4 and not stream.remote_closed:
            stream.window += refill
            self._frame(_WINDOW_UPDATE, 0, stream.id, _NUMBER.pack(refill))

    def go_away(self, code: int) -> None:
        """Tell the client that the connection ends."""
        self._frame(_GOAWAY, 0, 0, _NUMBER.pack(self._last_id) + _NUMBER.pack(code))

    def lost(self) -> None:
        """Hold nothing any more of a client that is gone."""
        for stream in list(self.streams.values()):
            self._forget(stream)

    def _greet(self) -> None:
        settings = (
            (_SET_MAX_STREAMS, MAX_STREAMS),
            (_SET_WINDOW, WINDOW_BYTES),
            (_SET_HEADER_LIST, MAX_HEADER_BYTES),
        )
        self._frame(_SETTINGS, 0, 0, b"".join(_SETTING.pack(*setting) for setting in settings))
        self._frame(_WINDOW_UPDATE, 0, 0, _NUMBER.pack(WINDOW_BYTES - _DEFAULT_WINDOW))

    def _take_preface(self) -> bool:
        known = min(len(self._in), len(PREFACE))
        if self._in[:known] != PREFACE[:known]:
            raise ConnectionBroken(PROTOCOL_ERROR, "no HTTP/2 preface")
        self._greeted = known == len(PREFACE)
        if self._greeted:
            del self._in[:known]
        return self._greeted

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes | memoryview) -> None:
        length = len(payload)
        self.out += _HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream_id)
        self.out += payload

    def _on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is not None and kind != _CONTINUATION:
            raise ConnectionBroken(PROTOCOL_ERROR, "a header block was interrupted")
        if kind not in (_DATA, _HEADERS) or (kind == _DATA and not payload):
            self._count_idle()
        handler = self._handlers.get(kind)
        if handler is not None:  # frames of other kinds are ignored (RFC 9113, 4.1)
            handler(flags, stream_id, payload)

    def _count_idle(self) -> None:
        """Count a frame that makes work and brings nothing. Raises ConnectionBroken for too many (RFC 9113, 10.5)."""
        if not self._idle_frames:
            self._idle_since_s = self._clock()
        self._idle_frames += 1
        if self._idle_frames > MAX_IDLE_FRAMES:
            if self._clock() - self._idle_since_s < IDLE_FRAMES_PERIOD_S:
                raise ConnectionBroken(ENHANCE_YOUR_CALM, f"{self._idle_frames} frames in a row without use")
            self._idle_frames = 0

    def _known(self, stream_id: int) -> Stream | None:
        """Return the stream of a frame, None if it is over. Raises ConnectionBroken for a stream that never began."""
        if not stream_id or stream_id > self._last_id:
            raise ConnectionBroken(PROTOCOL_ERROR, f"frame of idle stream {stream_id}")
        return self.streams.get(stream_id)

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        if size:
            self._idle_frames = 0
        self._window -= size
        if self._window < 0:
            raise ConnectionBroken(FLOW_CONTROL_ERROR, "more data than the connection's window")
        stream = self._known(stream_id)
        if stream is None or stream.remote_closed:
            self._acknowledge_connection(size)
            return
        stream.window -= size
        if stream.window < 0:
            raise ConnectionBroken(FLOW_CONTROL_ERROR, f"more data than the window of stream {stream_id}")
        stream.buffer += _unpadded(payload) if flags & _PADDED else payload
        stream.unacknowledged += size
        self._count(stream, len(stream.buffer))
        if self.unread > self.max_unread:
            self.reset(stream, ENHANCE_YOUR_CALM)
            self._listener.was_reset(stream)
            return
        stream.remote_closed = bool(flags & END_STREAM)
        self._listener.received(stream)

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id % 2:
            raise ConnectionBroken(PROTOCOL_ERROR, f"request on stream {stream_id}")
        if flags & _PADDED:
            payload = _unpadded(payload)
        if flags & _WITH_PRIORITY:
            payload = payload[5:]
        if flags & _END_HEADERS:
            self._on_block(flags, stream_id, payload)
        else:
            self._block = (flags, stream_id, bytearray(payload))

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is None or self._block[1] != stream_id:
            raise ConnectionBroken(PROTOCOL_ERROR, "a continuation of nothing")
        first_flags, _, block = self._block
        block += payload
        if len(block) > MAX_HEADER_BYTES:
            raise ConnectionBroken(PROTOCOL_ERROR, "too many headers")
        if flags & _END_HEADERS:
            self._block = None
            self._on_block(first_flags, stream_id, bytes(block))

    def _on_block(self, flags: int, stream_id: int, block: bytes) -> None:
        self._work += 1 + len(block) // _HEADER_WORK_BYTES
        headers = self._decoded(block)
        if stream_id > self._last_id:
            self._last_id = stream_id
            if len(self.streams) >= MAX_STREAMS or self.unread + len(block) > self.max_unread:
                self._frame(_RST_STREAM, 0, stream_id, _NUMBER.pack(REFUSED_STREAM))
                return
            stream = self.streams[stream_id] = Stream(stream_id, headers)
            stream.header_bytes = len(block)
            self._hold(len(block))
            stream.remote_closed = bool(flags & END_STREAM)
            self._listener.requested(stream)
            return
        trailed = self.streams.get(stream_id)
        if trailed is not None:
            trailed.remote_closed = True
            self._listener.received(trailed)

    def _decoded(self, block: bytes) -> Headers:
        headers = self._blocks.get(block)
        if headers is None:
            try:
                decoded = self._decoder.decode(block, raw=True)
            except HPACKError as error:
                raise ConnectionBroken(COMPRESSION_ERROR, str(error)) from error
            headers = _first_values(decoded)
            if len(self._blocks) < _CACHED_BLOCKS and all(byte & 0x80 for byte in block):
                # Nothing but references to the table: the same bytes mean the same until the table changes.
                self._blocks[block] = headers
        return headers

    def _on_reset(self, _flags: int, stream_id: int, payload: bytes) -> None:
        _check_size(payload, 4)
        stream = self._known(stream_id)
        if stream is not None:
            self._forget(stream)
            self._listener.was_reset(stream)

    def _on_settings(self, flags: int, _stream_id: int, payload: bytes) -> None:
        if flags & _ACK:
            return
        if len(payload) % _SETTING.size:
            raise ConnectionBroken(FRAME_SIZE_ERROR, "settings cut short")
        for key, value in _SETTING.iter_unpack(payload):
            if key == _SET_WINDOW:
                if value > MAX_WINDOW:
                    raise ConnectionBroken(FLOW_CONTROL_ERROR, f"window of {value} bytes")
                self._initial_send_window = value
            elif key == _SET_FRAME:
                if not MAX_FRAME_BYTES <= value <= _LARGEST_FRAME_BYTES:
                    raise ConnectionBroken(PROTOCOL_ERROR, f"frames of {value} bytes")
                self._max_frame = value
        self._frame(_SETTINGS, _ACK, 0, b"")
        self._listener.windows_changed()

    def _on_push(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        raise ConnectionBroken(PROTOCOL_ERROR, "a client pushes nothing")

    def _on_ping(self, flags: int, _stream_id: int, payload: bytes) -> None:
        _check_size(payload, 8)
        if not flags & _ACK:
            self._frame(_PING, _ACK, 0, payload)

    def _on_goaway(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        self._listener.going_away()

    def _on_window(self, _flags: int, stream_id: int, payload: bytes) -> None:
        _check_size(payload, 4)
        increment = _NUMBER.unpack(payload)[0] & MAX_WINDOW
        if not increment:
            raise ConnectionBroken(PROTOCOL_ERROR, "a window opened by nothing")
        stream: Stream | None = None
        if not stream_id:
            self._send_window += increment
            window = self._send_window
        elif (stream := self._known(stream_id)) is not None:
            stream.send_window += increment
            window = self._initial_send_window + stream.send_window
        else:
            return
        if window > MAX_WINDOW:
            raise ConnectionBroken(FLOW_CONTROL_ERROR, "a window beyond its limit")
        self._listener.may_send(stream)

    def _close_local(self, stream: Stream) -> None:
        stream.local_closed = True
        if stream.remote_closed:
            self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        stream.local_closed = stream.remote_closed = True
        if self.streams.pop(stream.id, None) is not None:
            self._acknowledge_connection(stream.unacknowledged)
            stream.unacknowledged = 0
            stream.buffer = bytearray()
            self._hold(-stream.header_bytes - stream.counted)
            stream.counted = 0

    def _count(self, stream: Stream, size: int) -> None:
        """Count so many unread bytes for a stream."""
        self._hold(size - stream.counted)
        stream.counted = size

    def _hold(self, size: int) -> None:
        self.unread += size
        self._all_unread.add(size)

    def _acknowledge_connection(self, size: int) -> None:
        self._unacknowledged += size
        if self._unacknowledged >= WINDOW_BYTES // 4:
            self._window += self._unacknowledged
            self._frame(_WINDOW_UPDATE, 0, 0, _NUMBER.pack(self._unacknowledged))
            self._unacknowledged = 0


def header_block(headers: Iterable[tuple[str, str]]) -> bytes:
    """Return headers as literals that no table remembers (RFC 7541, 6.2.2), so that equal blocks are encoded once."""
    out = bytearray()
    for name, value in headers:
        out.append(0)
        for text in (name, value):
            data = text.encode()
            out += _prefixed_length(len(data)) + data
    return bytes(out)


def _prefixed_length(length: int) -> bytes:
    """Return the encoding of an integer with a prefix of seven bits (RFC 7541, 5.1)."""
    if length < 127:
        return bytes((length,))
    out, length = bytearray((127,)), length - 127
    while length >= 128:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)


def _first_values(headers: Iterable[Any]) -> Headers:
    values: Headers = {}
    for name, value in headers:
        values.setdefault(bytes(name).decode("utf-8", "replace"), bytes(value).decode("utf-8", "replace"))
    return values


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise ConnectionBroken(PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


def _check_size(payload: bytes, size: int) -> None:
    if len(payload) != size:
        raise ConnectionBroken(FRAME_SIZE_ERROR, f"frame of {len(payload)} bytes where {size} belong")
