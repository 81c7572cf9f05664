"""Contract of event sinks (interfaces/event_sink.py): every event is taken, whatever its payload is, and in time.

    pytest --pyargs aiocontainerd.testing.event_sink --target acme.plugin:Webhook --target-config path={tmp}/events

Or subclass `EventSinkContract` in a test module and give it a fixture `open_sink` of type `OpenSink`. Only the author
knows where events go: the fixture `arrived` may tell what got there, and then order and completeness are checked, too.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import anyio
import pytest

from aiocontainerd import api, kinds, timestamps, typeurl
from aiocontainerd.events import Envelope
from aiocontainerd.filters import compile_filters
from aiocontainerd.interfaces.event_sink import EventSink
from aiocontainerd.testing.contract import Contract, Targeted
from aiocontainerd.testing.target import Bench
from aiocontainerd.wire.anys import marshal

OpenSink = Callable[[Path], AbstractAsyncContextManager[EventSink]]
Arrived = Callable[[], Awaitable[Sequence[Envelope]]]

DELIVERY_S = 5.0
"""Within this an event is taken by a sink whose destination answers."""
CLOSE_S = 5.0
"""Within this a sink stops: the pump's own `stop_timeout`."""


def envelope(topic: str, event: typeurl.Any, *, namespace: str = "suite") -> Envelope:
    """Make an event of now."""
    return Envelope(timestamps.now_ns(), namespace, topic, event)


def task_exit(number: int = 0) -> Envelope:
    """Make an event as runtimes send it."""
    event = api.event_types.TaskExit(container_id=f"c{number}", id=f"c{number}", pid=100 + number, exit_status=number)
    return envelope("/tasks/exit", marshal(event))


EVENTS: dict[str, Callable[[], Envelope]] = {
    "task": task_exit,
    "image": lambda: envelope("/images/create", marshal(api.images.ImageCreate(name="docker.io/x:1"))),
    "foreign-payload": lambda: envelope("/acme/made", typeurl.Any("acme.example/v1.Made", b"\xff\x00\xfe")),
    "damaged-payload": lambda: envelope("/tasks/exit", typeurl.Any("containerd.events.TaskExit", b"\xff\xff")),
    "empty-payload": lambda: envelope("/acme/empty", typeurl.Any("", b"")),
    "large-payload": lambda: envelope("/acme/large", typeurl.Any("acme.example/v1.Large", bytes(1 << 20))),
    "unicode": lambda: envelope(
        "/images/create", marshal(api.images.ImageCreate(name="é\n\0\u2028", labels={"a": '"\\'}))
    ),
}  # fmt: skip


@pytest.mark.anyio
class EventSinkContract(Contract):
    """What every event sink must do. See the module."""

    @pytest.fixture
    async def sink(self, open_sink: OpenSink, tmp_path: Path) -> AsyncIterator[EventSink]:
        async with open_sink(tmp_path / "root") as opened:
            yield opened

    @pytest.fixture
    def arrived(self) -> Arrived | None:
        """Return what reached the place that events go to, in the order of arrival; None if that cannot be told."""
        return None

    async def test_filters_are_texts_that_parse(self, sink: EventSink) -> None:
        filters = sink.filters
        assert not isinstance(filters, str), "filters is a text; write a tuple of texts"
        compile_filters(list(filters))

    @pytest.mark.parametrize("name", sorted(EVENTS))
    async def test_event_is_taken_in_time_whatever_it_carries(self, sink: EventSink, name: str) -> None:
        with anyio.fail_after(DELIVERY_S):
            assert await sink.deliver(EVENTS[name]()) is None  # type: ignore[func-returns-value]  # is what is checked

    async def test_many_events_are_taken(self, sink: EventSink) -> None:
        with anyio.fail_after(DELIVERY_S):
            for number in range(100):
                await sink.deliver(task_exit(number))

    async def test_same_event_twice_is_no_error(self, sink: EventSink) -> None:
        event = task_exit()
        with anyio.fail_after(DELIVERY_S):
            await sink.deliver(event)
            await sink.deliver(event)

    async def test_cancelled_delivery_does_not_hinder_the_next(self, sink: EventSink) -> None:
        for delay_s in (0.0, 0.001, 0.01):
            with anyio.move_on_after(delay_s):
                await sink.deliver(task_exit())
        with anyio.fail_after(DELIVERY_S):
            await sink.deliver(task_exit())

    async def test_sink_stops_in_time_and_leaves_no_thread(self, open_sink: OpenSink, tmp_path: Path) -> None:
        before = set(threading.enumerate())
        with anyio.fail_after(DELIVERY_S + CLOSE_S):
            async with open_sink(tmp_path / "root") as sink:
                await sink.deliver(task_exit())
        left = [thread.name for thread in set(threading.enumerate()) - before if not _is_pooled(thread)]
        assert left == []

    async def test_sink_opens_again(self, open_sink: OpenSink, tmp_path: Path) -> None:
        for _ in range(2):
            async with open_sink(tmp_path / "root") as sink:
                with anyio.fail_after(DELIVERY_S):
                    await sink.deliver(task_exit())

    async def test_events_arrive_whole_and_in_order(self, sink: EventSink, arrived: Arrived | None) -> None:
        if arrived is None:
            pytest.skip("no fixture `arrived` tells what reached the place events go to")
        sent = [task_exit(number) for number in range(20)]
        for event in sent:
            await sink.deliver(event)
        assert await _settled(arrived, len(sent)) == sent


async def _settled(arrived: Arrived, count: int) -> list[Envelope]:
    """Return what arrived: once it is that many events, or when the time is over."""
    until = anyio.current_time() + DELIVERY_S
    while True:
        found = list(await arrived())
        if len(found) >= count or anyio.current_time() > until:
            return found
        await anyio.sleep(0.01)


def _is_pooled(thread: threading.Thread) -> bool:
    """Return whether a thread belongs to a pool of the event loop, which keeps its threads."""
    return thread.name.startswith(("AnyIO worker thread", "asyncio_"))


class TestEventSink(Targeted, EventSinkContract):
    """The event sink that `--target` names."""

    kind = kinds.EVENT_SINK

    @pytest.fixture
    def open_sink(self, bench: Bench) -> OpenSink:
        return partial(bench.open, self.kind, needs={})
