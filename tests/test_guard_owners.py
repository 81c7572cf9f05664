"""What is whose: modules, frames, tasks, changed globals, unclosed resources."""

from __future__ import annotations

import asyncio
import builtins
import gc
import os
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import anyio
import pytest

from aiocontainerd.guard import owners as attribution
from aiocontainerd.guard.clock import Clock, running
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

def drop(path):
    open(path)

def leak(coroutine):
    import asyncio
    return asyncio.create_task(coroutine)

def keep_in_a_circle(path):
    circle = [open(path)]
    circle.append(circle)
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


async def a_librarys_work() -> None:
    await asyncio.sleep(60)


@pytest.mark.parametrize("use_uvloop", [False, True])
def test_a_task_of_a_librarys_code_is_whose_call_or_code_made_it(owners: Owners, acme: Any, use_uvloop: bool) -> None:
    async def leaks() -> tuple[str | None, ...]:
        loop = asyncio.get_running_loop()
        with attribution.marking_tasks(loop):
            nobodys = loop.create_task(a_librarys_work())
            directly = acme.leak(a_librarys_work())
            running.set(Clock(OTHER))
            leaked = asyncio.ensure_future(a_librarys_work())
            named = loop.create_task(a_librarys_work(), name=f"{URI}: stat")
            tasks = (nobodys, directly, leaked, named)
            found = tuple(owners.of_task(task) for task in tasks)
        assert loop.get_task_factory() is None
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return found

    options = {"use_uvloop": use_uvloop}
    assert anyio.run(leaks, backend_options=options) == (None, URI, OTHER, URI)


@pytest.fixture
def patched() -> Iterator[None]:
    before = os.getcwd, builtins.id
    yield
    os.getcwd, builtins.id = before
    del os.acme  # type: ignore[attr-defined]  # what the test added


@pytest.mark.usefixtures("patched")
def test_what_a_plugin_replaces_in_shared_modules_is_noted(
    health: PluginHealth, caplog: pytest.LogCaptureFixture
) -> None:
    with attribution.changed_globals(health):
        os.getcwd = lambda: "/elsewhere"
        builtins.id = lambda _thing: 1
        os.acme = True  # type: ignore[attr-defined]  # an attribute of the plugin's making
    assert health.changed_globals == ["builtins.id", "os.acme", "os.getcwd"]
    assert f"plugin {URI} changes what everybody uses: builtins.id, os.acme, os.getcwd" in caplog.text


def test_a_plugin_that_replaces_nothing_is_not_noted(health: PluginHealth) -> None:
    with attribution.changed_globals(health):
        os.environ["ACME"] = "1"
        del os.environ["ACME"]
    assert health.changed_globals == []


def test_what_a_plugin_drops_unclosed_is_noted_with_its_line(
    owners: Owners, health: PluginHealth, acme: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with attribution.noting_unclosed(lambda: owners, {URI: health}.get):
        acme.drop("/dev/null")
        acme.drop("/dev/null")
    assert health.unclosed == {"/srv/acme/sub/plugin.py:12": 2}
    assert caplog.text.count("drops what it does not close at /srv/acme/sub/plugin.py:12: unclosed file") == 1


def test_what_the_collector_finds_is_nobodys(owners: Owners, health: PluginHealth, acme: Any) -> None:
    with attribution.noting_unclosed(lambda: owners, {URI: health}.get):
        acme.keep_in_a_circle("/dev/null")
        gc.collect()
    assert health.unclosed == {}


def test_other_warnings_go_where_they_went(
    owners: Owners, health: PluginHealth, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_rest: shown.append(str(message)))
    with attribution.noting_unclosed(lambda: owners, {URI: health}.get), warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.warn("mind the gap", UserWarning, stacklevel=1)
    assert shown == ["mind the gap"]


def test_blocks_add_up(health: PluginHealth) -> None:
    for seconds in (0.5, 1.5):
        health.note_block(Block(plugin=URI, where="a.py:1", seconds=seconds))
    assert (health.blocked, health.blocked_s) == (2, 2.0)
    assert health.last_block == Block(plugin=URI, where="a.py:1", seconds=1.5)
