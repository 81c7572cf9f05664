"""The protocol buffer wire format: bytes written by hand, agreement with the library's parser, refused bytes."""

from __future__ import annotations

import random
from typing import Any

import betterproto2
import pytest

from aiocontainerd import api
from aiocontainerd.api.services import SERVICES
from aiocontainerd.errors import ResourceExhausted
from aiocontainerd.wire import codec, protobuf


@pytest.mark.parametrize(
    ("message", "wire"),
    [
        (api.images.GetImageRequest(), ""),
        (api.images.GetImageRequest(name="é"), "0a02c3a9"),
        (api.protobuf.Timestamp(seconds=-1), "08ffffffffffffffffff01"),
        (api.protobuf.Timestamp(seconds=300, nanos=1), "08ac021001"),
        (api.types.Mount(options=["", "ro"]), "220022 02726f"),
        (api.images.Image(labels={"a": ""}), "12050a01611200"),
        (api.images.GetImageResponse(image=api.images.Image()), "0a00"),
        (api.snapshots.PrepareSnapshotResponse(mounts=[api.types.Mount(), api.types.Mount()]), "0a000a00"),
        (api.tasks.ListTasksResponse(tasks=[api.task_types.Process()]), "0a00"),
        (api.cri.LinuxSandboxSecurityContext(supplemental_groups=[1, 300]), "2a0301ac02"),
    ],
)
def test_bytes_are_those_of_the_specification(message: Any, wire: str) -> None:
    data = bytes.fromhex(wire)
    assert protobuf.serialize(message) == data
    assert protobuf.parse(type(message), data) == message


def _value(kind: str, cls: Any, depth: int, rng: random.Random) -> Any:
    choices: dict[str, list[Any]] = {
        "string": ["a", "é", "x" * 200],
        "bytes": [b"a", b"\xff\x00"],
        "bool": [True],
        "double": [1.5, -2.0],
        "int32": [1, -1, 2**31 - 1, -(2**31)],
        "int64": [1, -1, 2**63 - 1, -(2**63)],
        "uint32": [1, 2**32 - 1],
        "uint64": [1, 2**64 - 1],
    }
    if kind == "message":
        return _message(cls, depth + 1, rng)
    return cls(1) if kind == "enum" else rng.choice(choices[kind])


def _message(cls: Any, depth: int, rng: random.Random) -> Any:
    message, meta = cls(), cls._betterproto
    for name, one in meta.meta_by_field_name.items():
        if depth > 4 or rng.random() < 0.3 + 0.15 * depth:
            continue
        if one.proto_type == "map":
            key, value = one.map_meta
            value_class = meta.cls_by_field.get(f"{name}.value")
            made = _value(value.proto_type, value_class, depth, rng)
            setattr(message, name, {_value(key.proto_type, None, depth, rng): made})
        elif one.repeated:
            setattr(message, name, [_value(one.proto_type, meta.cls_by_field[name], depth, rng) for _ in range(2)])
        else:
            setattr(message, name, _value(one.proto_type, meta.cls_by_field[name], depth, rng))
    return message


def _request_classes() -> list[type[betterproto2.Message]]:
    names = {name for methods in SERVICES.values() for request, response, *_ in methods.values()
             for name in (request, response)}  # fmt: skip
    return [codec.resolve(name) for name in sorted(names)]


def test_every_message_comes_back_and_reads_alike_in_the_librarys_own_parser() -> None:
    rng = random.Random(7)
    for cls in _request_classes():
        message = _message(cls, 0, rng)
        data = protobuf.serialize(message)
        assert protobuf.parse(cls, data) == message
        assert cls.parse(data) == message


