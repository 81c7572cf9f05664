"""The worker of a resident shim: goes on from what the last worker left, and hands over once the shim is idle.

See `resident.py` for why.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress

from aiocontainerd.rpc.ttrpc.server import RestedConnection
from aiocontainerd_shim.rest import snapshot
from aiocontainerd_shim.rest.channel import (
    ACKNOWLEDGED_EVERY,
    EXIT,
    Duty,
    HandOver,
    pack_taken,
    send_hand_over,
    unpack_exit,
)
from aiocontainerd_shim.rest.descriptors import READABLE, REQUESTS, Descriptors
from aiocontainerd_shim.rest.interface import Parts
from aiocontainerd_shim.rest.records import RestedShim, pack_shim, unpack_shim

log = logging.getLogger(__name__)

ACCEPT_AGAIN_S = 1.0
LONGEST_DELAY_S = 5.0
LASTING_CALLS = frozenset({"Wait"})
"""Calls that may be in flight while the shim rests. The next worker carries them out anew."""


class Worker:
    """One worker, in a process of its own; implements `Rest`."""

    def __init__(self, duty: Duty, leave: Callable[[int], object] = os._exit) -> None:
        """`leave` ends the process."""
        self.shim_pid = duty.shim_pid
        self._duty = duty
        self._leave = leave
        self._listener = socket.socket(fileno=duty.fds[0])
        self._parts: Parts
        self._exits_taken = 0

    def __repr__(self) -> str:
        return f"<Worker of {self.shim_pid} exits={self._exits_taken}>"

    async def begin(self, parts: Parts) -> None:
        """Go on from the last hand-over, then with the exits since, then accept connections."""
        self._parts = parts
        rested, fds = unpack_shim(self._duty.shim), self._duty.fds
        for container in rested.containers:
            snapshot.restore(parts.service, container, fds)
        for place, connection in rested.connections:
            await parts.server.resume(socket.socket(fileno=fds[place]), connection)
        for exited in self._duty.exits:
            self._exits_taken += 1
            parts.reaper.exited(exited)
        self._duty.channel.setblocking(False)
        asyncio.get_running_loop().add_reader(self._duty.channel.fileno(), self._on_channel)
        self._accept()

    async def hand_over_when_idle(self) -> None:
        """Poll for idleness: no request since the last look, and no part busy. Then hand over and leave."""
        linger_s = self._duty.linger_s
        requests, delay_s = -1, linger_s
        while True:
            await asyncio.sleep(delay_s)
            if requests != self._parts.server.requests:
                requests, delay_s = self._parts.server.requests, linger_s
                continue
            if self._can_hand_over():
                self._hand_over()
            delay_s = min(delay_s * 2, LONGEST_DELAY_S)

    def refuse_connections(self) -> None:
        """Close the listener."""
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self._listener.close()

    def _can_hand_over(self) -> bool:
        return self._parts.idle and self._parts.server.can_rest(LASTING_CALLS)

    def _accept(self) -> None:
        """Accept connections here and not in the server: no half accepted connection may be left behind."""
        if self._listener.fileno() >= 0:
            self._listener.setblocking(False)
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._on_connection)

    def _on_connection(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as failure:
            log.warning("the shim accepts no connection for %g s: %s", ACCEPT_AGAIN_S, failure)
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener.fileno())
            loop.call_later(ACCEPT_AGAIN_S, self._accept)
            return
        connection.setblocking(False)
        self._parts.background.start(self._parts.server.resume(connection, RestedConnection(0, [])))

    def _on_channel(self) -> None:
        try:
            packet = self._duty.channel.recv(EXIT.size)
        except BlockingIOError:
            return
        if not packet:
            self._leave(1)  # the resident is dead, and the shim with it
            return
        self._exits_taken += 1
        self._parts.reaper.exited(unpack_exit(packet))
        if self._exits_taken % ACKNOWLEDGED_EVERY == 0:
            with suppress(OSError):  # the next one says it too; if the resident is dead, `recv` tells
                self._duty.channel.send(pack_taken(self._exits_taken))

    def _hand_over(self) -> None:
        """Leave descriptors and records behind, and end. If they do not fit into one packet, stay."""
        held = Descriptors()
        held.put(self._duty.fds[0], READABLE)
        connections = [(held.put(fd, REQUESTS), rested) for fd, rested in self._parts.server.rested()]
        shim = RestedShim(snapshot.take(self._parts.service, held), connections)
        left = HandOver(self._exits_taken, sorted(self._parts.reaper.watched), held.masks, pack_shim(shim))
        if send_hand_over(self._duty.channel, left, held.fds):
            self._leave(0)
