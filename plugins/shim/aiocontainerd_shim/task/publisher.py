"""Events to the daemon, over its ttrpc socket, in the order they came (facts/runtime 10).

One sender takes the events one by one, so none overtakes another. If a connection is lost in the middle of a call, a
new one is made and the event sent once more. If the daemon stays away, the sender tries again after 1, 2, 3, 4 and 5 s,
with all later events waiting behind; then the event is dropped. An event that the daemon refuses is dropped at once.
This runs on plain asyncio, because the shim's memory counts (see `service.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiocontainerd import api, timestamps
from aiocontainerd.errors import ContainerdError, DeadlineExceeded, Unavailable
from aiocontainerd.wire.anys import any_to_wire, marshal
from aiocontainerd.wire.times import time_to_wire

if TYPE_CHECKING:
    import betterproto2

    from aiocontainerd.rpc.ttrpc.client import TtrpcClient

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 5.0
DIAL_TIMEOUT_S = 5.0
DIAL_RETRY_S = 0.01
RETRY_DELAYS_S = (1.0, 2.0, 3.0, 4.0, 5.0)
QUEUE_LIMIT = 2048

Send = Callable[["api.events_ttrpc.ForwardRequest"], Awaitable[None]]


class Forwarder:
    """The connection to the daemon's event service."""

    def __init__(self, address: str, namespace: str) -> None:
        self._address = address
        self._namespace = namespace
        self._client: TtrpcClient | None = None

    async def send(self, request: api.events_ttrpc.ForwardRequest) -> None:
        """Forward one event. If the connection turns out to be lost, use a new one."""
        from aiocontainerd.rpc.ttrpc.client import TtrpcClosed

        try:
            await self._call(request)
        except TtrpcClosed:
            await self.aclose()
            await self._call(request)

    async def aclose(self) -> None:
        """Close the connection; the next event opens another."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _call(self, request: api.events_ttrpc.ForwardRequest) -> None:
        if self._client is None:
            self._client = await dial(self._address)
        service = "containerd.services.events.ttrpc.v1.Events"
        await self._client.call(service, "Forward", request, timeout_s=CALL_TIMEOUT_S, namespace=self._namespace)


async def dial(address: str) -> TtrpcClient:
    """Connect to the daemon, waiting for its socket to appear. Raises Unavailable after 5 s."""
    from aiocontainerd.rpc.ttrpc.client import TtrpcClient

    try:
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            while True:
                try:
                    return await TtrpcClient.connect(address, timeout_s=DIAL_TIMEOUT_S)
                except (FileNotFoundError, Unavailable):
                    await asyncio.sleep(DIAL_RETRY_S)
    except TimeoutError:
        raise Unavailable(f"dial {address}: the daemon does not answer") from None


class Publisher:
    """The queue of events and their sender."""

    def __init__(self, send: Send, namespace: str) -> None:
        self._send = send
        self._namespace = namespace
        self._queue: deque[api.events_ttrpc.ForwardRequest] = deque(maxlen=QUEUE_LIMIT)
        self._arrived = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self.dropped = 0

    def __repr__(self) -> str:
        return f"<Publisher {self.statistics()}>"

    def statistics(self) -> dict[str, int]:
        """Return the counts of events waiting and dropped."""
        return {"queued": len(self._queue), "dropped": self.dropped}

    @property
    def idle(self) -> bool:
        """Whether every event is sent or dropped."""
        return self._empty.is_set()

    def publish(self, topic: str, event: betterproto2.Message) -> None:
        """Queue an event, stamped with the time of now."""
        if len(self._queue) == QUEUE_LIMIT:
            self.dropped += 1
        envelope = api.types.Envelope(
            timestamp=time_to_wire(timestamps.now_ns()),
            namespace=self._namespace,
            topic=topic,
            event=any_to_wire(marshal(event)),
        )
        self._queue.append(api.events_ttrpc.ForwardRequest(envelope=envelope))
        self._empty.clear()
        self._arrived.set()

    async def run(self) -> None:
        """Send events until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._queue:
                await self._deliver(self._queue[0])
                self._queue.popleft()
            self._empty.set()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until every event queued so far is sent or dropped; return False if that takes longer."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def _deliver(self, request: api.events_ttrpc.ForwardRequest) -> None:
        for delay_s in (*RETRY_DELAYS_S, 0.0):
            try:
                return await self._send(request)
            except (Unavailable, DeadlineExceeded, OSError) as failure:
                log.warning("the daemon did not take an event: %s", failure)
            except ContainerdError as refused:
                log.error("the daemon refused an event, which is dropped: %s", refused)
                break
            await asyncio.sleep(delay_s)
        self.dropped += 1
        return None
