"""What is whose: modules, frames, tasks."""

from __future__ import annotations

import asyncio
from types import ModuleType
from typing import Any

import pytest

from aiocontainerd.guard import clock
from aiocontainerd.guard import owners as attribution
from aiocontainerd.guard.health import Block, PluginHealth
from aiocontainerd.guard.owners import Owners

URI = "io.containerd.snapshotter.v1.acme"
OTHER = "io.containerd.differ.v1.acme"
SOURCE = """
import sys

def frame():
    return sys._getframe()

async def work():
    import asyncio
    await asyncio.sleep(0)
"""


@pytest.fixture
def acme() -> Any:
    module = ModuleType("acme.sub.plugin")
    exec(compile(SOURCE, "/srv/acme/sub/plugin.py", "exec"), vars(module))
    return module


@pytest.fixture
def owners() -> Owners:
    return Owners({"acme": (URI, OTHER)})


@pytest.fixture
def health() -> PluginHealth:
    return PluginHealth(URI)


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("acme.plugin", "acme"),
        ("acme", "acme"),
        ("acme.sub.plugin", "acme.sub"),
        ("aiocontainerd_gc.plugin", "aiocontainerd_gc"),
        ("aiocontainerd.daemon.servers", ""),
        ("builtins", ""),
    ],
)
def test_a_plugins_package_is_that_of_its_module_and_the_core_is_nobodys(module: str, package: str) -> None:
    assert attribution.package_of(module) == package


def test_the_innermost_frame_of_a_plugin_counts(owners: Owners, acme: Any) -> None:
    assert owners.of_frame(acme.frame()) == (URI, "/srv/acme/sub/plugin.py:5")


def test_frames_of_libraries_and_the_core_are_nobodys(owners: Owners) -> None:
    assert owners.of_frame(None) is None
    assert owners.of_module("asyncio.events") == ()


def test_a_package_is_the_one_closest_to_the_module() -> None:
    owners = Owners({"acme": (URI,), "acme.sub": (OTHER,)})
    assert owners.of_module("acme.sub.plugin") == (OTHER,)
    assert owners.of_module("acme.other") == (URI,)


@pytest.mark.anyio
@pytest.mark.parametrize(("name", "uri"), [(f"{OTHER}: apply", OTHER), (f"{OTHER}:pump", OTHER), ("Task-1", URI)])
async def test_a_task_is_its_names_or_its_codes(owners: Owners, acme: Any, name: str, uri: str) -> None:
    task = asyncio.get_running_loop().create_task(acme.work(), name=name)
    assert owners.of_task(task) == uri
    await task


@pytest.mark.anyio
async def test_a_task_of_the_core_is_nobodys(owners: Owners) -> None:
    current = asyncio.current_task()
    assert current is not None
    assert owners.of_task(current) is None


def test_blocks_add_up(health: PluginHealth) -> None:
    for seconds in (0.5, 1.5):
        health.note_block(Block(plugin=URI, where="a.py:1", seconds=seconds))
    assert (health.blocked, health.blocked_s) == (2, 2.0)
    assert health.last_block == Block(plugin=URI, where="a.py:1", seconds=1.5)


@pytest.mark.anyio
async def test_a_librarys_task_belongs_to_the_plugin_that_was_at_work_when_it_was_made(owners: Owners) -> None:
    async def at_work() -> asyncio.Task[Any]:
        clock.running.set(clock.Clock(URI))
        return asyncio.get_running_loop().create_task(asyncio.Event().wait(), name="library")

    theirs = await asyncio.get_running_loop().create_task(at_work())
    nobodys = asyncio.get_running_loop().create_task(asyncio.Event().wait(), name="library")
    await asyncio.sleep(0)
    assert (owners.of_task(theirs), owners.of_task(nobodys)) == (URI, None)
    for task in (theirs, nobodys):
        task.cancel()
    await asyncio.wait([theirs, nobodys])
