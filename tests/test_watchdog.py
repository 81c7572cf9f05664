"""The watchdog: a blocked loop is told with plugin and line, an idle or busy one is left alone."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import anyio
import pytest

from aiocontainerd.attribution import Block, Owners
from aiocontainerd.watchdog import PERIOD_S, Watchdog

pytestmark = pytest.mark.anyio

URI = "io.containerd.snapshotter.v1.acme"
OTHER = "io.containerd.differ.v1.acme"
THRESHOLD_S = 0.1
SOURCE = """
import asyncio
import time

def block(seconds):
    time.sleep(seconds)

async def hop(seconds):
    block(seconds)
"""


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def acme() -> Any:
    """A plugin's module: its code is not scanned for blocking calls."""
    module = ModuleType("acme.plugin")
    exec(compile(SOURCE, "/srv/acme/plugin.py", "exec"), vars(module))
    return module


class Watched:
    """A watchdog and what it noted."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        owners = Owners({"acme": (URI, OTHER)})
        self.watchdog = Watchdog(THRESHOLD_S, lambda: owners, self.blocks.append)

    async def noted(self, count: int) -> list[Block]:
        with anyio.fail_after(5):
            while len(self.blocks) < count:  # noqa: ASYNC110 - a thread notes them
                await anyio.sleep(0.01)
        return self.blocks


@asynccontextmanager
async def watching() -> AsyncIterator[Watched]:
    watched = Watched()
    await watched.watchdog.start()
    try:
        yield watched
    finally:
        await watched.watchdog.stop()


async def test_a_block_is_told_with_plugin_and_innermost_line(acme: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with watching() as watched:
        await acme.hop(0.8)
        (block,) = await watched.noted(1)
    assert (block.plugin, block.where) == (URI, "/srv/acme/plugin.py:6")
    assert THRESHOLD_S < block.seconds < 2
    assert f"plugin {URI} blocks the event loop at /srv/acme/plugin.py:6 (" in caplog.text


async def test_the_tasks_name_tells_plugins_of_one_package_apart(acme: Any) -> None:
    async with watching() as watched:
        await asyncio.get_running_loop().create_task(acme.hop(0.8), name=f"{OTHER}: apply")
        (block,) = await watched.noted(1)
    assert block.plugin == OTHER


async def test_the_same_line_is_told_once_a_minute_and_counted_each_time(
    acme: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching() as watched:
        for count in (1, 2):
            await acme.hop(0.8)
            await watched.noted(count)
    assert caplog.text.count("blocks the event loop") == 1


async def test_code_of_no_plugin_is_told_as_the_daemons(caplog: pytest.LogCaptureFixture) -> None:
    async with watching() as watched:
        time.sleep(0.8)  # noqa: ASYNC251 - that is the test
        with anyio.fail_after(5):
            while watched.watchdog.blocks == 0:  # noqa: ASYNC110 - a thread counts them
                await anyio.sleep(0.01)
    assert "the daemon itself blocks the event loop at " in caplog.text
    assert watched.blocks == []


async def test_a_busy_loop_is_not_a_blocked_one(caplog: pytest.LogCaptureFixture) -> None:
    async with watching() as watched:
        until = time.monotonic() + 0.8
        while time.monotonic() < until:  # noqa: ASYNC110 - a loop that is never idle
            await asyncio.sleep(0)
    assert (watched.watchdog.blocks, caplog.text) == (0, "")


async def test_an_idle_loop_is_not_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[object] = []
    loop = asyncio.get_running_loop()
    async with watching() as watched:
        monkeypatch.setattr(watched.watchdog, "_ask", lambda *args: woken.append(args))
        await asyncio.sleep(PERIOD_S * 4)
    assert loop.is_running()
    assert woken == []


async def test_a_stopped_watchdog_leaves_no_thread() -> None:
    async with watching():
        assert "watchdog" in [thread.name for thread in threading.enumerate()]
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]


async def test_a_threshold_of_zero_watches_nothing() -> None:
    watchdog = Watchdog(0, Owners.nobody, logging.debug)
    await watchdog.start()
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]
    await watchdog.stop()
