"""The pump of event sinks: order, queue limits, failures, the end."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from aiocontainerd.config import Config, ConfigError
from aiocontainerd.config.values import Duration
from aiocontainerd.daemon import event_sinks
from aiocontainerd.events import Envelope, EventBus
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import Plugin, State
from aiocontainerd.plugin import InitContext, PluginConfig, Registration, kinds
from aiocontainerd.typeurl import Any

DEFAULTS = event_sinks.EventSinksConfig()
pytestmark = pytest.mark.anyio


class Sink:
    """Keeps topics; `failing` topics raise, `gate` holds deliveries back."""

    def __init__(self, *filters: str, failing: Sequence[str] = ()) -> None:
        self.filters = filters
        self.topics: list[str] = []
        self._failing = failing
        self.gate = anyio.Event()
        self.gate.set()

    async def deliver(self, envelope: Envelope) -> None:
        self.topics.append(envelope.topic)
        await self.gate.wait()
        if envelope.topic in self._failing:
            raise OSError("no route to host")


@asynccontextmanager
async def running(
    directory: Path, sink: Sink, config: event_sinks.EventSinksConfig = DEFAULTS, others: Sequence[Registration] = ()
) -> AsyncIterator[tuple[EventBus, Plugin]]:
    bus, registry = EventBus(), Registry()

    async def init_sink(_context: InitContext[PluginConfig]) -> Sink:
        return sink

    registry.add(Registration(kind=kinds.EVENT_SINK, id="acme", init=init_sink))
    for registration in (*event_sinks.register_plugins(), *others):
        registry.add(registration)
    daemon = DaemonInfo(
        root=directory / "root", state=directory / "state", temp=directory, grpc_address="", ttrpc_address="",
        bus=bus, plugins=list, timeout_s=lambda _name: 5.0,
    )  # fmt: skip
    configs: dict[str, PluginConfig] = {event_sinks.PLUGIN_ID: config}
    async with registry.run(daemon, lambda registration: configs.get(registration.id, PluginConfig())):
        yield bus, registry[f"{kinds.INTERNAL}.{event_sinks.PLUGIN_ID}"]


def publish(bus: EventBus, *topics: str) -> None:
    for topic in topics:
        bus.publish(topic, Any("acme", b""), namespace="default")


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await anyio.sleep(0.001)


async def test_events_come_in_order_and_only_those_that_match(tmp_path: Path) -> None:
    sink = Sink("topic~=^/tasks/")
    async with running(tmp_path, sink) as (bus, _):
        publish(bus, "/tasks/start", "/images/create", "/tasks/exit")
        await until(lambda: len(sink.topics) == 2)
    assert sink.topics == ["/tasks/start", "/tasks/exit"]


async def test_what_is_queued_at_the_end_is_delivered(tmp_path: Path) -> None:
    sink = Sink()
    async with running(tmp_path, sink) as (bus, _):
        publish(bus, "/a", "/b", "/c")
    assert sink.topics == ["/a", "/b", "/c"]


async def test_a_full_queue_drops_the_oldest_and_counts_it(tmp_path: Path) -> None:
    sink = Sink()
    sink.gate = anyio.Event()
    async with running(tmp_path, sink, event_sinks.EventSinksConfig(queue_size=2)) as (bus, pump):
        publish(bus, "/first")
        await until(lambda: sink.topics)
        publish(bus, "/a", "/b", "/c", "/d")
        assert pump.instance.statistics() == {
            "io.containerd.event-sink.v1.acme": {"waiting": 2, "delivered": 1, "dropped": 2, "failed": 0}
        }
        sink.gate.set()
    assert sink.topics == ["/first", "/c", "/d"]


async def test_a_failure_is_logged_once_and_counted_and_the_next_event_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sink = Sink(failing=["/a", "/b"])
    async with running(tmp_path, sink) as (bus, pump):
        publish(bus, "/a", "/b", "/c")
        await until(lambda: len(sink.topics) == 3)
        (statistics,) = pump.instance.statistics().values()
        assert statistics["failed"] == 2
    first, *rest = [record.message for record in caplog.records if "acme" in record.message]
    assert first.startswith(
        "io.containerd.event-sink.v1.acme did not deliver /a: OSError: no route to host (tests/test_daemon_event_sinks"
    )
    assert rest == [
        "io.containerd.event-sink.v1.acme delivers again after 2 failures",
    ]


async def test_a_sink_that_hangs_holds_up_the_end_no_longer_than_its_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Sink()
    sink.gate = anyio.Event()
    with anyio.fail_after(20):
        async with running(tmp_path, sink, event_sinks.EventSinksConfig(stop_timeout=Duration("20ms"))) as (bus, _):
            publish(bus, "/a", "/b")
            await until(lambda: sink.topics)
    assert "io.containerd.event-sink.v1.acme is stopped with 2 events not delivered" in caplog.messages


async def test_a_sink_gets_what_other_plugins_publish_while_they_start(tmp_path: Path) -> None:
    async def init(context: InitContext[PluginConfig]) -> object:
        publish(context.bus, "/tasks/exit")
        return object()

    sink = Sink()
    others = [Registration(kind=kind, id="a", init=init) for kind in (kinds.CONTENT, kinds.RUNTIME)]
    async with running(tmp_path, sink, others=others):
        pass
    assert sink.topics == ["/tasks/exit", "/tasks/exit"]


async def test_a_filter_that_does_not_parse_is_told_and_the_pump_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, Sink("topic~=")) as (bus, pump):
        publish(bus, "/a")
        assert (pump.state, pump.instance.statistics()) == (State.LOADED, {})
    (message,) = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert message.startswith(
        "plugin io.containerd.event-sink.v1.acme: gets no events: failed parsing subscription filters: "
    )


@pytest.mark.parametrize("keys", [{"queue_size": 0}, {"stop_timeout": "5"}])
def test_a_config_that_cannot_work_is_refused_when_it_is_loaded(keys: dict[str, object]) -> None:
    (registration,) = event_sinks.register_plugins()
    with pytest.raises(ConfigError, match=next(iter(keys))):
        Config({"plugins": {registration.uri: keys}}, {}).plugin_config(registration)
