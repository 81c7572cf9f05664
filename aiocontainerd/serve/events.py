"""The Events services of both sockets, over the event bus (facts/core 11)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, ClassVar

import msgspec

from aiocontainerd import api
from aiocontainerd.errors import InvalidArgument, Unknown, to_status
from aiocontainerd.events import Envelope
from aiocontainerd.serve.requests import required
from aiocontainerd.typeurl import Any
from aiocontainerd.wire.anys import any_from_wire
from aiocontainerd.wire.events import envelope_from_wire, envelope_to_wire

if TYPE_CHECKING:
    from aiocontainerd.events import EventBus


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

    async def subscribe(self, request: api.events.SubscribeRequest) -> AsyncIterator[api.types.Envelope]:
        """Send every event that a filter matches, of all namespaces, from now on until the client leaves."""
        try:
            subscribed = self._bus.subscribe(*request.filters)
        except InvalidArgument as bad:
            raise Unknown(f"subscription error: {to_status(bad)[1]}") from bad
        with subscribed as subscription:
            async for envelope in subscription:
                yield envelope_to_wire(envelope)


class EventsTtrpc:
    """`containerd.services.events.ttrpc.v1.Events`, to which shims send their events."""

    service_name: ClassVar[str] = "containerd.services.events.ttrpc.v1.Events"

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    async def forward(self, request: api.events_ttrpc.ForwardRequest) -> api.protobuf.Empty:
        """Publish an envelope unchanged."""
        self._bus.forward(_envelope(request.envelope))
        return api.protobuf.Empty()


def _envelope(message: api.types.Envelope | None) -> Envelope:
    """Return the envelope of a request; without a time it is of 1970, as in containerd."""
    given = required(message, "envelope")
    envelope = envelope_from_wire(given)
    return msgspec.structs.replace(envelope, timestamp_ns=0) if given.timestamp is None else envelope
