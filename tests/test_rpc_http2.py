"""HTTP/2 of the gRPC server: bytes in, calls and bytes out."""

from __future__ import annotations

from typing import NoReturn

import pytest

from aiocontainerd.rpc import http2

REQUEST = http2.header_block([(":method", "POST"), (":path", "/a.B/C")])


class Recorder:
    """A listener that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []
        self.now_s = 0.0
        self.connection = http2.Http2Connection(self, lambda: self.now_s)
        self.connection.feed(http2.PREFACE)
        self.connection.out.clear()

    def requested(self, stream: http2.Stream) -> None:
        self.told.append(("requested", stream.id))

    def received(self, stream: http2.Stream) -> None:
        self.told.append(("received", stream.id))

    def was_reset(self, stream: http2.Stream) -> None:
        self.told.append(("reset", stream.id))

    def may_send(self, stream: http2.Stream | None) -> None:
        self.told.append(("may send", 0))

    def windows_changed(self) -> None:
        self.told.append(("may send", 0))

    def going_away(self) -> None:
        self.told.append(("going away", 0))


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def test_frames_may_arrive_byte_by_byte() -> None:
    client = Recorder()
    for byte in frame(1, 4, 1, REQUEST) + frame(0, 1, 1, b"abc"):
        client.connection.feed(bytes((byte,)))
    assert client.told == [("requested", 1), ("received", 1)]
    assert client.connection.streams[1].buffer == b"abc"
    assert client.connection.streams[1].headers[":path"] == "/a.B/C"


def test_a_header_block_may_be_continued() -> None:
    client = Recorder()
    client.connection.feed(frame(1, 0, 1, REQUEST[:5]) + frame(9, 4, 1, REQUEST[5:]))
    assert client.connection.streams[1].headers[":path"] == "/a.B/C"


def test_data_is_padded_or_not() -> None:
    client = Recorder()
    client.connection.feed(frame(1, 4, 1, REQUEST) + frame(0, 8, 1, b"\x02abc\0\0"))
    assert client.connection.streams[1].buffer == b"abc"


def test_a_ping_is_answered() -> None:
    client = Recorder()
    client.connection.feed(frame(6, 0, 0, b"12345678"))
    assert client.connection.out == frame(6, 1, 0, b"12345678")


def test_a_stream_ends_when_both_sides_have_ended() -> None:
    client = Recorder()
    client.connection.feed(frame(1, 5, 1, REQUEST))
    client.connection.send_headers(client.connection.streams[1], b"", end=True)
    assert not client.connection.streams


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(0, 0, 1, b"x"), http2.PROTOCOL_ERROR),
        (frame(1, 4, 2, REQUEST), http2.PROTOCOL_ERROR),
        (frame(1, 0, 1, REQUEST) + frame(6, 0, 0, b"12345678"), http2.PROTOCOL_ERROR),
        (frame(1, 4, 1, b"\xff\xff\xff\xff\x0f"), http2.COMPRESSION_ERROR),
        (frame(6, 0, 0, b"short"), http2.FRAME_SIZE_ERROR),
        (frame(8, 0, 0, b"\0\0\0\0"), http2.PROTOCOL_ERROR),
        (frame(8, 0, 0, b"\x7f\xff\xff\xff"), http2.FLOW_CONTROL_ERROR),
        (b"\0\xff\xff\0\0\0\0\0\1", http2.FRAME_SIZE_ERROR),
        (frame(4, 0, 0, b"\0\5\0\0\x3f\xff"), http2.PROTOCOL_ERROR),
        (frame(4, 0, 0, b"\0\5\1\0\0\0"), http2.PROTOCOL_ERROR),
    ],
)
def test_a_broken_rule_ends_the_connection(sent: bytes, code: int) -> None:
    with pytest.raises(http2.ConnectionBroken) as caught:
        Recorder().connection.feed(sent)
    assert caught.value.code == code


def test_no_preface_no_connection() -> None:
    with pytest.raises(http2.ConnectionBroken):
        http2.Http2Connection(Recorder()).feed(b"GET / HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "sent",
    [frame(6, 0, 0, b"12345678"), frame(4, 0, 0, b""), frame(0, 0, 1, b"")],
    ids=["pings", "settings", "empty data"],
)
def test_frames_without_use_end_the_connection_when_there_are_too_many(sent: bytes) -> None:
    client = Recorder()
    client.connection.feed(frame(1, 4, 1, REQUEST))
    for _ in range(http2.MAX_IDLE_FRAMES):
        client.connection.feed(sent)
    with pytest.raises(http2.ConnectionBroken) as broken:
        client.connection.feed(sent)
    assert broken.value.code == http2.ENHANCE_YOUR_CALM


def test_requests_that_are_reset_at_once_end_the_connection_when_there_are_too_many() -> None:
    client = Recorder()
    for number in range(1, 2 * http2.MAX_IDLE_FRAMES + 1, 2):
        client.connection.feed(frame(1, 4, number, REQUEST) + frame(3, 0, number, b"\0\0\0\x08"))
    last = 2 * http2.MAX_IDLE_FRAMES + 1
    with pytest.raises(http2.ConnectionBroken) as broken:
        client.connection.feed(frame(1, 4, last, REQUEST) + frame(3, 0, last, b"\0\0\0\x08"))
    assert broken.value.code == http2.ENHANCE_YOUR_CALM


def test_a_busy_connection_may_ping_for_ever() -> None:
    client = Recorder()
    client.connection.feed(frame(1, 4, 1, REQUEST))
    stream = client.connection.streams[1]
    for _ in range(2 * http2.MAX_IDLE_FRAMES):
        client.connection.feed(frame(6, 0, 0, b"12345678"))
        client.connection.send_data(stream, b"")
        client.connection.out.clear()


def test_a_connection_that_waits_for_weeks_may_be_kept_alive_by_pings() -> None:
    client = Recorder()
    client.connection.feed(frame(1, 4, 1, REQUEST))
    for _ in range(2 * http2.MAX_IDLE_FRAMES):
        client.connection.feed(frame(6, 0, 0, b"12345678"))
        client.now_s += 10.0


def test_many_requests_are_taken_in_steps() -> None:
    client = Recorder()
    sent = b"".join(frame(1, 5, 2 * number + 1, REQUEST) for number in range(150))
    assert client.connection.feed(sent)
    assert len(client.told) == 64
    assert client.connection.feed(b"")
    assert len(client.told) == 128
    assert not client.connection.feed(b"")
    assert [stream_id for _, stream_id in client.told] == list(range(1, 300, 2))


def test_long_headers_count_for_several_requests() -> None:
    client = Recorder()
    block = REQUEST + http2.header_block([("a", "b" * 8000)])
    assert client.connection.feed(b"".join(frame(1, 5, 2 * number + 1, block) for number in range(10)))
    assert len(client.told) == 2


def test_more_calls_than_the_limit_are_refused_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "MAX_STREAMS", 2)
    client = Recorder()
    client.connection.feed(b"".join(frame(1, 5, stream, REQUEST) for stream in (1, 3, 5)))
    assert client.told == [("requested", 1), ("requested", 3)]
    assert client.connection.out == frame(3, 0, 5, bytes((0, 0, 0, http2.REFUSED_STREAM)))
    client.connection.send_headers(client.connection.streams[1], http2.header_block([("a", "b")]), end=True)
    client.connection.feed(frame(1, 5, 7, REQUEST))
    assert client.told[-1] == ("requested", 7)


def test_the_limit_of_calls_is_told() -> None:
    greeting = http2.Http2Connection(Recorder()).out
    assert http2.MAX_STREAMS == 10_000
    assert b"\x00\x03" + http2.MAX_STREAMS.to_bytes(4) in greeting


class UnlistedStreams(dict[int, http2.Stream]):
    """Streams that nobody may go through one by one."""

    def values(self) -> NoReturn:
        raise AssertionError("every stream was visited")

    __iter__ = items = values


def test_a_new_initial_window_holds_for_open_streams_and_costs_the_same_for_any_number_of_them() -> None:
    client = Recorder()
    client.connection.feed(frame(8, 0, 0, b"\0\1\0\0") + frame(1, 4, 1, REQUEST))
    stream = client.connection.streams[1]
    client.connection.send_data(stream, b"x" * 1000)
    client.connection.streams = UnlistedStreams(client.connection.streams)
    client.connection.feed(frame(4, 0, 0, (b"\0\4" + (70000).to_bytes(4)) * 2000 + b"\0\4" + (1500).to_bytes(4)))
    assert client.connection.sendable(stream) == 500
    client.connection.feed(frame(4, 0, 0, b"\0\4" + (100).to_bytes(4)))
    assert client.connection.sendable(stream) == -900
    client.connection.feed(frame(8, 0, 1, (1000).to_bytes(4)))
    assert client.connection.sendable(stream) == 100


def test_a_call_whose_data_is_more_than_a_connection_may_leave_unread_is_refused_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http2, "MAX_UNREAD_BYTES", 100_000)
    client = Recorder()
    half = bytes(16_000)
    for stream in range(1, 13, 2):
        client.connection.feed(frame(1, 4, stream, REQUEST) + frame(0, 0, stream, half))
    assert 96_000 < client.connection.unread <= 100_000
    client.connection.out.clear()
    client.connection.feed(frame(0, 0, 5, half))
    assert client.told[-1] == ("reset", 5)
    assert frame(3, 0, 5, bytes((0, 0, 0, http2.ENHANCE_YOUR_CALM))) in client.connection.out
    client.connection.feed(frame(0, 0, 1, bytes(10_000)))
    assert len(client.connection.streams[1].buffer) == 26_000


def test_a_call_whose_headers_are_more_than_a_connection_may_leave_unread_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http2, "MAX_UNREAD_BYTES", 20_000)
    client = Recorder()
    block = REQUEST + http2.header_block([("a", "b" * 8000)])
    for stream in (1, 3, 5):
        client.connection.feed(frame(1, 4, stream, block))
    assert client.told == [("requested", 1), ("requested", 3)]
    client.connection.lost()
    assert client.connection.unread == 0


def test_a_stream_holds_one_window_of_messages_that_nobody_reads() -> None:
    client = Recorder()
    client.connection.feed(frame(1, 4, 1, REQUEST))
    stream = client.connection.streams[1]
    for _ in range(20):
        while stream.window:
            client.connection.feed(frame(0, 0, 1, bytes(min(stream.window, http2.MAX_FRAME_BYTES))))
        assert len(stream.buffer) <= http2.WINDOW_BYTES
        del stream.buffer[: 1 << 20]
        client.connection.acknowledge(stream)


def test_a_message_longer_than_the_window_goes_on() -> None:
    client = Recorder()
    client.connection.feed(frame(1, 4, 1, REQUEST))
    stream = client.connection.streams[1]
    while len(stream.buffer) < 16 << 20:
        client.connection.feed(frame(0, 0, 1, bytes(http2.MAX_FRAME_BYTES)))
        client.connection.acknowledge(stream, ahead=True)


def test_that_most_of_many_unread_bytes_are_gone_is_told_once() -> None:
    told: list[int] = []
    unread = http2.Unread(lambda: told.append(unread.total))
    unread.add(http2.MUCH_UNREAD_BYTES)
    unread.add(-http2.MUCH_UNREAD_BYTES)
    assert told == []
    for _ in range(8):
        unread.add(http2.MUCH_UNREAD_BYTES)
    for _ in range(7):
        unread.add(-http2.MUCH_UNREAD_BYTES)
    assert told == []
    unread.add(-http2.MUCH_UNREAD_BYTES + 100)
    unread.add(-100)
    assert told == [100]
