"""The event bus: publish, forward, subscribe with filters (facts/core 11).

Publishing never waits: each subscriber has a queue of its own without bound, every subscriber sees the same order,
and nothing is dropped. Subscribing crosses namespaces.
"""

from __future__ import annotations

import msgspec

from aiocontainerd.typeurl import Any


class Envelope(msgspec.Struct, frozen=True):
    """An event as it travels: nanoseconds since 1970, namespace, topic, typed payload."""

    timestamp_ns: int
    namespace: str
    topic: str
    event: Any


class EventBus:
    """Stub."""
