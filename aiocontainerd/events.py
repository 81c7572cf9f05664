"""The event bus: publish, forward, subscribe with filters (facts/core 11).

Publishing never waits: each subscriber has a queue of its own. Every subscriber sees the same order. Nothing is
dropped unless the subscriber set a limit. A subscriber gets the events of all namespaces. Use a bus only in the thread
of its event loop. `wire.events` makes the bus that takes generated messages.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Protocol, Self

import msgspec

from aiocontainerd import context, filters, identifiers, timestamps
from aiocontainerd.errors import ContainerdError, InvalidArgument, ResourceExhausted
from aiocontainerd.gotext import quoted
from aiocontainerd.typeurl import Any

if TYPE_CHECKING:
    import betterproto2


log = logging.getLogger(__name__)


class Envelope(msgspec.Struct, frozen=True):
    """An event as the bus carries it. The time is in nanoseconds since 1970."""

    timestamp_ns: int
    namespace: str
    topic: str
    event: Any


Taker = Callable[[Envelope], bool]
"""Function that takes an event at once, or returns False to have it queued. It never waits."""

SUBSCRIBERS_A_STEP = 16
"""Takers that get events in one step of the loop. Whoever waits for an answer does not wait for all subscribers."""
EVENTS_A_TURN = 32
"""Events that one taker gets before the next one has its turn."""


class Payloads(Protocol):
    """What a bus must know about the payloads of events."""

    def encode(self, event: betterproto2.Message) -> Any:
        """Return the typed value of an event."""
        ...

    def fields(self, event: Any) -> filters.Adaptor:
        """Return the fields of a payload by their paths, for filters. A payload that cannot be decoded has none."""
        ...


class EncodedPayloads:
    """Payloads of a bus that knows no message: events come encoded, and filters see none of their fields."""

    def encode(self, event: betterproto2.Message) -> Any:
        """Raise TypeError: who publishes has to wrap the message."""
        raise TypeError(f"cannot publish a {type(event).__name__} here: wrap it with typeurl.marshal first")

    def fields(self, event: Any) -> filters.Adaptor:  # noqa: ARG002 - part of the interface
        """Return no fields."""
        return lambda _path: None


class EventBus:
    """The bus between those that change something and those that react. `now_ns` is the clock."""

    def __init__(self, now_ns: Callable[[], int] = timestamps.now_ns, payloads: Payloads | None = None) -> None:
        self._now_ns = now_ns
        self._payloads = payloads or EncodedPayloads()
        self._subscriptions: dict[Subscription, None] = {}
        self._turns = Turns()
        self._published = 0

    def __repr__(self) -> str:
        return f"<EventBus {self.statistics()}>"

    def statistics(self) -> dict[str, int]:
        """Return how many events were sent since the start, how many subscribe now, and how many events wait."""
        waiting = sum(len(subscription) for subscription in self._subscriptions)
        return {"published": self._published, "subscriptions": len(self._subscriptions), "waiting": waiting}

    def publish(self, topic: str, event: betterproto2.Message | Any, *, namespace: str | None = None) -> None:
        """Send an event now, in `namespace` or in the namespace of the current call.

        The event is encoded only if somebody subscribes.
        Raises FailedPrecondition where the call has no namespace, InvalidArgument for a bad one or a bad topic.
        """
        space = _call_namespace() if namespace is None else namespace
        _validate_namespace(space)
        validate_topic(topic)
        self._published += 1
        if self._subscriptions:
            payload = event if isinstance(event, Any) else self._payloads.encode(event)
            self._offer(Envelope(self._now_ns(), space, topic, payload))

    def forward(self, envelope: Envelope) -> None:
        """Send an event that was made elsewhere, unchanged.

        Raises InvalidArgument for a bad namespace or topic, or where no time is set.
        """
        validate_envelope(envelope)
        self._published += 1
        self._offer(envelope)

    def subscribe(
        self,
        *filter_texts: str,
        limit: int | None = None,
        limit_bytes: int | None = None,
        ends_when_full: bool = False,
    ) -> AbstractContextManager[Subscription]:
        """Receive every event sent inside the block that one of the filters matches; every event without filters.

        At most `limit` events wait, and several only while their payloads have at most `limit_bytes`. One more drops
        the oldest of them, and the drop is counted. With `ends_when_full` it drops all, and the iteration ends with
        ResourceExhausted.

        Raises InvalidArgument for a filter that does not parse.
        """
        try:
            compiled = filters.compile_filters(filter_texts)
        except InvalidArgument as error:
            raise InvalidArgument(f"failed parsing subscription filters: {error.message}") from error
        chosen = Subscription(compiled, filter_texts, limit, limit_bytes, self._turns, ends_when_full=ends_when_full)
        return self._subscribed(chosen)

    def _offer(self, envelope: Envelope) -> None:
        fields = EnvelopeFields(envelope, self._payloads)
        wanted: dict[tuple[str, ...], bool] = {}
        for subscription in self._subscriptions:
            texts = subscription.filters
            if texts not in wanted:
                wanted[texts] = subscription.wants(fields)
            if wanted[texts]:
                subscription.put(envelope)

    @contextmanager
    def _subscribed(self, subscription: Subscription) -> Iterator[Subscription]:
        self._subscriptions[subscription] = None
        try:
            yield subscription
        finally:
            del self._subscriptions[subscription]
            subscription.close()


class Turns:
    """Hands events over to takers: to some in each step of the loop, so that the loop does other work in between."""

    def __init__(self) -> None:
        self._waiting: dict[Subscription, None] = {}
        self._planned = False

    def __repr__(self) -> str:
        return f"<Turns, {len(self._waiting)} wait>"

    def add(self, subscription: Subscription) -> None:
        """Give a subscription a turn soon."""
        self._waiting[subscription] = None
        if not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        self._planned = False
        for subscription in list(islice(self._waiting, SUBSCRIBERS_A_STEP)):
            del self._waiting[subscription]
            try:
                more = subscription.hand_over()
            except Exception:  # the edge of one subscriber: the others get their events
                log.exception("events of %r", subscription)
                subscription.hand_to(None)
                more = False
            if more:
                self._waiting[subscription] = None
        if self._waiting:
            self.add(next(iter(self._waiting)))


class Subscription:
    """The events of one subscriber, in the order they were sent.

    One task iterates. The iteration ends at the end of the block of `EventBus.subscribe`.
    """

    def __init__(
        self,
        chosen: filters.Filter,
        texts: tuple[str, ...],
        limit: int | None = None,
        limit_bytes: int | None = None,
        turns: Turns | None = None,
        *,
        ends_when_full: bool = False,
    ) -> None:
        self._turns = turns or Turns()
        self._filter = chosen
        self.filters = texts
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._waiting_bytes = 0
        self._ends_when_full = ends_when_full
        self._overflowed = False
        self._queue: deque[Envelope] = deque()
        self._delivered = self._dropped = 0
        self._closed = False
        self._taker: Taker | None = None
        self._reader: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Subscription {list(self.filters)} {self.statistics()}>"

    def __len__(self) -> int:
        return len(self._queue)

    def statistics(self) -> dict[str, int]:
        """Return how many events wait for the subscriber, how many it took, and how many its limit dropped."""
        return {"waiting": len(self._queue), "delivered": self._delivered, "dropped": self._dropped}

    def wants(self, fields: EnvelopeFields) -> bool:
        """Return whether an event matches. Subscriptions of equal `filters` want the same events."""
        return self._filter.matches_all or self._filter.matches(fields.get)

    def put(self, envelope: Envelope) -> None:
        """Queue an event for the taker's next turn, or for the iteration."""
        if self._overflowed:
            self._dropped += 1
            return
        size = len(envelope.event.value)
        while self._queue and self._is_full(size):
            if self._ends_when_full:
                self._overflow()
                return
            self._next()
            self._dropped += 1
        self._queue.append(envelope)
        self._waiting_bytes += size
        if self._taker is None:
            self._wake()
        else:
            self._turns.add(self)

    def hand_to(self, taker: Taker | None) -> None:
        """Offer the events to `taker` first, soon after they are sent. This wakes no task, so it costs less.

        The iteration gets what the taker does not take, and everything if there is none.
        """
        self._taker = taker
        if taker is None:
            self._wake()

    def hand_over(self) -> bool:
        """Offer the events that wait to the taker. Return whether more wait for its next turn."""
        taker = self._taker
        for _ in range(EVENTS_A_TURN):
            if not self._queue:
                return False
            if taker is None or not taker(self._queue[0]):
                self._wake()
                return False
            self._next()
            self._delivered += 1
        return bool(self._queue)

    def close(self) -> None:
        """End the iteration once the queued events are taken."""
        self._taker, self._closed = None, True
        self._wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Envelope:
        while not self._queue:
            if self._overflowed:
                most = f"{self._limit} events"
                if self._limit_bytes is not None:
                    most += f" or {self._limit_bytes} bytes of them"
                raise ResourceExhausted(f"more than {most} waited for a subscriber that took none")
            if self._closed:
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        self._delivered += 1
        return self._next()

    def _is_full(self, size: int) -> bool:
        if len(self._queue) == self._limit:
            return True
        return self._limit_bytes is not None and self._waiting_bytes + size > self._limit_bytes

    def _next(self) -> Envelope:
        envelope = self._queue.popleft()
        self._waiting_bytes -= len(envelope.event.value)
        return envelope

    def _overflow(self) -> None:
        self._dropped += len(self._queue) + 1
        self._queue.clear()
        self._waiting_bytes = 0
        self._taker, self._overflowed = None, True
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class EnvelopeFields:
    """The fields of an event for filters: `namespace`, `topic`, and `event.` with the fields of its payload.

    The payload is decoded when a filter first asks for one of its fields.
    """

    def __init__(self, envelope: Envelope, payloads: Payloads) -> None:
        self._envelope = envelope
        self._payloads = payloads

    def get(self, path: filters.FieldPath) -> str | None:
        """Return the value of a field; None where it is absent or empty."""
        if path[0] == "namespace":
            return self._envelope.namespace or None
        if path[0] == "topic":
            return self._envelope.topic or None
        return self._event(path[1:]) if path[0] == "event" else None

    @cached_property
    def _event(self) -> filters.Adaptor:
        return self._payloads.fields(self._envelope.event)


