"""Events: envelopes, and the event bus that takes generated messages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import betterproto2

from aiocontainerd import api, filters, timestamps
from aiocontainerd.api.names import python_name
from aiocontainerd.events import Envelope, EventBus
from aiocontainerd.typeurl import Any
from aiocontainerd.wire.anys import any_from_wire, any_to_wire, marshal, unmarshal_given
from aiocontainerd.wire.times import time_from_wire, time_to_wire


def envelope_from_wire(message: api.types.Envelope) -> Envelope:
    """Return the record of an event."""
    return Envelope(
        timestamp_ns=time_from_wire(message.timestamp),
        namespace=message.namespace,
        topic=message.topic,
        event=any_from_wire(message.event) or Any("", b""),
    )


def envelope_to_wire(envelope: Envelope) -> api.types.Envelope:
    """Return the message of an event."""
    return api.types.Envelope(
        timestamp=time_to_wire(envelope.timestamp_ns),
        namespace=envelope.namespace,
        topic=envelope.topic,
        event=any_to_wire(envelope.event),
    )


def message_bus(now_ns: Callable[[], int] = timestamps.now_ns) -> EventBus:
    """Return an event bus that takes generated messages and whose filters see their fields."""
    return EventBus(now_ns, MessagePayloads())


class MessagePayloads:
    """Payloads that are messages of the API, or of a plugin whose classes are loaded."""

    def encode(self, event: betterproto2.Message) -> Any:
        """Wrap the message."""
        return marshal(event)

    def fields(self, event: Any) -> filters.Adaptor:
        """Return the fields of the decoded message; none for a foreign or damaged payload."""
        try:
            message = unmarshal_given(event)
        except Exception:  # noqa: BLE001 - whatever is wrong with a payload, it is delivered all the same
            return lambda _path: None
        return partial(message_field, message)


def message_field(message: betterproto2.Message, path: filters.FieldPath) -> str | None:
    """Return the value of a field by its path, down through nested messages; None where no filter can match it.

    Only strings, bools and string maps have a value, as in containerd.
    """
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
