"""The Events services of both sockets (facts/core 11). They call the event bus; there is no logic of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, ClassVar

from aiocontainerd import api
from aiocontainerd.errors import InvalidArgument, Unknown, to_status
from aiocontainerd.events import Envelope
from aiocontainerd.serve.requests import required
from aiocontainerd.typeurl import Any
from aiocontainerd.wire.events import envelope_from_wire, envelope_to_wire

if TYPE_CHECKING:
    from aiocontainerd.events import EventBus


class EventsGrpc:
    """`containerd.services.events.v1.Events`."""

    service_name: ClassVar[str] = "containerd.services.events.v1.Events"

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    async def publish(self, request: api.events.PublishRequest) -> api.protobuf.Empty:
        """Publishes in the namespace of the call, now; the event passes through untouched."""
        event = required(request.event, "event")
        self._bus.publish(request.topic, Any(event.type_url, event.value))
        return api.protobuf.Empty()

    async def forward(self, request: api.events.ForwardRequest) -> api.protobuf.Empty:
        """Publishes an envelope as it is."""
        self._bus.forward(_envelope(request.envelope))
        return api.protobuf.Empty()

    async def subscribe(self, request: api.events.SubscribeRequest) -> AsyncIterator[api.types.Envelope]:
        """Every event of every namespace from here on that a filter matches, until the client goes."""
        try:
            subscribed = self._bus.subscribe(*request.filters)
        except InvalidArgument as bad:
            raise Unknown(f"subscription error: {to_status(bad)[1]}") from bad
        with subscribed as subscription:
            async for envelope in subscription:
                yield envelope_to_wire(envelope)


class EventsTtrpc:
    """`containerd.services.events.ttrpc.v1.Events`: where shims send their events."""

    service_name: ClassVar[str] = "containerd.services.events.ttrpc.v1.Events"

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    async def forward(self, request: api.events_ttrpc.ForwardRequest) -> api.protobuf.Empty:
        """Publishes an envelope as it is."""
        self._bus.forward(_envelope(request.envelope))
        return api.protobuf.Empty()


def _envelope(message: api.types.Envelope | None) -> Envelope:
    given = required(message, "envelope")
    required(given.event, "envelope.event")
    return envelope_from_wire(given)