def validate_envelope(envelope: Envelope) -> None:
    """Raise InvalidArgument, in containerd's words, unless the envelope can be sent."""
    _validate_namespace(envelope.namespace)
    validate_topic(envelope.topic)
    if envelope.timestamp_ns == timestamps.ZERO_NS:
        raise InvalidArgument("timestamp must be set on forwarded event")


def validate_topic(topic: str) -> None:
    """Raise InvalidArgument unless `topic` is `/` and identifiers joined by `/`."""
    try:
        _validate_components(topic)
    except InvalidArgument as error:
        raise InvalidArgument(f"envelope topic {quoted(topic)}: {error.message}") from error


def _validate_namespace(namespace: str) -> None:
    try:
        identifiers.validate(namespace)
    except InvalidArgument as error:
        raise InvalidArgument(f"event envelope has invalid namespace: {error.message}") from error


def _validate_components(topic: str) -> None:
    if not topic:
        raise InvalidArgument("must not be empty")
    if not topic.startswith("/"):
        raise InvalidArgument("must start with '/'")
    if topic == "/":
        raise InvalidArgument("must have at least one component")
    for component in topic[1:].split("/"):
        try:
            identifiers.validate(component)
        except InvalidArgument as error:
            raise InvalidArgument(f"failed validation on component {quoted(component)}: {error.message}") from error


def _call_namespace() -> str:
    try:
        return context.namespace()
    except ContainerdError as error:
        raise type(error)(f"failed publishing event: {error.message}") from error
