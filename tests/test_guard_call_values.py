"""What travels with calls and records: identifiers, labels, the context of a call, typed values."""

from __future__ import annotations

import re

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocontainerd import api, context, identifiers, labels, typeurl
from aiocontainerd.api import names
from aiocontainerd.context import CallContext
from aiocontainerd.errors import FailedPrecondition, InvalidArgument, NotFound
from aiocontainerd.wire.anys import any_from_wire, any_to_wire, marshal, message_name, unmarshal


@pytest.mark.parametrize("name", ["a", "A9", "default", "k8s.io", "moby", "a-b_c.d", "1", "x" * 76])
def test_identifiers_are_accepted(name: str) -> None:
    identifiers.validate(name)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        *((name, name) for name in (".", "-a", "a-", "a..b", "a/b", "a b", "ä", "_", "../x", "a._b")),
        ("a\n", r"a\n"),
        ("a\0", r"a\x00"),
    ],
)
def test_what_is_no_identifier_is_told_the_pattern(name: str, shown: str) -> None:
    with pytest.raises(InvalidArgument) as failed:
        identifiers.validate(name)
    assert failed.value.message == f'identifier "{shown}" must match {identifiers.PATTERN}'


def test_identifiers_have_a_length() -> None:
    with pytest.raises(InvalidArgument, match="identifier must not be empty"):
        identifiers.validate("")
    with pytest.raises(InvalidArgument, match=r'"x{77}" greater than maximum length \(76 characters\)'):
        identifiers.validate("x" * 77)


@given(st.text(max_size=100))
def test_any_text_is_an_identifier_or_refused_with_its_class(name: str) -> None:
    try:
        identifiers.validate(name)
    except InvalidArgument:
        return
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,76}", name)


def test_a_label_of_4096_bytes_fits_and_one_more_does_not() -> None:
    labels.validate({"k": "v" * 4095}, "image.Labels")
    with pytest.raises(InvalidArgument) as failed:
        labels.validate({"k" * 100: "é" * 2000}, "image.Labels")
    assert failed.value.message == (
        "image.Labels: label key and value length (4100 bytes) greater than maximum size (4096 bytes), key: " + "k" * 64
    )


def test_labels_are_replaced_whole_or_key_by_key() -> None:
    current = {"a": "1", "b": "2"}
    assert labels.update(current, {"c": "3"}, ["labels"]) == {"c": "3"}
    assert labels.update(current, {"b": "3", "c": "4"}, ["labels.b"]) == {"a": "1", "b": "3"}
    assert labels.update(current, {}, ["labels.a"]) == {"b": "2"}
    assert labels.update(current, {"a": ""}, ["labels.a"]) == {"b": "2"}
    assert labels.update(current, {"a.b/c": "5"}, ["labels.a.b/c"]) == {"a": "1", "b": "2", "a.b/c": "5"}
    assert labels.update(current, {"a": "9"}, ["target"]) == current
    assert current == {"a": "1", "b": "2"}


def test_outside_of_a_call_there_is_no_namespace_and_no_lease() -> None:
    assert context.current() == CallContext()
    assert context.lease() == ""
    with pytest.raises(FailedPrecondition, match="namespace is required"):
        context.namespace()


def test_a_namespace_that_is_no_identifier_is_refused() -> None:
    with context.use(namespace="a/b"), pytest.raises(InvalidArgument, match="namespace validation: identifier "):
        context.namespace()


def test_a_context_nests_and_keeps_what_is_not_given() -> None:
    with context.use(namespace="one", lease="l1"):
        with context.use(namespace="two") as inner:
            assert inner == context.current() == CallContext("two", "l1")
        with context.use(lease=""):
            assert (context.namespace(), context.lease()) == ("one", "")
        assert context.current() == CallContext("one", "l1")
    assert context.current() == CallContext()


@pytest.mark.anyio
async def test_a_context_follows_the_tasks_of_its_call_and_no_others() -> None:
    seen: dict[str, str] = {}

    async def call(name: str) -> None:
        context.enter(CallContext(name))
        async with anyio.create_task_group() as group:
            group.start_soon(child, name)

    async def child(name: str) -> None:
        await anyio.lowlevel.checkpoint()
        seen[name] = context.namespace()

    async with anyio.create_task_group() as group:
        group.start_soon(call, "one")
        group.start_soon(call, "two")
    assert seen == {"one": "one", "two": "two"}
    assert context.current() == CallContext()


def test_a_message_goes_into_an_any_and_comes_back() -> None:
    event = api.event_types.TaskExit(container_id="c", pid=7, exited_at=api.protobuf.Timestamp(seconds=1, nanos=2))
    value = marshal(event)
    assert value.type_url == "containerd.events.TaskExit" == message_name(event)
    assert unmarshal(value) == event


@pytest.mark.parametrize("prefix", ["", "/", "type.googleapis.com/", "types.containerd.io/x/"])
def test_a_prefix_of_a_type_url_is_ignored_when_reading(prefix: str) -> None:
    value = typeurl.Any(f"{prefix}containerd.events.TaskStart", b"\x0a\x01c")
    assert unmarshal(value) == api.event_types.TaskStart(container_id="c")


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "a.", "a..b", "TaskExit", "containerd.events.None", "os.path", "a/b", "é.ü", "a\0.b"]
)
def test_a_type_that_the_api_lacks_is_not_found_by_name(name: str) -> None:
    with pytest.raises(NotFound, match=re.escape(f"type with url {name}")):
        names.message_class(name)


def test_bytes_that_are_no_message_are_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match=r"containerd\.events\.TaskExit"):
        unmarshal(typeurl.Any("containerd.events.TaskExit", b"\xff"))


def test_wire_values_keep_their_bytes_and_absence() -> None:
    value = typeurl.Any("some/type", b"\x00\xff")
    assert any_from_wire(any_to_wire(value)) == value
    assert any_from_wire(None) is None
    assert any_to_wire(None) is None
