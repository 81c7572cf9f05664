"""The watchdog: a blocked loop is told with plugin and line, an idle or busy one is left alone."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from types import ModuleType
from typing import Any, Self

import anyio
import pytest

from aiocontainerd.guard.health import Block
from aiocontainerd.guard.owners import Owners
from aiocontainerd.guard.watchdog import Heartbeat, Watchdog

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

URI = "io.containerd.snapshotter.v1.acme"
OTHER = "io.containerd.differ.v1.acme"
THRESHOLD_S, SHORT_S = 0.1, 0.06
SLEEP_S = 0.005
TOLERANCE_S = 0.02
"""By how much a block is longer than one and a half thresholds, to be noticed, or shorter than one, not to be."""
LONG_S = 0.5
"""A block that is noticed also on a busy machine."""
NEARLY_S = THRESHOLD_S * 0.8
"""From here on a round of the loop may be told as a block, on a machine that does not give it its time."""
SOURCE = """
import asyncio
import time

def block(seconds):
    time.sleep(seconds)

async def hop(seconds):
    block(seconds)

def in_parts(seconds):
    loop = asyncio.get_running_loop()
    for _ in range(4):
        time.sleep(seconds / 4)
        loop.call_later(9, int).cancel()

def keep_the_lock():
    pow(3 ** 300_000, 8)  # one operation of the interpreter, which holds its lock for a third of a second
