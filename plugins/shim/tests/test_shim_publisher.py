"""Events to the daemon: in order, again when the daemon is away, dropped when it stays away (facts/runtime 10)."""

from __future__ import annotations

import asyncio

import pytest
from aiocontainerd_shim.task import publisher as publisher_module
from aiocontainerd_shim.task.publisher import Publisher

from aiocontainerd import api
from aiocontainerd.errors import InvalidArgument, Unavailable


class Daemon:
    """Takes events; fails the first `failures` of them with `error`."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures = failures
        self.error = error
        self.attempts = 0
        self.taken: list[str] = []

    async def send(self, request: api.events_ttrpc.ForwardRequest) -> None:
        self.attempts += 1
        if self.attempts <= self.failures:
            raise self.error
        assert request.envelope is not None
        assert request.envelope.namespace == "ns"
        self.taken.append(request.envelope.topic)


async def published(daemon: Daemon) -> Publisher:
    publisher = Publisher(daemon.send, "ns")
    for topic in ("/tasks/start", "/tasks/exit"):
        publisher.publish(topic, api.event_types.TaskStart(container_id="c"))
    async with asyncio.TaskGroup() as tasks:
        sender = tasks.create_task(publisher.run())
        assert await publisher.drained(5.0)
        sender.cancel()
    return publisher


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "RETRY_DELAYS_S", (0.0, 0.0, 0.0, 0.0, 0.0))


@pytest.mark.anyio
async def test_an_event_waits_for_the_daemon_and_none_overtakes_it() -> None:
    daemon = Daemon(3, Unavailable("away"))
    await published(daemon)
    assert daemon.taken == ["/tasks/start", "/tasks/exit"]


@pytest.mark.anyio
async def test_an_event_is_dropped_after_the_fifth_retry() -> None:
    daemon = Daemon(6, Unavailable("away"))
    publisher = await published(daemon)
    assert daemon.taken == ["/tasks/exit"]
    assert publisher.statistics() == {"queued": 0, "dropped": 1}


@pytest.mark.anyio
async def test_an_event_the_daemon_refuses_is_not_sent_again() -> None:
    daemon = Daemon(1, InvalidArgument("bad topic"))
    publisher = await published(daemon)
    assert daemon.attempts == 2
    assert publisher.dropped == 1
