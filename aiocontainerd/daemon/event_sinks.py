"""Built-in plugin: deliver events to the event sinks (`interfaces/event_sink.py`). Each has a queue and a task.

A slow or broken sink harms nobody else. Publishers never wait for it, and its queue has a limit. The first failure in
a row is logged, and so is the end of the failures, with their number.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import anyio
import msgspec

from aiocontainerd import kinds
from aiocontainerd.config.plugin import PluginConfig
from aiocontainerd.config.values import Duration
from aiocontainerd.guard import diagnosis
from aiocontainerd.host.hookspecs import hookimpl
from aiocontainerd.host.init_context import InitContext
from aiocontainerd.host.registration import Registration, SkipPlugin

if TYPE_CHECKING:
    from aiocontainerd.events import Envelope, EventBus, Subscription
    from aiocontainerd.interfaces.event_sink import EventSink

PLUGIN_ID = "event-sinks"


class EventSinksConfig(PluginConfig, frozen=True):
    """`queue_size` events wait for each sink before the oldest is dropped.

    When the daemon stops, the sinks have `stop_timeout` to take what is queued; "0s" means no limit.
    """

    queue_size: Annotated[int, msgspec.Meta(ge=1)] = 1000
    stop_timeout: Duration = Duration("5s")


class SinkPump:
    """One sink, its queue (the subscription), and counters of what became of its events."""

    def __init__(self, uri: str, sink: EventSink, subscription: Subscription, log: logging.Logger) -> None:
        self.uri = uri
        self._sink = sink
        self._subscription = subscription
        self._log = log
        self._failures_in_a_row = 0
        self.failed = 0
        self.drained = anyio.Event()

    def __repr__(self) -> str:
        return f"<SinkPump {self.uri} {self.statistics()}>"

    def statistics(self) -> dict[str, int]:
        """Return how many events wait, were delivered, were dropped for lack of room, and failed."""
        return {**self._subscription.statistics(), "failed": self.failed}

    async def run(self) -> None:
        """Deliver one event after another until the subscription ends."""
        try:
            async for envelope in self._subscription:
                await self._deliver(envelope)
        finally:
            self.drained.set()

    async def _deliver(self, envelope: Envelope) -> None:
        try:
            await self._sink.deliver(envelope)
        except Exception as error:  # noqa: BLE001 - the edge of a sink: what it raises is logged and counted
            self._note_failure(envelope, error)
        else:
            self._note_success()

    def _note_failure(self, envelope: Envelope, error: Exception) -> None:
        self.failed += 1
        self._failures_in_a_row += 1
        if self._failures_in_a_row == 1:
            what = diagnosis.describe(error, type(self._sink).__module__)
            self._log.warning("%s did not deliver %s: %s", self.uri, envelope.topic, what)

    def _note_success(self) -> None:
        if self._failures_in_a_row:
            self._log.info("%s delivers again after %d failures", self.uri, self._failures_in_a_row)
        self._failures_in_a_row = 0


class SinkPumps:
    """The pumps of all sinks. The instance of the plugin."""

    def __init__(self, log: logging.Logger) -> None:
        self.pumps: list[SinkPump] = []
        self._log = log
        self._subscriptions = ExitStack()

    def __repr__(self) -> str:
        return f"<SinkPumps {self.pumps}>"

    def statistics(self) -> dict[str, dict[str, int]]:
        """Return the statistics of each pump, by the URI of its sink's plugin."""
        return {pump.uri: pump.statistics() for pump in self.pumps}

    def add(self, uri: str, sink: EventSink, bus: EventBus, queue_size: int) -> SinkPump:
        """Queue the events that match the sink's filters from now on. Raises InvalidArgument for a bad filter."""
        subscription = self._subscriptions.enter_context(bus.subscribe(*sink.filters, limit=queue_size))
        pump = SinkPump(uri, sink, subscription, self._log)
        self.pumps.append(pump)
        return pump

    async def stop(self, timeout_s: float) -> None:
        """Take no more events. Deliver what is queued, for at most `timeout_s` seconds; 0 means no limit."""
        self._subscriptions.close()
        with anyio.move_on_after(timeout_s or None):
            for pump in self.pumps:
                await pump.drained.wait()
        for pump in self.pumps:
            if not pump.drained.is_set():
                left = pump.statistics()["waiting"]
                self._log.warning("%s is stopped with %d events not delivered", pump.uri, left + 1)


async def init(context: InitContext[EventSinksConfig]) -> SinkPumps:
    """Start a pump for every sink that is loaded. A sink whose filters do not parse gets no events; it has failed."""
    sinks = context.get_all(kinds.EVENT_SINK)
    if not sinks:
        raise SkipPlugin("no event sink is loaded")
    pumps = SinkPumps(context.log)
    for plugin_id, sink in sorted(sinks.items()):
        uri = f"{kinds.EVENT_SINK}.{plugin_id}"
        try:
            pump = pumps.add(uri, sink, context.bus, context.config.queue_size)
        except Exception as error:  # noqa: BLE001 - `filters` is the sink's own code
            context.reject(uri, f"gets no events: {diagnosis.describe(error, type(sink).__module__)}")
            continue
        context.tasks.start_soon(pump.run, name=plugin_id)

    async def stop() -> None:
        await pumps.stop(context.config.stop_timeout.seconds)

    context.on_stop(stop)
    return pumps


@hookimpl
def register_plugins() -> list[Registration]:
    """Register the pump. It starts early, so that sinks get what other plugins publish while they start."""
    return [
        Registration(
            kind=kinds.INTERNAL, id=PLUGIN_ID, wants=(kinds.EVENT_SINK,), config=EventSinksConfig, init=init, early=True
        )
    ]
