"""An open window lets as many waiting calls go on as it has room for, in turn."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from aiocontainerd.rpc.http2 import Http2Connection, Stream
from aiocontainerd.rpc.windows import WOKEN_AT_ONCE, WindowTurns

pytestmark = pytest.mark.anyio
MANY = 1000


class Windows:
    """The windows of one client."""

    def __init__(self) -> None:
        self.send_window = 0
        self.initial = 100

    def window_of(self, stream: Stream) -> int:
        return self.initial + stream.send_window


class Calls:
    """Calls that send some bytes each, and note the order in which they could."""

    def __init__(self) -> None:
        self.windows = Windows()
        self.is_writable = True
        self.turns = WindowTurns(cast("Http2Connection", self.windows), lambda: self.is_writable)
        self.streams = [Stream(2 * number + 1, {}) for number in range(MANY)]
        self.went_on: list[int] = []

    async def send(self, number: int, size: int) -> None:
        """Wait for room; send `size` bytes, or nothing if they are 0."""
        await self.turns.wait(self.streams[number], size)
        self.windows.send_window -= size
        self.went_on.append(number)

    def open(self, size: int) -> None:
        self.windows.send_window += size
        self.turns.opened(None)


async def steps(count: int = 2 * MANY // WOKEN_AT_ONCE + 4) -> None:
    """Let the loop do enough for all that could go on."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def calls() -> Calls:
    return Calls()


def begun(tasks: asyncio.TaskGroup, calls: Calls, size: int, count: int = MANY) -> list[asyncio.Task[None]]:
    return [tasks.create_task(calls.send(number, size)) for number in range(count)]


async def test_as_many_calls_go_on_as_the_window_has_room_for_the_longest_waiting_first(calls: Calls) -> None:
    async with asyncio.TaskGroup() as tasks:
        begun(tasks, calls, 10)
        await steps()
        calls.open(30)
        await steps()
        assert calls.went_on == [0, 1, 2]
        assert calls.turns.woken == 3
        calls.open(20)
        await steps()
        assert calls.went_on == [0, 1, 2, 3, 4]
        assert calls.turns.woken == 5
        calls.open(10 * MANY)
    assert calls.went_on == list(range(MANY))
    assert calls.turns.woken == MANY


async def test_calls_that_have_nothing_to_send_go_on_some_in_each_step(calls: Calls) -> None:
    async with asyncio.TaskGroup() as tasks:
        begun(tasks, calls, 0)
        await steps()
        calls.open(1)
        assert calls.turns.woken == WOKEN_AT_ONCE
    assert calls.went_on == list(range(MANY))


async def test_a_call_that_is_cancelled_after_its_turn_leaves_it_to_the_next(calls: Calls) -> None:
    async with asyncio.TaskGroup() as tasks:
        begun_tasks = begun(tasks, calls, 10, count=3)
        await steps()
        calls.open(10)
        begun_tasks[0].cancel()
        await steps()
        assert calls.went_on == [1]
        begun_tasks[2].cancel()
        await steps()
        calls.open(10)
        await steps()
        assert calls.turns.woken == 2


async def test_a_stream_whose_own_window_is_shut_does_not_hold_up_others(calls: Calls) -> None:
    calls.streams[0].send_window = -100
    async with asyncio.TaskGroup() as tasks:
        begun(tasks, calls, 10, count=3)
        await steps()
        calls.open(100)
        await steps()
        assert calls.went_on == [1, 2]
        calls.streams[0].send_window += 1
        calls.turns.opened(calls.streams[0])
    assert calls.went_on == [1, 2, 0]


async def test_a_window_for_all_streams_lets_those_go_on_that_it_opens(calls: Calls) -> None:
    calls.windows.initial = 0
    calls.windows.send_window = 100
    async with asyncio.TaskGroup() as tasks:
        begun(tasks, calls, 10, count=3)
        await steps()
        assert not calls.went_on
        calls.windows.initial = 50
        calls.turns.changed()
    assert calls.went_on == [0, 1, 2]


async def test_nobody_goes_on_while_the_socket_takes_nothing(calls: Calls) -> None:
    async with asyncio.TaskGroup() as tasks:
        begun(tasks, calls, 10, count=3)
        await steps()
        calls.is_writable = False
        calls.open(100)
        await steps()
        assert not calls.turns.woken
        calls.is_writable = True
        calls.turns.go_on()
    assert calls.went_on == [0, 1, 2]
