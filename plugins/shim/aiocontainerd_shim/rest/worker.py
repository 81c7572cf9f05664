"""The worker of a resident shim: goes on from what the last one left, and hands over once nothing has happened for a
moment (`resident.py`)."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine

import msgspec

from aiocontainerd.rpc.ttrpc.server import RestedConnection, TtrpcServer
from aiocontainerd_shim.rest.descriptors import READABLE, Descriptors
from aiocontainerd_shim.rest.memory import EXIT, FDS_LIMIT, RECORD_LIMIT_BYTES, Duty, HandOver, RestedShim, unpack_exit
from aiocontainerd_shim.task.publisher import Publisher
from aiocontainerd_shim.task.reaper import Reaper
from aiocontainerd_shim.task.service import TaskService

log = logging.getLogger(__name__)

ACCEPT_AGAIN_S = 1.0
LOOK_AGAIN_MAX_S = 5.0
LASTING_CALLS = frozenset({"Wait"})
"""Calls that may be in flight while the shim rests; they are carried out anew by the next worker."""


class Spawned:
    """Work beside the calls, as long as it runs."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._running: set[asyncio.Task[None]] = set()

    def __bool__(self) -> bool:
        return bool(self._running)

    def start(self, work: Coroutine[object, object, None]) -> None:
        """Start it."""
        task = self._tasks.create_task(_guarded(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)


async def _guarded(work: Coroutine[object, object, None]) -> None:
    try:
        await work
    except Exception:  # the edge of a task: one container's failure must not end the others
        log.exception("a task of the shim failed")


class Worker:
    """The parts of a shim that know whether anything is going on in it."""

    def __init__(
        self,
        duty: Duty,
        server: TtrpcServer,
        service: TaskService,
        publisher: Publisher,
        reaper: Reaper,
        spawned: Spawned,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        """`spawned` has what runs beside the calls; `leave` ends the process."""
        self._duty = duty
        self._server = server
        self._service = service
        self._publisher = publisher
        self._reaper = reaper
        self._spawned = spawned
        self._leave = leave
        self._exits_taken = 0

    def __repr__(self) -> str:
        return f"<Worker of {self._duty.shim_pid} {self._server!r} exits={self._exits_taken}>"

    async def take_over(self) -> None:
        """Go on from the hand-over, then with the exits since."""
        rested, fds = self._duty.rested(), self._duty.fds
        for container in rested.containers:
            self._service.adopt(container, fds)
        for place, connection in rested.connections:
            await self._server.resume(socket.socket(fileno=fds[place]), connection)
        for exited in self._duty.exits:
            self._exits_taken += 1
            self._reaper.exited(exited)
        self._duty.channel.setblocking(False)
        asyncio.get_running_loop().add_reader(self._duty.channel.fileno(), self._on_channel)

    def accept(self, listener: socket.socket) -> None:
        """Take connections from now on. The server does not, for one that is half accepted must not be left behind."""
        if listener.fileno() >= 0:
            listener.setblocking(False)
            asyncio.get_running_loop().add_reader(listener.fileno(), self._on_connection, listener)

    def refuse(self, listener: socket.socket) -> None:
        """Take no more connections."""
        asyncio.get_running_loop().remove_reader(listener.fileno())
        listener.close()

    async def hand_over_when_quiet(self) -> None:
        """Look now and then whether nothing has been asked lately and nothing is going on, and leave then."""
        linger_s = self._duty.linger_s
        requests, delay_s = -1, linger_s
        while True:
            await asyncio.sleep(delay_s)
            if requests != self._server.requests:
                requests, delay_s = self._server.requests, linger_s
                continue
            if self.can_rest:
                self._hand_over()
            delay_s = min(delay_s * 2, LOOK_AGAIN_MAX_S)

    @property
    def can_rest(self) -> bool:
        """Whether another process could go on from here."""
        if self._spawned or self._reaper.claimed or not self._publisher.idle:
            return False
        return self._service.can_rest and self._server.can_rest(LASTING_CALLS)

    def _on_connection(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as failure:
            log.warning("no connection taken for %g s: %s", ACCEPT_AGAIN_S, failure)
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener.fileno())
            loop.call_later(ACCEPT_AGAIN_S, self.accept, listener)
            return
        connection.setblocking(False)
        self._spawned.start(self._server.resume(connection, RestedConnection(0, [])))

    def _on_channel(self) -> None:
        try:
            packet = self._duty.channel.recv(EXIT.size)
        except BlockingIOError:
            return
        if not packet:
            self._leave(1)  # the resident is dead, and with it the shim
            return
        self._exits_taken += 1
        self._reaper.exited(unpack_exit(packet))

    def _hand_over(self) -> None:
        """Leave descriptors and record behind; what does not fit into one packet keeps the worker."""
        held = Descriptors()
        held.put(self._duty.fds[0], READABLE)
        connections = [(held.put(fd, READABLE), rested) for fd, rested in self._server.rested()]
        shim = RestedShim(self._service.rested(held), connections)
        left = HandOver(self._exits_taken, sorted(self._reaper.watched), held.masks, msgspec.msgpack.encode(shim))
        record = msgspec.msgpack.encode(left)
        if len(record) > RECORD_LIMIT_BYTES or len(held.fds) > FDS_LIMIT:
            return
        self._duty.channel.setblocking(True)
        socket.send_fds(self._duty.channel, [record], held.fds)
        self._leave(0)
