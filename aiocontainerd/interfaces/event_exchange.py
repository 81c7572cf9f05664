"""The event exchange (kind `io.containerd.event.v1`, id `exchange`; facts/core 11): the daemon's event bus.

Vocabulary. An *event* travels in an *envelope*: time, namespace, topic such as `/tasks/exit`, typed payload. A
*subscription* has a queue of its own.

Life cycle. The daemon makes the bus before any plugin starts, and every plugin has it as `InitContext.bus`, too. A
subscription lives as long as the `with` block that opened it.

What must fail and how. Publishing never waits and never fails because of a subscriber. A bad namespace or topic, a
time that is not set and a filter that does not parse raise InvalidArgument; a call without a namespace raises
FailedPrecondition.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from aiocontainerd.events import Envelope, Subscription
from aiocontainerd.interfaces.rules import unguarded
from aiocontainerd.typeurl import Any

if TYPE_CHECKING:
    import betterproto2


@unguarded("none of its methods is awaited; a subscriber waits for the next event as long as it likes")
class EventExchange(Protocol):
    """Sends events to whoever subscribed."""

    def publish(self, topic: str, event: betterproto2.Message | Any, *, namespace: str | None = None) -> None:
        """Send an event now, in `namespace` or that of the current call."""
        ...

    def forward(self, envelope: Envelope) -> None:
        """Send an event that was made elsewhere, as it is."""
        ...

    def subscribe(
        self, *filter_texts: str, limit: int | None = None, ends_when_full: bool = False
    ) -> AbstractContextManager[Subscription]:
        """Receive the events that one of the filters matches.

        Beyond `limit` waiting ones the oldest is dropped; with `ends_when_full` the iteration ends with
        ResourceExhausted instead.
        """
        ...
