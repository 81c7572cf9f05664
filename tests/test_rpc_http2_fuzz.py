"""HTTP/2 of the gRPC server under any bytes: random ones, and valid conversations that were damaged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiocontainerd.rpc import http2

fuzz = settings(max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
REQUEST = http2.header_block([(":method", "POST"), (":path", "/a.B/C"), ("content-type", "application/grpc")])
FRAME_BYTES = 9 + http2.MAX_FRAME_BYTES

stream_ids = st.one_of(
    st.sampled_from([0, 1, 2, 3, 5, 7, 9, (1 << 31) - 1, 1 << 31 | 1]), st.integers(0, (1 << 32) - 1)
)
numbers = st.one_of(
    st.sampled_from([0, 1, 8, 16384, 65535, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]),
    st.integers(0, (1 << 32) - 1),
).map(lambda number: number.to_bytes(4))
small_payloads = st.binary(max_size=64)
blocks = st.one_of(st.just(REQUEST), st.binary(max_size=48), small_payloads.map(REQUEST.__add__))
setting = st.tuples(st.integers(0, 8), numbers).map(lambda pair: pair[0].to_bytes(2) + pair[1])


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def frames_of(kind: int, flags: st.SearchStrategy[int], payloads: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(partial(frame, kind), flags, stream_ids, payloads)


frames = st.one_of(
    frames_of(0, st.sampled_from([0, 1, 8, 9]), st.one_of(small_payloads, st.just(bytes(http2.MAX_FRAME_BYTES)))),
    frames_of(1, st.sampled_from([4, 5, 0, 1, 0xC, 0x24, 0x2D]), blocks),
    frames_of(2, st.just(0), st.binary(min_size=5, max_size=5)),
    frames_of(3, st.just(0), numbers),
    frames_of(4, st.sampled_from([0, 0, 1]), st.lists(setting, max_size=4).map(b"".join)),
    frames_of(5, st.just(4), numbers),
    frames_of(6, st.integers(0, 1), st.binary(min_size=8, max_size=8)),
    frames_of(7, st.just(0), st.binary(min_size=8, max_size=20)),
    frames_of(8, st.just(0), numbers),
    frames_of(9, st.sampled_from([0, 4]), blocks),
    frames_of(66, st.integers(0, 255), small_payloads),
)
conversations = st.lists(frames, max_size=40)


def requests_of(paths: list[int]) -> list[bytes]:
    """Return what a well-behaved client sends for some calls, a frame each."""
    sent = [frame(4, 0, 0, b"\0\4\0\1\0\0"), frame(8, 0, 0, b"\0\1\0\0")]
    for number, size in enumerate(paths):
        stream = 2 * number + 1
        sent += [frame(1, 0, stream, REQUEST[:9]), frame(9, 4, stream, REQUEST[9:])]
        sent += [frame(0, 0, stream, bytes(size)), frame(0, 1, stream, b"end"), frame(8, 0, stream, b"\0\0\0\1")]
    return sent


valid = st.lists(st.integers(0, http2.MAX_FRAME_BYTES), max_size=6).map(requests_of)


def flip(position: int, bit: int, sent: list[bytes]) -> list[bytes]:
    """Change one bit of the frames."""
    if not sent:
        return sent
    number = position % len(sent)
    damaged = bytearray(sent[number])
    damaged[position // len(sent) % min(len(damaged), 40)] ^= 1 << bit
    return [*sent[:number], bytes(damaged), *sent[number + 1 :]]


def drop(position: int, _other: int, sent: list[bytes]) -> list[bytes]:
    """Leave one frame out."""
    number = position % (len(sent) or 1)
    return sent[:number] + sent[number + 1 :]


def repeat(position: int, other: int, sent: list[bytes]) -> list[bytes]:
    """Send one frame several times."""
    number = position % (len(sent) or 1)
    return sent[:number] + sent[number : number + 1] * (other + 2) + sent[number + 1 :]


def swap(position: int, other: int, sent: list[bytes]) -> list[bytes]:
    """Send a frame later."""
    number = position % (len(sent) or 1)
    later = number + other + 1
    return sent[:number] + sent[number + 1 : later] + sent[number : number + 1] + sent[later:]


mutations = st.lists(
    st.builds(partial, st.sampled_from([flip, drop, repeat, swap]), st.integers(0, 1 << 16), st.integers(0, 7)),
    max_size=5,
)


def damaged(sent: list[bytes], changes: list[Callable[[list[bytes]], list[bytes]]]) -> list[bytes]:
    for change in changes:
        sent = change(sent)
    return sent


class Server:
    """A server that reads, answers and resets by turns, and checks after each step what must always hold."""

    def __init__(self) -> None:
        self.connection = http2.Http2Connection(self)
        self.requests = self.sent = 0

    def requested(self, stream: http2.Stream) -> None:
        self.requests += 1

    def received(self, stream: http2.Stream) -> None:
        """Read every other time."""
        if len(stream.buffer) % 2:
            stream.buffer.clear()
            self.connection.acknowledge(stream)

    def was_reset(self, stream: http2.Stream) -> None:
        assert stream.id not in self.connection.streams

    def may_send(self, stream: http2.Stream | None) -> None:
        for one in list(self.connection.streams.values()):
            size = min(self.connection.sendable(one), 100)
            if size > 0:
                self.connection.send_data(one, bytes(size))

    def windows_changed(self) -> None:
        self.may_send(None)

    def going_away(self) -> None:
        pass

    def take(self, data: bytes) -> None:
        """Feed bytes until the connection wants no more of them."""
        going = self.connection.feed(data)
        self.check()
        while going:
            going = self.connection.feed(b"")
            self.check()

    def check(self) -> None:
        connection = self.connection
        assert len(connection.streams) <= http2.MAX_STREAMS
        assert 0 <= connection._window <= http2.WINDOW_BYTES
        assert len(connection._in) < FRAME_BYTES
        assert connection._block is None or len(connection._block[2]) <= http2.MAX_HEADER_BYTES
        open_streams = connection.streams.values()
        assert connection.unread == sum(len(stream.buffer) + stream.header_bytes for stream in open_streams)
        assert connection._all_unread.total == connection.unread
        assert sum(len(stream.buffer) for stream in connection.streams.values()) <= http2.WINDOW_BYTES
        for stream in connection.streams.values():
            assert 0 <= stream.window <= http2.WINDOW_BYTES
            assert connection.sendable(stream) <= http2.MAX_WINDOW
            assert not (stream.local_closed and stream.remote_closed)


def converse(pieces: list[bytes], preface: bytes = http2.PREFACE) -> Server:
    """Feed pieces until the connection breaks, which is the only error there is."""
    server = Server()
    try:
        for piece in [preface, *pieces]:
            server.take(piece)
    except http2.ConnectionBroken as broken:
        server.connection.go_away(broken.code)
    for stream in list(server.connection.streams.values()):
        server.connection.send_headers(stream, b"", end=True)
        server.connection.reset(stream)
    assert not server.connection.streams
    assert not server.connection.unread
    return server


def split(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


splits = st.lists(st.integers(0, 50), max_size=30)


@fuzz
@given(st.binary(max_size=400), splits, st.booleans())
def test_any_bytes_in_any_pieces_are_taken_or_break_the_connection(data: bytes, sizes: list[int], greets: bool) -> None:
    converse(split(data, sizes), http2.PREFACE if greets else b"")


@fuzz
@given(conversations, splits)
def test_any_frames_in_any_pieces_are_taken_or_break_the_connection(sent: list[bytes], sizes: list[int]) -> None:
    converse(split(b"".join(sent), sizes))


@fuzz
@given(valid, mutations)
def test_a_damaged_conversation_is_taken_or_breaks_the_connection(
    sent: list[bytes], changes: list[Callable[[list[bytes]], list[bytes]]]
) -> None:
    converse(damaged(sent, changes))


@fuzz
@given(valid, splits)
def test_a_whole_conversation_is_taken_in_any_pieces(sent: list[bytes], sizes: list[int]) -> None:
    assert converse(split(b"".join(sent), sizes)).requests == sum(one[3] == 1 for one in sent)
