"""Instances and the Protocols of their kinds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

from aiocontainerd import kinds
from aiocontainerd.host import conformance
from aiocontainerd.interfaces import PROTOCOLS, protocol_of
from aiocontainerd.plugin import ContentStore, Envelope, ImageVerifier, PluginError, Snapshotter, Verdict


class Sink:
    filters = ("topic==/a",)

    async def deliver(self, envelope: Envelope) -> None: ...


class WithoutFilters:
    async def deliver(self, envelope: Envelope) -> None: ...


class NotAsync(Sink):
    def deliver(self, envelope: Envelope) -> None: ...  # type: ignore[override] # the mistake


class Yields(Sink):
    async def deliver(self, envelope: Envelope) -> AsyncIterator[None]:  # type: ignore[override] # the mistake
        yield


class Delegates(Sink):
    def deliver(self, envelope: Envelope) -> Awaitable[None]:  # type: ignore[override] # legal at run time
        return Sink().deliver(envelope)


class NoMethod(Sink):
    deliver = 7  # type: ignore[assignment] # the mistake


class AwaitedStream:
    accepts, returns = ("x",), "x"

    async def process(self, media_type: str, stream: object, payload: object) -> list[bytes]:
        return []


class AsyncWhereSync:
    async def emit(self, deprecation: str) -> None: ...

    def warnings(self) -> list[Any]:
        return []


@pytest.mark.parametrize("instance", [Sink(), Delegates()])
def test_what_has_everything_passes(instance: object) -> None:
    conformance.check(kinds.EVENT_SINK, instance)


@pytest.mark.parametrize(
    ("kind", "instance", "text"),
    [
        (kinds.EVENT_SINK, None, "init returned None, not a EventSink (aiocontainerd/interfaces/event_sink.py)"),
        (kinds.EVENT_SINK, WithoutFilters(), "WithoutFilters has no attribute filters"),
        (kinds.EVENT_SINK, object(), "object has no attribute filters"),
        (kinds.EVENT_SINK, NotAsync(), "NotAsync.deliver is not async; write `async def deliver`"),
        (kinds.EVENT_SINK, Yields(), "Yields.deliver yields; return its answer instead"),
        (kinds.EVENT_SINK, NoMethod(), "NoMethod.deliver is int, not a method"),
        (kinds.IMAGE_VERIFIER, Sink(), "Sink has no method verify"),
        (
            kinds.STREAM_PROCESSOR,
            AwaitedStream(),
            "AwaitedStream.process is awaited, not iterated: yield its items, or write it without async",
        ),
        (kinds.WARNING, AsyncWhereSync(), "AsyncWhereSync.emit is async; write `def emit`"),
    ],
)
def test_what_an_instance_lacks_is_named(kind: str, instance: object, text: str) -> None:
    with pytest.raises(PluginError) as error:
        conformance.check(kind, instance)
    assert str(error.value).startswith(text)
    assert "aiocontainerd/interfaces/" in str(error.value)


def test_a_kind_without_a_protocol_takes_anything() -> None:
    conformance.check(kinds.INTERNAL, None)


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_every_contract_has_prose_and_members(kind: str) -> None:
    protocol = protocol_of(kind)
    assert protocol is not None
    assert protocol.__doc__
    assert conformance.members(protocol)


def test_members_of_a_protocol_include_what_it_inherits() -> None:
    names = {member.name: member for member in conformance.members(ContentStore)}
    assert names["walk"].is_stream
    assert names["info"].is_awaited
    task = protocol_of(kinds.LEASE)
    assert task is not None
    assert {"delete", "add_resource"} <= {member.name for member in conformance.members(task)}


def test_a_verdict_is_a_value() -> None:
    assert Verdict(ok=True) == Verdict(True, "")


class Verifier:
    async def verify(self, name: str, target: object, content: object) -> Verdict:
        return Verdict(ok=True)


class OptionalMore(Verifier):
    async def verify(self, name: str, target: object, content: object, strict: bool = False) -> Verdict:
        return Verdict(ok=not strict)


class AnyArguments(Verifier):
    async def verify(self, *args: Any, **kwargs: Any) -> Verdict:
        return Verdict(ok=True)


class OneMore(Verifier):
    async def verify(self, name: str, target: object, content: object, strict: bool) -> Verdict:  # type: ignore[override]
        return Verdict(ok=not strict)


class Renamed:
    """A snapshotter whose optional parameter has another name than the contract's."""

    async def prepare(self, key: str, base: str = "", labels: object = None) -> list[Any]:
        return []


class Inherits(ImageVerifier):
    """A class that inherits the Protocol and writes nothing."""


@pytest.mark.parametrize("instance", [Verifier(), OptionalMore(), AnyArguments()])
def test_a_method_that_can_be_called_as_the_contract_says_passes(instance: object) -> None:
    conformance.check(kinds.IMAGE_VERIFIER, instance)


def test_a_method_with_other_parameters_is_told_with_both() -> None:
    with pytest.raises(PluginError) as error:
        conformance.check(kinds.IMAGE_VERIFIER, OneMore())
    assert str(error.value).startswith(
        "OneMore.verify takes (name, target, content, strict), and is called with (name, target, content): missing a "
        "required argument: 'strict'"
    )
    (prepare,) = [member for member in conformance.members(Snapshotter) if member.name == "prepare"]
    assert conformance.wrong_arity(prepare.function, Renamed().prepare) == (
        "takes (key, base, labels), and is called with (key, parent, labels): got an unexpected keyword "
        "argument 'parent'"
    )


def test_a_method_that_only_the_protocol_has_is_missing() -> None:
    with pytest.raises(PluginError, match=r"^Inherits has no method verify: it inherits that of the contract"):
        conformance.check(kinds.IMAGE_VERIFIER, Inherits())  # type: ignore[abstract] # the mistake