def test_damaged_bytes_raise_nothing_but_valueerror() -> None:
    rng = random.Random(11)
    for cls in _request_classes():
        data = protobuf.serialize(_message(cls, 0, rng))
        for _ in range(5):
            damaged = bytearray(data[: rng.randrange(len(data) + 1)])
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            try:
                protobuf.parse(cls, bytes(damaged))
            except ValueError:
                continue


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        ("0a7f616263", "unexpected EOF"),
        ("0a", "unexpected EOF"),
        ("ff", "unexpected EOF"),
        ("0a02ffff", "utf-8"),
        ("0000", "invalid field number 0"),
        ("7b", "invalid wire type 3"),
        ("f8ffffffffffffffffffffffff01", "variable length integer overflow"),
    ],
)
def test_bytes_that_are_no_message_are_refused(wire: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        protobuf.parse(api.images.GetImageRequest, bytes.fromhex(wire))


def test_unknown_fields_and_fields_of_another_wire_type_are_kept() -> None:
    data = bytes.fromhex("0801 a00601 0a0161")
    message = protobuf.parse(api.images.GetImageRequest, data)
    assert message.name == "a"
    assert protobuf.serialize(message) == bytes.fromhex("0a0161 0801 a00601")


def test_packed_and_single_numbers_are_both_read() -> None:
    cls = api.cri.LinuxSandboxSecurityContext
    assert protobuf.parse(cls, bytes.fromhex("2801 2a020203 2804")).supplemental_groups == [1, 2, 3, 4]


def test_a_message_that_comes_twice_is_merged() -> None:
    first = protobuf.serialize(api.images.GetImageResponse(image=api.images.Image(name="a")))
    second = protobuf.serialize(
        api.images.GetImageResponse(image=api.images.Image(target=api.types.Descriptor(size=3)))
    )
    image = protobuf.parse(api.images.GetImageResponse, first + second).image
    assert image == api.images.Image(name="a", target=api.types.Descriptor(size=3))


def test_an_unknown_enum_value_is_kept_as_its_number() -> None:
    message = protobuf.parse(api.task_types.Process, bytes.fromhex("2063"))
    assert message.status == 99
    assert protobuf.serialize(message) == bytes.fromhex("2063")


MANY = 1 << 20
CREATE = api.containers.CreateContainerRequest


@pytest.mark.parametrize(
    ("cls", "piece"),
    [
        (CREATE, "7801"),
        (CREATE, "f80601"),
        (CREATE, "0a027801"),
        (api.containers.GetContainerRequest, "0a00 7801"),
    ],
)
def test_a_message_of_a_million_tiny_fields_is_read_within_the_limit_of_a_test(
    monkeypatch: pytest.MonkeyPatch, cls: Any, piece: str
) -> None:
    # A reader that copies what it kept for each further field would take many minutes.
    monkeypatch.setattr(protobuf, "_FIELDS", range(2 * MANY + 1))
    data = bytes.fromhex(piece) * MANY
    message = protobuf.parse(cls, data)
    if bytes.fromhex(piece)[0] >= 0x78:
        assert protobuf.serialize(message) == data


@pytest.mark.parametrize(
    "piece",
    [
        "7801",
        "78ffffffffffffffffff01",
        "7a00",
        "7a0161",
        "7a0961626364656667686a",
        "7d00000000",
        "790000000000000000",
        "f80601",
        "8a0100",
        "f8868080800001",
    ],
)
@pytest.mark.parametrize("count", [1, 8, 9, 20_001])
def test_a_run_of_unknown_fields_ends_at_the_known_one(piece: str, count: int) -> None:
    unknown = bytes.fromhex(piece) * count
    message = protobuf.parse(api.images.GetImageRequest, unknown + bytes.fromhex("0a0161") + unknown)
    assert message.name == "a"
    assert protobuf.serialize(message) == bytes.fromhex("0a0161") + unknown + unknown


@pytest.mark.parametrize(
    "tail", ["78", "7a", "7a0261", "7d000000", "7900", "f8", "f806", "0001", "7b", "78ffffffffffffffffffff01"]
)
def test_a_run_of_unknown_fields_may_not_end_inside_one(tail: str) -> None:
    with pytest.raises(ValueError, match=r"EOF|invalid|overflow"):
        protobuf.parse(api.images.GetImageRequest, bytes.fromhex("7801") * 5000 + bytes.fromhex(tail))


def test_a_known_field_whose_tag_is_written_longer_than_needed_is_known() -> None:
    data = bytes.fromhex("7801") * 20 + bytes.fromhex("8a000161")
    assert protobuf.parse(api.images.GetImageRequest, data).name == "a"


@pytest.mark.parametrize(
    ("cls", "piece"),
    [
        (api.images.ListImagesRequest, "0a00"),
        (api.snapshots.PrepareSnapshotResponse, "0a00"),
        (api.cri.LinuxSandboxSecurityContext, "2801"),
    ],
)
def test_a_field_has_at_most_so_many_values(monkeypatch: pytest.MonkeyPatch, cls: Any, piece: str) -> None:
    monkeypatch.setattr(protobuf, "MAX_VALUES", 3)
    codec.decode(cls, bytes.fromhex(piece) * 3)
    with pytest.raises(ResourceExhausted, match="more than 3 values"):
        codec.decode(cls, bytes.fromhex(piece) * 4)


def test_packed_numbers_and_maps_have_such_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "MAX_VALUES", 3)
    monkeypatch.setattr(protobuf, "MAX_ENTRIES", 3)
    labels = {str(number): "" for number in range(4)}
    with pytest.raises(ResourceExhausted, match="more than 3 values in labels"):
        codec.decode(api.images.Image, codec.encode(api.images.Image(labels=labels)))
    numbers = api.cri.LinuxSandboxSecurityContext(supplemental_groups=[1, 2, 3, 4])
    with pytest.raises(ResourceExhausted, match="more than 3 values in supplemental_groups"):
        codec.decode(api.cri.LinuxSandboxSecurityContext, codec.encode(numbers))