"""


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def acme() -> Any:
    """Yield the module of a plugin, whose code is not scanned for blocking calls."""
    module = ModuleType("acme.plugin")
    exec(compile(SOURCE, "/srv/acme/plugin.py", "exec"), vars(module))
    return module


class Watched:
    """A watchdog and what it noted."""

    def __init__(self, threshold_s: float) -> None:
        self.blocks: list[Block] = []
        owners = Owners({"acme": (URI, OTHER)})
        self.watchdog = Watchdog(threshold_s, lambda: owners, self.blocks.append)

    async def noted(self, count: int) -> list[Block]:
        with anyio.fail_after(20):
            while len(self.blocks) < count:  # noqa: ASYNC110 - a thread notes them
                await anyio.sleep(0.01)
        return self.blocks

    async def told_nothing(self) -> bool:
        """Return whether nothing has been noticed, nor is after the next look."""
        await anyio.sleep(THRESHOLD_S * 2)
        return self.watchdog.blocks == 0


class Machine:
    """Whether the machine gave threads their time, as it does not when it is busy: told by one that sleeps shortly."""

    def __init__(self) -> None:
        self.late_s = 0.0
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="machine")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._left.set()
        self._thread.join()

    def _run(self) -> None:
        before = time.monotonic()
        while not self._left.wait(SLEEP_S):
            now = time.monotonic()
            self.late_s = max(self.late_s, now - before - SLEEP_S)
            before = now

    async def gave_no_time(self) -> bool:
        """Return whether a thread may have been late since this was asked last."""
        await anyio.sleep(SLEEP_S * 4)
        late_s, self.late_s = self.late_s, 0.0
        return late_s > TOLERANCE_S / 4


async def holds(attempt: Callable[[], Awaitable[bool]]) -> None:
    """Check that the watchdog notices, at the first attempt during which the machine gave us the time."""
    with Machine() as machine:
        for _ in range(50):
            await machine.gave_no_time()
            if await attempt():
                return
            assert await machine.gave_no_time(), "on a machine that gave us the time"


@asynccontextmanager
async def watching(threshold_s: float = THRESHOLD_S) -> AsyncIterator[Watched]:
    watched = Watched(threshold_s)
    await watched.watchdog.start()
    try:
        yield watched
    finally:
        await watched.watchdog.stop()


@pytest.mark.parametrize("how", ["block", "in_parts"])
async def test_every_block_of_one_and_a_half_thresholds_is_noticed_with_its_line_whenever_it_begins(
    acme: Any, how: str
) -> None:
    random = Random(1)
    made = missed = 0
    with Machine() as machine:
        async with watching(SHORT_S) as watched:
            while len(watched.blocks) < 20:
                assert made < 400, "the machine gives no time at all"
                await anyio.sleep(random.uniform(0, SHORT_S))
                await machine.gave_no_time()
                getattr(acme, how)(SHORT_S * 1.5 + TOLERANCE_S)
                made += 1
                with anyio.move_on_after(1):
                    await watched.noted(made - missed)
                missed += await machine.gave_no_time() and len(watched.blocks) < made - missed
                assert made - missed <= len(watched.blocks) <= made
    noted = watched.blocks
    lines = {"block": {"/srv/acme/plugin.py:6"}, "in_parts": {f"/srv/acme/plugin.py:{line}" for line in (13, 14, 15)}}
    assert {block.where for block in noted} <= lines[how]
    assert all(block.seconds >= SHORT_S for block in noted)


async def test_what_is_shorter_than_the_threshold_is_not_told(acme: Any) -> None:
    random = Random(2)
    longest = 0.0
    async with watching(SHORT_S) as watched:
        for _ in range(20):
            await anyio.sleep(random.uniform(0, SHORT_S))
            began = time.monotonic()
            acme.block(SHORT_S - TOLERANCE_S)
            longest = max(longest, time.monotonic() - began)
        nothing = await watched.told_nothing()
    assert nothing or longest > SHORT_S - TOLERANCE_S / 2, "on a machine that gave us the time"


async def test_short_blocks_in_a_row_are_none(acme: Any) -> None:
    rounds = []
    async with watching() as watched:
        for _ in range(10):
            began = time.monotonic()
            acme.block(THRESHOLD_S * 0.6)
            await asyncio.sleep(0)
            rounds.append(time.monotonic() - began)
        nothing = await watched.told_nothing()
    assert nothing or max(rounds) > NEARLY_S, "on a machine that gave us the time"


async def test_a_callback_that_is_no_python_is_noticed_as_the_daemons_own() -> None:
    async def noticed() -> bool:
        async with watching() as watched:
            asyncio.get_running_loop().call_later(0.01, time.sleep, THRESHOLD_S * 1.5 + TOLERANCE_S)
            await anyio.sleep(THRESHOLD_S * 5)
            return watched.watchdog.blocks == 1

    await holds(noticed)


async def test_what_keeps_the_interpreters_lock_is_noticed_when_it_lets_go(acme: Any) -> None:
    async with watching() as watched:
        await anyio.sleep(THRESHOLD_S * 1.5)
        began = time.monotonic()
        acme.keep_the_lock()
        assert time.monotonic() - began > THRESHOLD_S
        (block,) = await watched.noted(1)
    assert block.where == "/srv/acme/plugin.py:18"


async def test_a_block_is_told_with_plugin_and_innermost_line(acme: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with watching() as watched:
        await acme.hop(LONG_S)
        (block,) = await watched.noted(1)
    assert (block.plugin, block.where) == (URI, "/srv/acme/plugin.py:6")
    assert THRESHOLD_S < block.seconds < 10
    assert f"plugin {URI} blocks the event loop at /srv/acme/plugin.py:6 (" in caplog.text


async def test_the_tasks_name_tells_plugins_of_one_package_apart(acme: Any) -> None:
    async with watching() as watched:
        await asyncio.get_running_loop().create_task(acme.hop(LONG_S), name=f"{OTHER}: apply")
        (block,) = await watched.noted(1)
    assert block.plugin == OTHER


async def test_the_same_line_is_told_once_a_minute_and_counted_each_time(
    acme: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching() as watched:
        for count in (1, 2):
            await acme.hop(LONG_S)
            await watched.noted(count)
    assert caplog.text.count("blocks the event loop") == 1


async def test_code_of_no_plugin_is_told_as_the_daemons(caplog: pytest.LogCaptureFixture) -> None:
    async with watching() as watched:
        time.sleep(LONG_S)  # noqa: ASYNC251 - that is the test
        with anyio.fail_after(20):
            while watched.watchdog.blocks == 0:  # noqa: ASYNC110 - a thread counts them
                await anyio.sleep(0.01)
    assert "the daemon itself blocks the event loop at " in caplog.text
    assert watched.blocks == []


async def test_a_busy_loop_is_not_a_blocked_one(caplog: pytest.LogCaptureFixture) -> None:
    rounds = []
    async with watching() as watched:
        now = time.monotonic()
        until = now + 0.8
        while now < until:
            began = now
            await asyncio.sleep(0)
            now = time.monotonic()
            rounds.append(now - began)
    nothing = (watched.watchdog.blocks, caplog.text) == (0, "")
    assert nothing or max(rounds) > NEARLY_S, "on a machine that gave us the time"


async def test_an_idle_loop_is_woken_twice_per_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[float] = []
    beat = Heartbeat.beat

    def noting(heartbeat: Heartbeat) -> None:
        beat(heartbeat)
        woken.append(heartbeat.late_s)

    monkeypatch.setattr(Heartbeat, "beat", noting)
    async with watching():
        await asyncio.sleep(THRESHOLD_S * 10)
    ended = len(woken)
    await asyncio.sleep(THRESHOLD_S)
    assert 2 <= ended == len(woken) <= 22


async def test_a_stopped_watchdog_leaves_no_thread() -> None:
    async with watching():
        assert "watchdog" in [thread.name for thread in threading.enumerate()]
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]


async def test_a_threshold_of_zero_watches_nothing() -> None:
    watchdog = Watchdog(0, Owners.nobody, logging.debug)
    await watchdog.start()
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]
    await watchdog.stop()
