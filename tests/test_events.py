"""The event bus: order, queues, validation, filters over the payload (facts/core 11)."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Any

import pytest

from aiocontainerd import api, context, events, filters, timestamps, typeurl
from aiocontainerd.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from aiocontainerd.events import Envelope, EventBus, Subscription
from aiocontainerd.wire import anys
from aiocontainerd.wire.anys import marshal, unmarshal
from aiocontainerd.wire.events import MessagePayloads, message_bus

EXIT = typeurl.Any("containerd.events.TaskExit", b"")


def topics(subscription: Subscription) -> list[str]:
    """Return the topics that wait, taken without a loop."""
    taken = []
    while len(subscription):
        with pytest.raises(StopIteration) as stop:
            subscription.__anext__().send(None)
        taken.append(stop.value.value.topic)
    return taken


def envelope(topic: str = "/a", namespace: str = "ns", timestamp_ns: int = 5) -> Envelope:
    return Envelope(timestamp_ns, namespace, topic, EXIT)


def test_publish_stamps_the_time_and_the_namespace_of_the_call() -> None:
    bus = message_bus(now_ns=lambda: 42)
    with bus.subscribe() as events, context.use(namespace="k8s.io"):
        bus.publish("/tasks/exit", api.event_types.TaskExit(container_id="c"))
        assert events._queue[0] == Envelope(
            42, "k8s.io", "/tasks/exit", marshal(api.event_types.TaskExit(container_id="c"))
        )


def test_an_any_passes_through_untouched() -> None:
    bus = EventBus()
    with bus.subscribe() as events:
        bus.publish("/x", typeurl.Any("unknown.Type", b"\xff"), namespace="a")
        assert events._queue[0].event == typeurl.Any("unknown.Type", b"\xff")


def test_an_event_is_encoded_only_for_subscribers(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[object] = []

    def noted(event: object) -> typeurl.Any:
        encoded.append(event)
        return EXIT

    monkeypatch.setattr("aiocontainerd.wire.events.marshal", noted)
    bus, event = message_bus(), api.event_types.TaskExit(container_id="c")
    bus.publish("/x", event, namespace="a")
    assert (encoded, bus.statistics()["published"]) == ([], 1)
    with bus.subscribe():
        bus.publish("/x", event, namespace="a")
    assert encoded == [event]


def test_an_event_that_nobody_sees_keeps_the_rules_too() -> None:
    with pytest.raises(InvalidArgument, match="must start with '/'"):
        EventBus().publish("x", EXIT, namespace="a")
    with pytest.raises(InvalidArgument, match="invalid namespace"):
        EventBus().publish("/x", EXIT, namespace="a b")


def test_a_bus_that_knows_no_messages_says_so_and_shows_filters_no_fields() -> None:
    bus, event = EventBus(), api.event_types.TaskExit(container_id="c")
    with bus.subscribe("event.container_id==c") as events, bus.subscribe() as all_events:
        with pytest.raises(TypeError, match=r"^cannot publish a TaskExit here: wrap it with typeurl\.marshal first$"):
            bus.publish("/x", event, namespace="a")
        bus.publish("/x", marshal(event), namespace="a")
        assert (len(events), len(all_events)) == (0, 1)


def test_publish_needs_a_namespace() -> None:
    with pytest.raises(FailedPrecondition, match=r"^failed publishing event: namespace is required$"):
        EventBus().publish("/x", EXIT)


def test_every_subscriber_sees_the_same_order_from_its_registration_on() -> None:
    bus = EventBus()
    with bus.subscribe() as first:
        bus.forward(envelope("/one"))
        with bus.subscribe() as second:
            for topic in ("/two", "/three", "/four"):
                bus.forward(envelope(topic))
            assert topics(second) == ["/two", "/three", "/four"]
        bus.forward(envelope("/five"))
        assert topics(first) == ["/one", "/two", "/three", "/four", "/five"]
        assert len(second) == 0


def test_nothing_is_dropped_for_a_slow_subscriber() -> None:
    bus = EventBus()
    with bus.subscribe() as events:
        for number in range(10_000):
            bus.forward(envelope(f"/n/{number}"))
        assert bus.statistics() == {"published": 10_000, "subscriptions": 1, "waiting": 10_000}
        assert topics(events) == [f"/n/{number}" for number in range(10_000)]
    assert bus.statistics() == {"published": 10_000, "subscriptions": 0, "waiting": 0}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (envelope(""), 'envelope topic "": must not be empty'),
        (envelope("foo"), "envelope topic \"foo\": must start with '/'"),
        (envelope("/"), 'envelope topic "/": must have at least one component'),
        (
            envelope("/a//b"),
            'envelope topic "/a//b": failed validation on component "": identifier must not be empty',
        ),
        (
            envelope("/a/b c"),
            'envelope topic "/a/b c": failed validation on component "b c": identifier "b c" must match '
            r"^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$",
        ),
        (envelope(namespace=""), "event envelope has invalid namespace: identifier must not be empty"),
        (envelope(timestamp_ns=timestamps.ZERO_NS), "timestamp must be set on forwarded event"),
    ],
)
def test_an_envelope_that_breaks_a_rule_is_refused(bad: Envelope, message: str) -> None:
    bus = EventBus()
    with bus.subscribe() as events:
        with pytest.raises(InvalidArgument) as caught:
            bus.forward(bad)
        assert str(caught.value) == message
        assert len(events) == 0


def test_a_bad_filter_is_refused_at_once() -> None:
    with pytest.raises(InvalidArgument, match=r"^failed parsing subscription filters: filters: parse error: \["):
        EventBus().subscribe("topic==/x")


CREATE = api.event_types.TaskCreate(
    container_id="c1", pid=7, checkpoint="", io=api.event_types.TaskIo(stdin="/in", terminal=True)
)
IMAGE = api.images.ImageCreate(name="alpine", labels={"a.b": "1"})
CONTENT = api.event_types.ContentCreate(digest="sha256:x", size=9, media_type="text/x")


@pytest.mark.parametrize(
    ("event", "text", "matches"),
    [
        (CREATE, 'topic=="/t/x"', True),
        (CREATE, "namespace==ns", True),
        (CREATE, "namespace==other", False),
        (CREATE, "event.container_id==c1", True),
        (CREATE, "event.container_id!=c1", False),
        (CREATE, "event.checkpoint", False),
        (CREATE, "event.pid==7", False),
        (CREATE, 'event.io.stdin=="/in"', True),
        (CREATE, "event.io.terminal==true", True),
        (CREATE, "event.io", False),
        (CREATE, "event.rootfs", False),
        (CREATE, "event", False),
        (CREATE, "event.nothing", False),
        (CREATE, "event.__module__", False),
        (CREATE, "event.io.__doc__", False),
        (CREATE, "nothing", False),
        (IMAGE, "event.labels.a.b==1", True),
        (IMAGE, "event.labels.c", False),
        (CONTENT, 'event.mediaType=="text/x"', True),
        (CONTENT, "event.size==9", False),
        (typeurl.Any("unknown.Type", b"x"), "event.id", False),
        (typeurl.Any("containerd.events.TaskExit", b"\x0a\x02\xff\xff"), "event.id", False),
    ],
)
def test_filters_see_envelope_and_payload(event: Any, text: str, matches: bool) -> None:
    bus = message_bus()
    with bus.subscribe(text) as events:
        bus.publish("/t/x", event, namespace="ns")
        assert bool(len(events)) is matches


def test_the_payload_is_decoded_only_for_filters_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[typeurl.Any] = []

    def counted(value: typeurl.Any) -> object:
        decoded.append(value)
        return unmarshal(value)

    monkeypatch.setattr("aiocontainerd.wire.events.unmarshal_given", counted)
    bus = message_bus()
    with bus.subscribe("topic", 'topic!="/b"'):
        bus.publish("/a", CREATE, namespace="ns")
        assert decoded == []
        with bus.subscribe("event.id"), bus.subscribe("event.container_id"):
            bus.publish("/a", CREATE, namespace="ns")
        assert len(decoded) == 1


@pytest.mark.anyio
async def test_a_waiting_subscriber_wakes_and_the_end_of_the_block_ends_it() -> None:
    bus = EventBus()
    taken: list[str] = []

    async def take(events: Subscription) -> None:
        taken.extend([event.topic async for event in events])

    with bus.subscribe('topic~="^/a"') as events:
        reader = asyncio.ensure_future(take(events))
        await asyncio.sleep(0)
        bus.forward(envelope("/a"))
        bus.forward(envelope("/b"))
        bus.forward(envelope("/a/c"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert repr(events) == "<Subscription ['topic~=\"^/a\"'] {'waiting': 0, 'delivered': 2, 'dropped': 0}>"
    await asyncio.wait_for(reader, 5)
    assert taken == ["/a", "/a/c"]


def test_subscribers_with_equal_filters_cost_one_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[Any] = []
    original = filters.Filter.matches

    def matches(self: filters.Filter, adaptor: filters.Adaptor) -> bool:
        evaluated.append(self)
        return original(self, adaptor)

    monkeypatch.setattr(filters.Filter, "matches", matches)
    bus = EventBus()
    with ExitStack() as stack:
        same = [stack.enter_context(bus.subscribe("topic==a", "topic~=b")) for _ in range(50)]
        other = stack.enter_context(bus.subscribe("topic~=b"))
        everything = stack.enter_context(bus.subscribe())
        bus.publish("/b", typeurl.Any("type", b""), namespace="n")
        assert [len(one) for one in (*same, other, everything)] == [1] * 52
    assert len(evaluated) == 2


@pytest.mark.anyio
async def test_an_event_that_a_taker_refuses_is_queued_and_so_are_all_after_it() -> None:
    taken: list[str] = []

    def take(one: Envelope) -> bool:
        if one.topic == "/b":
            return False
        taken.append(one.topic)
        return True

    bus = EventBus()
    with bus.subscribe() as subscription:
        subscription.hand_to(take)
        for topic in ("/a", "/b", "/c"):
            bus.publish(topic, typeurl.Any("type", b""), namespace="n")
        assert [(await anext(subscription)).topic for _ in "abc"] == ["/a", "/b", "/c"]
        for topic in ("/d", "/b", "/e"):
            bus.publish(topic, typeurl.Any("type", b""), namespace="n")
        while len(subscription) == 3:  # noqa: ASYNC110 - the bus tells nobody
            await asyncio.sleep(0)
        assert taken == ["/d"]
        assert topics(subscription) == ["/b", "/e"]


@pytest.mark.anyio
async def test_takers_get_events_some_in_each_step_and_never_while_an_event_is_sent() -> None:
    taken: list[tuple[int, str]] = []
    bus = EventBus()
    with ExitStack() as stack:
        for number in range(2 * events.SUBSCRIBERS_A_STEP):
            subscription = stack.enter_context(bus.subscribe())
            subscription.hand_to(lambda one, number=number: taken.append((number, one.topic)) or True)  # type: ignore[misc, func-returns-value]
        for topic in ("/a", "/b"):
            bus.publish(topic, typeurl.Any("type", b""), namespace="n")
        assert taken == []
        steps = []
        while bus.statistics()["waiting"]:
            await asyncio.sleep(0)
            steps.append(len(taken))
    assert [step for step in steps if step] == [2 * events.SUBSCRIBERS_A_STEP, 4 * events.SUBSCRIBERS_A_STEP]
    assert taken[:3] == [(0, "/a"), (0, "/b"), (1, "/a")]


@pytest.mark.anyio
async def test_a_taker_with_many_events_or_an_error_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    order: list[str] = []
    bus = EventBus()

    def fail(_one: Envelope) -> bool:
        raise ValueError("broken taker")

    with bus.subscribe() as many, bus.subscribe() as broken, bus.subscribe() as other:
        many.hand_to(lambda _one: order.append("many") or True)  # type: ignore[func-returns-value]
        broken.hand_to(fail)
        other.hand_to(lambda _one: order.append("other") or True)  # type: ignore[func-returns-value]
        for _ in range(events.EVENTS_A_TURN + 1):
            bus.publish("/many", typeurl.Any("type", b""), namespace="n")
        while len(many) or len(other):  # noqa: ASYNC110 - the bus tells nobody
            await asyncio.sleep(0)
        assert (await anext(broken)).topic == "/many"
    turn = events.EVENTS_A_TURN
    assert order == ["many"] * turn + ["other"] * turn + ["many", "other"]
    assert "broken taker" in caplog.text


@pytest.mark.anyio
async def test_a_subscriber_that_wants_all_or_an_error_gets_an_error_when_too_many_wait() -> None:
    bus = EventBus()
    with bus.subscribe(limit=2, ends_when_full=True) as subscription:
        for topic in ("/a", "/b", "/c", "/d"):
            bus.publish(topic, typeurl.Any("type", b""), namespace="n")
        with pytest.raises(ResourceExhausted, match="more than 2 events"):
            await anext(subscription)
        assert subscription.statistics() == {"waiting": 0, "delivered": 0, "dropped": 4}


@pytest.mark.anyio
async def test_the_bytes_that_wait_for_a_subscriber_have_a_limit_but_one_event_always_fits() -> None:
    bus = EventBus()
    with bus.subscribe(limit_bytes=10, ends_when_full=True) as subscription:
        for size in (20, 4, 6, 10):
            bus.publish("/a", typeurl.Any("type", bytes(size)), namespace="n")
            assert len((await anext(subscription)).event.value) == size
        for size in (4, 6, 1):
            bus.publish("/a", typeurl.Any("type", bytes(size)), namespace="n")
        with pytest.raises(ResourceExhausted, match="10 bytes"):
            await anext(subscription)
        assert subscription.statistics() == {"waiting": 0, "delivered": 4, "dropped": 3}


def test_the_oldest_events_give_way_to_the_bytes_of_a_new_one() -> None:
    bus = EventBus()
    with bus.subscribe(limit_bytes=10) as subscription:
        for topic, size in (("/a", 4), ("/b", 4), ("/c", 8)):
            bus.publish(topic, typeurl.Any("type", bytes(size)), namespace="n")
        assert topics(subscription) == ["/c"]


def test_filters_see_no_fields_of_a_payload_that_takes_long_to_decode() -> None:
    event = marshal(api.event_types.ContainerCreate(id="a" * anys.MAX_GIVEN_BYTES))
    bus = EventBus(payloads=MessagePayloads())
    with bus.subscribe("event.id~=a") as some, bus.subscribe() as every:
        bus.publish("/a", event, namespace="n")
        bus.publish("/b", marshal(api.event_types.ContainerCreate(id="a")), namespace="n")
        assert topics(some) == ["/b"]
        assert topics(every) == ["/a", "/b"]
