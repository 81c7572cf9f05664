"""Errors that nobody waits for are told with the plugin that they are of."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from aiocontainerd.daemon import loop_errors
from aiocontainerd.guard.clock import at_work
from aiocontainerd.guard.owners import Owners

URI = "io.containerd.event-sink.v1.acme"
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def fail() -> None:
    raise ValueError("lost")


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Any:
    """Return what the log has after a task that nobody waits for failed."""

    async def made(owners: Owners, owner: str) -> list[str]:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(loop_errors.handler(lambda: owners))
        with at_work(owner):
            task = asyncio.create_task(fail(), name="refresh")
        await asyncio.wait([task])
        del task
        gc.collect()
        loop.set_exception_handler(None)
        return caplog.messages

    return made


async def test_a_task_that_nobody_waits_for_is_one_line_with_its_plugin(told: Any) -> None:
    [line] = await told(Owners({__name__.partition(".")[0]: [URI]}), URI)
    assert line.startswith(f"plugin {URI}: task refresh, which nobody waits for, failed: ValueError: lost (tests/")
    assert "\n" not in line


async def test_what_is_no_plugins_is_left_to_the_loop(told: Any) -> None:
    [line] = await told(Owners.nobody(), "")
    assert line.startswith("Task exception was never retrieved")
