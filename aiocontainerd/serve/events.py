"""The Events services of both sockets, over the event bus (facts/core 11)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar, Self
from weakref import WeakValueDictionary

import msgspec

from aiocontainerd import api
from aiocontainerd.errors import ContainerdError, Unknown, to_status
from aiocontainerd.events import Envelope
from aiocontainerd.serve.requests import required
from aiocontainerd.typeurl import Any
from aiocontainerd.wire import codec
from aiocontainerd.wire.anys import any_from_wire
from aiocontainerd.wire.events import envelope_from_wire, envelope_to_wire

if TYPE_CHECKING:
    from aiocontainerd.events import EventBus, Subscription
    from aiocontainerd.rpc.feed import Push


MAX_WAITING = 1 << 16
"""Events that wait for a client that does not read. With one more its stream ends, and the client subscribes again
to see the rest. containerd keeps events without limit."""
MAX_WAITING_BYTES = 32 << 20
"""Payloads of several events that wait for a client that does not read."""
_KEPT = 64
_KEPT_BYTES = 1 << 20
"""Encoded events that are kept for the subscribers that did not take them yet, beside the newest."""


class EventsGrpc:
    """`containerd.services.events.v1.Events`."""

    service_name: ClassVar[str] = "containerd.services.events.v1.Events"

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    async def publish(self, request: api.events.PublishRequest) -> api.protobuf.Empty:
        """Publish an event now, in the namespace of the call. Its payload is not touched and may be absent."""
        self._bus.publish(request.topic, any_from_wire(request.event) or Any("", b""))
        return api.protobuf.Empty()

    async def forward(self, request: api.events.ForwardRequest) -> api.protobuf.Empty:
        """Publish an envelope unchanged."""
        self._bus.forward(_envelope(request.envelope))
        return api.protobuf.Empty()

    def subscribe(self, request: api.events.SubscribeRequest) -> EventFeed:
        """Send every event that a filter matches, of all namespaces, from now on until the client leaves."""
        return EventFeed(self._bus, request.filters)


class EventFeed:
    """The answers of a `Subscribe`. It subscribes when its first answer is asked for, and until it is closed."""

    def __init__(self, bus: EventBus, filters: Sequence[str]) -> None:
        self._bus = bus
        self._filters = filters
        self._push: Push | None = None
        self._block = ExitStack()
        self._subscription: Subscription | None = None

    def push_to(self, push: Push) -> None:
        """Send events by `push` as they come, as far as it takes them. The others are answers to ask for."""
        self._push = push

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> codec.Encoded:
        if self._subscription is None:
            self._subscription = self._subscribe()
        return _encoded(await anext(self._subscription))

    async def aclose(self) -> None:
        """End the subscription."""
        self._block.close()

    def _subscribe(self) -> Subscription:
        try:
            subscribed = self._bus.subscribe(
                *self._filters, limit=MAX_WAITING, limit_bytes=MAX_WAITING_BYTES, ends_when_full=True
            )
            subscription = self._block.enter_context(subscribed)
        except ContainerdError as bad:
            raise Unknown(f"subscription error: {to_status(bad)[1]}") from bad
        push = self._push
        if push is not None:
            subscription.hand_to(lambda envelope: push(_encoded(envelope)))
        return subscription


class EventsTtrpc:
    """`containerd.services.events.ttrpc.v1.Events`, to which shims send their events."""

    service_name: ClassVar[str] = "containerd.services.events.ttrpc.v1.Events"

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    async def forward(self, request: api.events_ttrpc.ForwardRequest) -> api.protobuf.Empty:
        """Publish an envelope unchanged."""
        self._bus.forward(_envelope(request.envelope))
        return api.protobuf.Empty()


class _Event(codec.Encoded):
    """The message of an event. It keeps the event, so that this is known by its place in memory."""

    __slots__ = ("__weakref__", "envelope")

    def __init__(self, envelope: Envelope) -> None:
        super().__init__(codec.encode(envelope_to_wire(envelope)))
        self.envelope = envelope


class EncodedEvents:
    """Messages of events, each encoded once for all subscribers: they take it within moments of each other.

    A message lives as long as somebody sends it. The newest ones are kept for those who come later.
    """

    def __init__(self) -> None:
        self._alive: WeakValueDictionary[int, _Event] = WeakValueDictionary()
        self._kept: deque[_Event] = deque()
        self.kept_bytes = 0

    def __repr__(self) -> str:
        return f"<EncodedEvents {len(self._kept)} kept, {self.kept_bytes} bytes>"

    def of(self, envelope: Envelope) -> codec.Encoded:
        """Return the message of an event."""
        found = self._alive.get(id(envelope))
        if found is None:
            found = self._alive[id(envelope)] = _Event(envelope)
            self._keep(found)
        return found

    def _keep(self, event: _Event) -> None:
        self._kept.append(event)
        self.kept_bytes += len(event.data)
        while len(self._kept) > _KEPT or (self.kept_bytes > _KEPT_BYTES and len(self._kept) > 1):
            self.kept_bytes -= len(self._kept.popleft().data)


_encoded = EncodedEvents().of


def _envelope(message: api.types.Envelope | None) -> Envelope:
    """Return the envelope of a request; without a time it is of 1970, as in containerd."""
    given = required(message, "envelope")
    envelope = envelope_from_wire(given)
    return msgspec.structs.replace(envelope, timestamp_ns=0) if given.timestamp is None else envelope
