"""Any bytes and texts from a client: protocol buffers, ttrpc frames and filters take or refuse them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiocontainerd import api
from aiocontainerd.errors import InvalidArgument, ResourceExhausted
from aiocontainerd.filters import compile_filters
from aiocontainerd.rpc.ttrpc.wire import (
    MAX_LENGTH,
    ClientConnection,
    Frame,
    FrameReader,
    FrameType,
    TtrpcConnection,
    encode_frame,
)
from aiocontainerd.wire import codec

fuzz = settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])

CLASSES = [
    api.containers.CreateContainerRequest,
    api.containers.ListContainersResponse,
    api.content.WriteContentRequest,
    api.cri.RunPodSandboxRequest,
    api.cri.UpdateContainerResourcesRequest,
    api.events.PublishRequest,
    api.images.Image,
    api.introspection.PluginsResponse,
    api.snapshots.PrepareSnapshotRequest,
    api.tasks.CreateTaskRequest,
    api.tasks.ListTasksResponse,
    api.ttrpc.Request,
    api.ttrpc.Response,
]


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


values = st.one_of(
    st.sampled_from([0, 1, 127, 128, (1 << 31) - 1, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
).map(varint)
tags = st.integers(1, 20)


def of_length(data: bytes) -> bytes:
    return varint(len(data)) + data


def fields(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Return messages of some fields with known and unknown numbers, and any wire type."""
    one = st.one_of(
        st.builds(lambda tag, value: varint(tag << 3) + value, tags, values),
        st.builds(lambda tag, data: varint(tag << 3 | 1) + data, tags, st.binary(min_size=8, max_size=8)),
        st.builds(lambda tag, data: varint(tag << 3 | 2) + of_length(data), tags, inner),
        st.builds(lambda tag, data: varint(tag << 3 | 5) + data, tags, st.binary(min_size=4, max_size=4)),
    )
    return st.lists(one, max_size=6).map(b"".join)


leaves = st.one_of(
    st.binary(max_size=12), st.text(max_size=6).map(str.encode), st.lists(values, max_size=3).map(b"".join)
)
messages = st.one_of(st.binary(max_size=120), st.recursive(leaves, fields, max_leaves=12))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@fuzz
@given(data=messages)
def test_any_bytes_are_a_message_or_refused(cls: Any, data: bytes) -> None:
    try:
        message = codec.decode(cls, data)
    except (InvalidArgument, ResourceExhausted):
        codec.work_to_decode(cls, data)
        return
    encoded = codec.encode(message)
    again = codec.decode(cls, encoded)
    assert codec.encode(again) == encoded
    assert repr(again) == repr(message)
    assert codec.parts(again, 1000) <= len(data)
    assert 0 <= codec.work_to_decode(cls, encoded) <= len(encoded)


ttrpc_frames = st.one_of(
    st.builds(
        encode_frame,
        st.integers(0, 9),
        st.sampled_from(FrameType),
        st.integers(0, 7),
        st.one_of(
            messages,
            st.sampled_from(["Once", "Stream"]).map(
                lambda method: codec.encode(api.ttrpc.Request(service="a.B", method=method, payload=b"x"))
            ),
        ),
    ),
    st.builds(
        lambda length, stream, kind, data: length.to_bytes(4) + stream.to_bytes(4) + bytes((kind, 0)) + data,
        st.one_of(st.integers(0, 64), st.integers(MAX_LENGTH, MAX_LENGTH + 64)),
        st.integers(0, (1 << 32) - 1),
        st.integers(0, 255),
        st.binary(max_size=64),
    ),
    st.binary(max_size=30),
)
conversations = st.lists(ttrpc_frames, max_size=20).map(b"".join)


@fuzz
@given(conversations, st.lists(st.integers(0, 40), max_size=20))
def test_ttrpc_frames_are_the_same_in_any_pieces(data: bytes, sizes: list[int]) -> None:
    whole, reader, found, position = list(FrameReader().feed(data)), FrameReader(), list[Frame](), 0
    for size in [*sizes, len(data)]:
        found += reader.feed(data[position : position + size])
        assert len(reader._buffer) <= 10 + MAX_LENGTH
        position += size
    assert found == whole


@fuzz
@given(conversations)
def test_a_ttrpc_server_answers_any_bytes(data: bytes) -> None:
    server = TtrpcConnection(lambda _service, method: method == "Stream")
    events = list(server.receive(data))
    frames = list(FrameReader().feed(data))
    assert len(events) <= 2 * len(frames)
    assert len(server._open) <= len(frames)
    assert all(frame.type == FrameType.RESPONSE for frame in FrameReader().feed(server.data_to_send()))


@fuzz
@given(conversations)
def test_a_ttrpc_client_survives_any_answers(data: bytes) -> None:
    client = ClientConnection()
    for _ in range(3):
        client.request("a.B", "C", b"")
    assert len(list(client.receive(data))) <= 2 * len(list(FrameReader().feed(data)))
    assert len(client._streams) <= 3


pieces = st.one_of(
    st.sampled_from(["name", "labels", ".", ",", "==", "!=", "~=", "=", '"', "/", "\\", "\\x", "\\u12", "\\400"]),
    st.sampled_from(["\\U00110000", "\0", "\ufffd", "\n", "é", "*", "(", "[", "{9999}", "?P<a>", " "]),
    st.sampled_from("|\ud800"),
    st.text(max_size=4),
)


@fuzz
@given(st.lists(st.lists(pieces, max_size=12).map("".join), max_size=3))
def test_any_text_is_a_filter_or_refused(texts: list[str]) -> None:
    try:
        chosen = compile_filters(texts)
    except (InvalidArgument, ResourceExhausted):
        return
    chosen.matches(lambda path: "é\0x" if path[0] == "name" else None)
