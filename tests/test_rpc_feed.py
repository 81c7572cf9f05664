"""Events on their way to many subscribers: encoded once, sent without waking a task, in order for a slow client too."""

from __future__ import annotations

import asyncio
import socket
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h2.connection
import h2.events
import pytest

from aiocontainerd import api
from aiocontainerd.events import Envelope, EventBus
from aiocontainerd.rpc.grpc import GrpcConnection, GrpcFrontEnd
from aiocontainerd.serve import events as serve_events
from aiocontainerd.serve.events import EncodedEvents, EventsGrpc
from aiocontainerd.typeurl import Any as Value
from aiocontainerd.wire import codec
from aiocontainerd.wire.events import envelope_to_wire

SUBSCRIBE = "/containerd.services.events.v1.Events/Subscribe"
pytestmark = pytest.mark.anyio


class Subscriber:
    """A client that takes no more than it asked for, so that a test decides when its window opens."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.h2 = h2.connection.H2Connection()
        self.h2.initiate_connection()
        self.h2.send_headers(
            1,
            [(":method", "POST"), (":scheme", "http"), (":path", SUBSCRIBE), (":authority", "x"),
             ("content-type", "application/grpc")],
        )  # fmt: skip
        self.h2.send_data(1, bytes(5), end_stream=True)
        self.writer.write(self.h2.data_to_send())
        self.data = bytearray()

    async def topics(self, count: int) -> list[str]:
        """Return the topics of the first `count` events, and open the window as they come."""
        async with asyncio.timeout(20):
            while len(found := self._messages()) < count:
                for event in self.h2.receive_data(await self.reader.read(1 << 16)):
                    if isinstance(event, h2.events.DataReceived):
                        self.data += event.data
                        self.h2.acknowledge_received_data(event.flow_controlled_length, 1)
                self.writer.write(self.h2.data_to_send())
        return [message.topic for message in found]

    def _messages(self) -> list[api.types.Envelope]:
        found, position = [], 0
        while len(self.data) >= position + 5:
            end = position + 5 + int.from_bytes(self.data[position + 1 : position + 5])
            if end > len(self.data):
                break
            found.append(codec.decode(api.types.Envelope, bytes(self.data[position + 5 : end])))
            position = end
        return found


@asynccontextmanager
async def subscribed(tmp_path: Path, count: int) -> AsyncIterator[tuple[EventBus, list[Subscriber]]]:
    bus = EventBus()
    front = GrpcFrontEnd([EventsGrpc(bus)])
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    await front.start(sock)
    clients = [Subscriber(*await asyncio.open_unix_connection(tmp_path / "s")) for _ in range(count)]
    try:
        async with asyncio.timeout(20):
            while bus.statistics()["subscriptions"] < count:  # noqa: ASYNC110 - the bus tells nobody
                await asyncio.sleep(0)
        yield bus, clients
    finally:
        for client in clients:
            client.writer.close()
            await client.writer.wait_closed()
        await front.stop(0)


def publish(bus: EventBus, topic: str, size: int = 10) -> None:
    bus.publish(topic, Value("type", bytes(size)), namespace="n")


async def test_an_event_is_encoded_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[Any] = []

    def to_wire(envelope: Envelope) -> api.types.Envelope:
        encoded.append(envelope)
        return envelope_to_wire(envelope)

    monkeypatch.setattr(serve_events, "envelope_to_wire", to_wire)
    async with subscribed(tmp_path, 5) as (bus, clients):
        for number in range(3):
            publish(bus, f"/{number}")
        for client in clients:
            assert await client.topics(3) == ["/0", "/1", "/2"]
        assert bus.statistics()["waiting"] == 0
    assert len(encoded) == 3


async def test_events_that_follow_each_other_are_one_write_for_each_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = GrpcConnection.flush
    written: list[GrpcConnection] = []

    def flush(self: GrpcConnection) -> None:
        if self.http2.out:
            written.append(self)
        original(self)

    async with subscribed(tmp_path, 5) as (bus, clients):
        monkeypatch.setattr(GrpcConnection, "flush", flush)
        for number in range(3):
            publish(bus, f"/{number}")
        for client in clients:
            await client.topics(3)
        monkeypatch.undo()
    assert len(written) == len(set(written)) == 5


async def test_a_client_that_takes_nothing_gets_all_in_order_when_it_does(tmp_path: Path) -> None:
    async with subscribed(tmp_path, 1) as (bus, [client]):
        for number in range(300):
            publish(bus, f"/{number}", 1000)
        assert bus.statistics()["waiting"] > 0
        taken = asyncio.create_task(client.topics(600))
        for number in range(300, 600):
            publish(bus, f"/{number}", 1000)
            await asyncio.sleep(0)
        assert await taken == [f"/{number}" for number in range(600)]


async def test_an_event_that_is_longer_than_the_window_arrives_before_those_after_it(tmp_path: Path) -> None:
    async with subscribed(tmp_path, 1) as (bus, [client]):
        publish(bus, "/0", 200_000)
        await asyncio.sleep(0)
        for number in range(1, 4):
            publish(bus, f"/{number}")
            await asyncio.sleep(0)
        assert await client.topics(4) == ["/0", "/1", "/2", "/3"]


async def test_a_subscriber_that_leaves_is_forgotten(tmp_path: Path) -> None:
    async with subscribed(tmp_path, 2) as (bus, clients):
        publish(bus, "/0")
        clients[0].writer.close()
        async with asyncio.timeout(20):
            while bus.statistics()["subscriptions"] == 2:
                publish(bus, "/1")
                await asyncio.sleep(0)
        publish(bus, "/2")
        assert (await clients[1].topics(3))[0] == "/0"


async def test_more_clients_than_an_old_default_may_connect_before_any_is_accepted(tmp_path: Path) -> None:
    front = GrpcFrontEnd([EventsGrpc(EventBus())])
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    await front.start(sock)
    most = min(400, int(Path("/proc/sys/net/core/somaxconn").read_text()))
    clients = [socket.socket(socket.AF_UNIX) for _ in range(most)]
    try:
        for client in clients:
            client.setblocking(False)
            client.connect(str(tmp_path / "s"))  # the loop does not run, so nobody accepts
    finally:
        for client in clients:
            client.close()
        await front.stop(0)


def test_few_bytes_of_events_are_kept_and_a_message_that_somebody_sends_is_not_encoded_again() -> None:
    events = EncodedEvents()
    envelopes = [Envelope(1, "n", f"/{number}", Value("type", bytes(1 << 20))) for number in range(5)]
    sent = events.of(envelopes[0])
    for envelope in envelopes:
        events.of(envelope)
    assert events.kept_bytes < 2 << 20
    assert events.of(envelopes[0]) is sent
    gone = weakref.ref(sent)
    del sent
    events.of(envelopes[4])
    assert gone() is None
    small = [Envelope(1, "n", "/a", Value("type", b"")) for _ in range(1000)]
    for envelope in small:
        events.of(envelope)
    assert events.kept_bytes < 10_000
    assert events.of(small[-1]) is events.of(small[-1])
