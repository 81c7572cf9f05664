"""The event bus: publish, forward, subscribe with filters (facts/core 11).

Publishing never waits: each subscriber has a queue of its own, every subscriber sees the same order, and nothing is
dropped unless the subscriber set a limit. Subscribing crosses namespaces. All of it belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Self

import msgspec

from aiocontainerd import context, filters, identifiers, timestamps, typeurl
from aiocontainerd.errors import ContainerdError, InvalidArgument
from aiocontainerd.typeurl import Any

if TYPE_CHECKING:
    import betterproto2


class Envelope(msgspec.Struct, frozen=True):
    """An event as it travels: nanoseconds since 1970, namespace, topic, typed payload."""

    timestamp_ns: int
    namespace: str
    topic: str
    event: Any


class EventBus:
    """Everything that reacts to change subscribes here; everything that changes publishes here."""

    def __init__(self, now_ns: Callable[[], int] = timestamps.now_ns) -> None:
        self._now_ns = now_ns
        self._subscriptions: list[Subscription] = []
        self._published = 0

    def __repr__(self) -> str:
        return f"<EventBus {self.statistics()}>"

    def statistics(self) -> dict[str, int]:
        """Events sent since the start, subscribers now, and what waits in their queues."""
        waiting = sum(len(subscription) for subscription in self._subscriptions)
        return {"published": self._published, "subscriptions": len(self._subscriptions), "waiting": waiting}

    def publish(self, topic: str, event: betterproto2.Message | Any, *, namespace: str | None = None) -> None:
        """Send an event now, in `namespace` or that of the current call.

        Raises FailedPrecondition where the call has no namespace, InvalidArgument for a bad one or a bad topic.
        """
        space = _call_namespace() if namespace is None else namespace
        payload = event if isinstance(event, Any) else typeurl.marshal(event)
        self.forward(Envelope(self._now_ns(), space, topic, payload))

    def forward(self, envelope: Envelope) -> None:
        """Send an event that was made elsewhere, as it is.

        Raises InvalidArgument for a bad namespace or topic, or where no time is set.
        """
        validate_envelope(envelope)
        self._published += 1
        adaptor = EnvelopeFields(envelope).get
        for subscription in self._subscriptions:
            subscription.offer(envelope, adaptor)

    def subscribe(self, *filter_texts: str, limit: int | None = None) -> AbstractContextManager[Subscription]:
        """Receive every event sent inside the block that one of the filters matches; all of them without filters.

        No more than `limit` of them wait: beyond it the oldest is dropped and counted.

        Raises InvalidArgument for a filter that does not parse.
        """
        try:
            compiled = filters.compile_filters(filter_texts)
        except InvalidArgument as error:
            raise InvalidArgument(f"failed parsing subscription filters: {error.message}") from error
        return self._subscribed(Subscription(compiled, filter_texts, limit))

    @contextmanager
    def _subscribed(self, subscription: Subscription) -> Iterator[Subscription]:
        self._subscriptions.append(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)
            subscription.close()


class Subscription:
    """The events of one subscriber, in the order they were sent. One task iterates; the end of the block ends it."""

    def __init__(self, chosen: filters.Filter, texts: tuple[str, ...], limit: int | None = None) -> None:
        self._filter = chosen
        self._texts = texts
        self._limit = limit
        self._queue: deque[Envelope] = deque()
        self._delivered = self._dropped = 0
        self._closed = False
        self._reader: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Subscription {list(self._texts)} {self.statistics()}>"

    def __len__(self) -> int:
        return len(self._queue)

    def statistics(self) -> dict[str, int]:
        """Events that wait for the subscriber, those it took, and those its limit dropped."""
        return {"waiting": len(self._queue), "delivered": self._delivered, "dropped": self._dropped}

    def offer(self, envelope: Envelope, adaptor: filters.Adaptor) -> None:
        """Queue the event if it matches."""
        if not self._filter.matches(adaptor):
            return
        if len(self._queue) == self._limit:
            self._queue.popleft()
            self._dropped += 1
        self._queue.append(envelope)
        self._wake()

    def close(self) -> None:
        """End the iteration after what is queued."""
        self._closed = True
        self._wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Envelope:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        self._delivered += 1
        return self._queue.popleft()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class EnvelopeFields:
    """The fields of an event for filters: `namespace`, `topic`, and `event.` with the fields of its message.

    The message is decoded when a filter first asks for one of its fields. Only strings, bools and string maps have a
    value; what cannot be decoded has no field.
    """

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope

    def get(self, path: filters.FieldPath) -> str | None:
        """The value of a field, None where it is absent or empty."""
        if path[0] == "namespace":
            return self._envelope.namespace or None
        if path[0] == "topic":
            return self._envelope.topic or None
        if path[0] == "event" and self._message is not None:
            return message_field(self._message, path[1:])
        return None

    @cached_property
    def _message(self) -> betterproto2.Message | None:
        try:
            return typeurl.unmarshal(self._envelope.event)
        except Exception:  # noqa: BLE001 - a foreign or damaged payload has no fields; it is delivered all the same
            return None


def message_field(message: betterproto2.Message, path: filters.FieldPath) -> str | None:
    """The value of a message's field by its path, down through nested messages; None where it cannot match."""
    import betterproto2

    from aiocontainerd.rpc.binding import python_name

    if not path:
        return None
    value = vars(message).get(python_name(path[0]))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value or None
    if isinstance(value, dict):
        found = filters.field(value, path[1:])
        return found if isinstance(found, str) else None
    return message_field(value, path[1:]) if isinstance(value, betterproto2.Message) else None


def validate_envelope(envelope: Envelope) -> None:
    """Raise InvalidArgument, in containerd's words, unless the envelope can be sent."""
    try:
        identifiers.validate(envelope.namespace)
    except InvalidArgument as error:
        raise InvalidArgument(f"event envelope has invalid namespace: {error.message}") from error
    validate_topic(envelope.topic)
    if envelope.timestamp_ns == timestamps.ZERO_NS:
        raise InvalidArgument("timestamp must be set on forwarded event")


def validate_topic(topic: str) -> None:
    """Raise InvalidArgument unless `topic` is `/` and identifiers joined by `/`."""
    try:
        _validate_components(topic)
    except InvalidArgument as error:
        raise InvalidArgument(f'envelope topic "{topic}": {error.message}') from error


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
            raise InvalidArgument(f'failed validation on component "{component}": {error.message}') from error


def _call_namespace() -> str:
    try:
        return context.namespace()
    except ContainerdError as error:
        raise type(error)(f"failed publishing event: {error.message}") from error
