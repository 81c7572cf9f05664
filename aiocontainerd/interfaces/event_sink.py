"""Event sinks (kind `io.containerd.event-sink.v1`): where events go besides the daemon's own subscribers.

Vocabulary. An *event* is something that happened: a topic such as `/tasks/exit`, the namespace it happened in, the
time, and a typed payload. It travels in an *envelope*. A *sink* takes events somewhere: a file, a queue, a web hook.

Life cycle. The core gives every sink a queue of its own and a task that empties it: `deliver` is called with one
envelope at a time, in the order of publication, until the daemon stops; then what is queued is delivered for a
bounded time (`stop_timeout`). Sinks start early, so that they get what other plugins publish while they start. The
queue holds `queue_size` events; when it is full the oldest is dropped and counted. Both keys are in
`[plugins."io.containerd.internal.v1.event-sinks"]`.

`filters` is read once, when the sink is loaded: containerd's filters (facts/core 2) over `topic`, `namespace` and
`event.<field>`, such as `topic~=^/tasks/`; an event is delivered if one of them matches, each of them without
filters. A sink whose filter does not parse has failed, with the parser's text. Events of every namespace are
delivered; the namespace is in the envelope and not in the context of the call.

What must fail and how: nothing does. Publishers never wait for a sink. What `deliver` raises is logged under the
plugin's name and counted, and the event is gone: who wants retries makes them inside of `deliver`, and gives up
within its deadline. Delivery is at most once: a crash of the daemon loses what is queued.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aiocontainerd.events import Envelope
from aiocontainerd.interfaces.rules import WORK, deadline

__all__ = ["Envelope", "EventSink"]


class EventSink(Protocol):
    """Takes events somewhere."""

    @property
    def filters(self) -> Sequence[str]:
        """Filters of the events to deliver, such as a class attribute. Empty means all events."""
        ...

    @deadline(WORK)
    async def deliver(self, envelope: Envelope) -> None:
        """Take one event. The next one comes after this returns or raises."""
        ...