@pytest.mark.parametrize(
    "piece",
    [
        pytest.param("1200", id="the same entry of a map"),
        pytest.param("0a00", id="the same single field"),
        pytest.param("0a007801", id="unknown fields in between"),
    ],
)
def test_a_message_has_at_most_so_many_fields_whatever_they_make(monkeypatch: pytest.MonkeyPatch, piece: str) -> None:
    count = len(bytes.fromhex(piece)) // 2
    monkeypatch.setattr(protobuf, "_FIELDS", range(6 * count + 1))
    codec.decode(api.images.Image, bytes.fromhex(piece) * 6)
    with pytest.raises(ResourceExhausted, match="values in one message"):
        codec.decode(api.images.Image, bytes.fromhex(piece) * 7)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("", {"": ""}),
        ("0a0161", {"a": ""}),
        ("120162", {"": "b"}),
        ("120162 0a0161", {"a": "b"}),
        ("0a0161 120162 120163", {"a": "c"}),
        ("0a0161 120162 7801", {"a": "b"}),
        ("0a0161 7801 120162", {"a": "b"}),
    ],
)
def test_an_entry_of_a_map_may_have_its_parts_in_any_order_and_number(entry: str, expected: dict[str, str]) -> None:
    body = bytes.fromhex(entry)
    assert protobuf.parse(api.images.Image, b"\x12" + bytes([len(body)]) + body).labels == expected


def test_the_work_of_a_message_is_its_bytes_without_long_strings() -> None:
    write = codec.encode(api.content.WriteContentRequest(ref="a", data=bytes(1 << 20)))
    assert codec.work_to_decode(api.content.WriteContentRequest, write) < 20
    labels = codec.encode(api.images.Image(name="a" * 1000, labels={"a": "b" * 500}))
    assert 500 < codec.work_to_decode(api.images.Image, labels) < 520
    assert codec.work_to_decode(api.images.Image, bytes.fromhex("7801") * 500) > 900
    assert codec.work_to_decode(api.images.Image, b"\xff") == 1


def test_parts_of_a_message_are_counted_at_any_depth_and_no_further_than_asked() -> None:
    image = api.images.Image(labels={str(number): "" for number in range(50)})
    answer = api.images.ListImagesResponse(images=[api.images.Image(), image, image])
    assert codec.parts(answer, 1000) == 3 + 100
    assert 20 <= codec.parts(answer, 20) < 100
    assert codec.parts(api.images.GetImageResponse(image=image), 1000) == 50
    extensions = api.containers.Container(extensions={"a": api.protobuf.Any()})
    assert codec.parts(extensions, 1000) == 1
