"""ttrpc frames and streams as transcripts: bytes in, events and bytes out (facts/runtime 1.1-1.6)."""

from __future__ import annotations

import struct

import pytest

from aiocontainerd import api
from aiocontainerd.errors import ResourceExhausted
from aiocontainerd.rpc.ttrpc.wire import (
    MAX_LENGTH,
    ClientConnection,
    Flags,
    FrameReader,
    FrameType,
    MessageReceived,
    PeerDone,
    RequestReceived,
    ResponseReceived,
    TtrpcConnection,
    encode_frame,
)

TASK = "containerd.task.v3.Task"


def server() -> TtrpcConnection:
    return TtrpcConnection(lambda _service, method: method == "Stream")


def request(stream_id: int, method: str = "Create", *, flags: int = 0, payload: bytes = b"x") -> bytes:
    body = bytes(api.ttrpc.Request(service=TASK, method=method, payload=payload))
    return encode_frame(stream_id, FrameType.REQUEST, flags, body)


def data(stream_id: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return encode_frame(stream_id, FrameType.DATA, flags, payload)


def answers(connection: TtrpcConnection) -> list[tuple[int, int, str, bytes]]:
    """Return stream, code, message and payload of each response of the server."""
    client = ClientConnection()
    for _ in range(50):
        client.request(TASK, "Create", b"")
    sent = connection.data_to_send()
    found = []
    for frame in FrameReader().feed(sent):
        if frame.type == FrameType.RESPONSE:
            response = api.ttrpc.Response.parse(frame.payload or b"")
            status = response.status or api.rpc.Status()
            found.append((frame.stream_id, status.code, status.message, response.payload))
    return found


def test_a_header_is_length_stream_type_and_flags_in_big_endian() -> None:
    assert encode_frame(3, FrameType.DATA, Flags.REMOTE_CLOSED | Flags.NO_DATA, b"abc") == bytes.fromhex(
        "00000003 00000003 03 05 616263"
    )


def test_frames_are_cut_alike_however_the_bytes_are_split() -> None:
    stream = request(1) + request(3) + data(3, b"")
    whole = list(FrameReader().feed(stream))
    reader = FrameReader()
    assert [frame for byte in stream for frame in reader.feed(bytes([byte]))] == whole
    assert [(f.stream_id, f.type) for f in whole] == [(1, 1), (3, 1), (3, 3)]


def test_a_request_carries_method_timeout_and_the_first_value_of_each_metadata_key() -> None:
    client = ClientConnection()
    assert client.request(TASK, "Create", b"abc", timeout_nano=1_500_000_000, metadata={"Key": "v"}) == 1
    assert list(server().receive(client.data_to_send())) == [
        RequestReceived(1, TASK, "Create", b"abc", 1.5, {"key": "v"})
    ]


def test_client_streams_are_odd_and_rise_by_two() -> None:
    client = ClientConnection()
    assert [client.request(TASK, "Create", b"") for _ in range(3)] == [1, 3, 5]


def test_a_unary_call_is_answered_once() -> None:
    client, peer = ClientConnection(), server()
    client.request(TASK, "Create", b"abc")
    list(peer.receive(client.data_to_send()))
    peer.respond(1, b"result")
    answer = peer.data_to_send()
    assert list(client.receive(answer)) == [ResponseReceived(1, 0, "", b"result")]
    assert list(client.receive(answer)) == []


def test_an_empty_result_is_a_response_of_no_bytes() -> None:
    peer = server()
    peer.respond(1, b"")
    assert peer.data_to_send() == bytes.fromhex("00000000 00000001 02 00")


def test_an_error_travels_as_code_and_message() -> None:
    client, peer = ClientConnection(), server()
    client.request(TASK, "Create", b"")
    peer.fail(1, 5, "task x: not found")
    assert list(client.receive(peer.data_to_send())) == [ResponseReceived(1, 5, "task x: not found", b"")]


@pytest.mark.parametrize(
    ("sent", "stream_id", "message"),
    [
        (request(2), 2, "StreamID must be odd for client initiated streams"),
        (request(3) + request(3), 3, "StreamID cannot be re-used and must increment"),
        (request(5) + request(3), 3, "StreamID cannot be re-used and must increment"),
        (data(7, b"x"), 7, "StreamID is no longer active"),
        (request(1, "Create") + data(1, b"x"), 1, "StreamID is no longer active"),
        (
            request(1, "Stream", flags=Flags.REMOTE_OPEN) + data(1, b"x", Flags.REMOTE_CLOSED),
            1,
            "data close message cannot include data",
        ),
        (
            request(1, "Stream", flags=Flags.REMOTE_CLOSED) + data(1, b"x"),
            1,
            "data handling error: ttrpc: stream closed",
        ),
    ],
)
def test_a_breach_is_answered_on_its_stream_with_code_3(sent: bytes, stream_id: int, message: str) -> None:
    peer = server()
    list(peer.receive(sent))
    assert answers(peer) == [(stream_id, 3, message, b"")]


def test_a_request_that_is_no_message_is_answered_with_code_3() -> None:
    peer = server()
    assert list(peer.receive(encode_frame(1, FrameType.REQUEST, 0, b"\x0a\x02\xff\xff"))) == []
    [(stream_id, code, message, _)] = answers(peer)
    assert (stream_id, code) == (1, 3)
    assert message.startswith("unmarshal request error: ")


def test_an_oversize_payload_is_skipped_and_answered_and_the_connection_goes_on() -> None:
    peer = server()
    length = MAX_LENGTH + 1
    header = struct.pack(">IIBB", length, 1, FrameType.REQUEST, 0)
    assert list(peer.receive(header + b"x" * 100)) == []
    assert answers(peer) == [(1, 8, f"message length {length} exceed maximum message size of 4194304", b"")]
    events = list(peer.receive(b"x" * (length - 100) + request(3)))
    assert [event.stream_id for event in events] == [3]


def test_a_sender_refuses_an_oversize_request_without_using_a_stream_id() -> None:
    client = ClientConnection()
    with pytest.raises(ResourceExhausted, match="exceed maximum message size of 4194304"):
        client.request(TASK, "Create", b"x" * MAX_LENGTH)
    assert client.data_to_send() == b""
    assert client.request(TASK, "Create", b"") == 1


def test_a_result_over_the_limit_becomes_an_error() -> None:
    peer = server()
    peer.respond(1, b"x" * MAX_LENGTH)
    [(stream_id, code, message, _)] = answers(peer)
    assert (stream_id, code) == (1, 8)
    assert message.endswith("exceed maximum message size of 4194304")


def test_an_oversize_response_fails_its_call_only() -> None:
    client = ClientConnection()
    client.request(TASK, "Create", b"")
    client.request(TASK, "Create", b"")
    length = MAX_LENGTH + 1
    first = list(client.receive(struct.pack(">IIBB", length, 1, FrameType.RESPONSE, 0) + b"x" * length))
    second = list(client.receive(encode_frame(3, FrameType.RESPONSE, 0, b"")))
    assert first == [ResponseReceived(1, 8, f"message length {length} exceed maximum message size of 4194304", b"")]
    assert second == [ResponseReceived(3, 0, "", b"")]


def test_unknown_frame_types_are_ignored_by_a_server() -> None:
    peer = server()
    frame = struct.pack(">IIBB", 1, 1, 9, 0) + b"x"
    assert [e.stream_id for e in peer.receive(frame + request(1))] == [1]
    assert peer.data_to_send() == b""


def test_a_client_drops_frames_of_streams_it_does_not_have() -> None:
    client = ClientConnection()
    stream_id = client.request(TASK, "Create", b"")
    client.forget(stream_id)
    assert list(client.receive(encode_frame(1, FrameType.RESPONSE, 0, b"") + data(9, b"x"))) == []


def test_a_bidirectional_stream() -> None:
    client, peer = ClientConnection(), server()
    client.request(TASK, "Stream", b"", flags=Flags.REMOTE_OPEN)
    client.send_message(1, b"one")
    client.send_message(1, b"")
    client.send_end(1)
    assert list(peer.receive(client.data_to_send())) == [
        RequestReceived(1, TASK, "Stream", None, None, {}),
        MessageReceived(1, b"one"),
        MessageReceived(1, b""),
        PeerDone(1),
    ]
    peer.send_message(1, b"two")
    peer.finish(1)
    assert list(client.receive(peer.data_to_send())) == [MessageReceived(1, b"two"), PeerDone(1)]


def test_a_server_streams_single_request_may_be_empty() -> None:
    client, peer = ClientConnection(), server()
    client.request(TASK, "Stream", b"", flags=Flags.REMOTE_CLOSED)
    assert list(peer.receive(client.data_to_send())) == [
        RequestReceived(1, TASK, "Stream", b"", None, {}),
        PeerDone(1),
    ]


def test_the_last_message_of_a_stream_may_carry_its_end() -> None:
    client = ClientConnection()
    client.request(TASK, "Stream", b"", flags=Flags.REMOTE_CLOSED)
    assert list(client.receive(data(1, b"last", Flags.REMOTE_CLOSED))) == [MessageReceived(1, b"last"), PeerDone(1)]


@pytest.mark.parametrize("piece", ["7801", "2a00", "2a0030ff"])
def test_a_request_of_much_beside_its_payload_is_refused_and_the_connection_goes_on(piece: str) -> None:
    connection = server()
    body = bytes(api.ttrpc.Request(service=TASK, method="Create", payload=b"x")) + bytes.fromhex(piece) * (1 << 19)
    assert list(connection.receive(encode_frame(1, FrameType.REQUEST, 0, body))) == []
    [(stream_id, code, text, _)] = answers(connection)
    assert (stream_id, code) == (1, ResourceExhausted.code)
    assert "beside its payload, more than 65536" in text
    assert len(list(connection.receive(request(3)))) == 1


def test_a_payload_may_be_as_long_as_a_frame() -> None:
    [event] = server().receive(request(1, payload=bytes(MAX_LENGTH - 100)))
    assert isinstance(event, RequestReceived)
    assert event.payload == bytes(MAX_LENGTH - 100)
