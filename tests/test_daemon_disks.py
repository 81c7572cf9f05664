"""Plugins show what is read-only, and a database that can be opened in its place again leads to a new start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from aiocontainerd.daemon import disks
from aiocontainerd.guard.health import Condition
from aiocontainerd.host.introspection import status
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import Plugin
from aiocontainerd.plugin import Registration, kinds
from aiocontainerd.sys import read_only

pytestmark = pytest.mark.anyio
GOOD = Condition("ok")


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, set[Path]]]:
    """Directories on read-only file systems: those with the flag, and all."""
    found: dict[str, set[Path]] = {"flag": set(), "all": set()}
    monkeypatch.setattr(read_only, "has_flag", lambda path: path in found["flag"])
    monkeypatch.setattr(read_only, "is_read_only", lambda path: path in found["all"])
    monkeypatch.setattr(disks, "INTERVAL_S", 0.01)
    yield found
    for path in read_only.waiting():
        read_only.give_up(path)


async def _init(_context: object) -> object:
    return object()


def plugin(registry: Registry, name: str, root: str) -> Plugin:
    made = registry.add(Registration(kind=kinds.SNAPSHOTTER, id=name, init=_init))
    made.loaded(object())
    made.root = root
    return made


async def happens(plugin: Plugin, condition: Condition) -> None:
    with anyio.fail_after(30):
        while plugin.condition != condition:  # noqa: ASYNC110 - a row of a table, which tells nobody
            await anyio.sleep(0.005)


async def test_a_plugin_shows_a_read_only_file_system_until_it_is_writable(
    refused: dict[str, set[Path]], caplog: pytest.LogCaptureFixture
) -> None:
    registry, again = Registry(), anyio.Event()
    one, other, without = plugin(registry, "one", "/one"), plugin(registry, "other", ""), plugin(registry, "none", "")
    other.exports["root"] = "/other"
    condition = Condition("read-only", "/one: read-only file system")
    async with anyio.create_task_group() as group:
        group.start_soon(disks.watch, registry, again)
        refused["flag"].add(Path("/one"))
        refused["all"].update({Path("/one"), Path("/tmpmounts")})
        without.health.read_only = True
        without.health.refused_in.add("/tmpmounts")
        await happens(one, condition)
        assert without.condition == Condition("read-only", "/tmpmounts: read-only file system")
        assert status(one).exports == {"state": condition.state, "reason": condition.reason}
        refused["flag"].clear()
        refused["all"] = {Path("/other")}
        other.health.read_only = True  # a call was refused: damage sets no flag
        await happens(one, GOOD)
        await happens(other, Condition("read-only", "/other: read-only file system"))
        refused["all"].clear()
        await happens(other, GOOD)
        await happens(without, GOOD)
        assert status(other).exports == {"root": "/other"}
        assert not again.is_set()
        group.cancel_scope.cancel()
    assert sorted(caplog.messages) == [
        "plugin io.containerd.snapshotter.v1.none takes changes again: /tmpmounts",
        "plugin io.containerd.snapshotter.v1.one refuses changes: /one: read-only file system",
        "plugin io.containerd.snapshotter.v1.one takes changes again: /one",
        "plugin io.containerd.snapshotter.v1.other takes changes again: /other",
    ]


async def test_a_database_that_waits_leads_to_a_new_start_when_it_can_be_written(
    refused: dict[str, set[Path]], caplog: pytest.LogCaptureFixture
) -> None:
    registry, again = Registry(), anyio.Event()
    index = plugin(registry, "index", "/index")
    read_only.wait_for(Path("/index/meta.db"))
    refused["all"].add(Path("/index"))
    async with anyio.create_task_group() as group:
        group.start_soon(disks.watch, registry, again)
        await happens(index, Condition("read-only", "/index: read-only file system"))
        assert caplog.messages == []
        refused["all"].clear()
        with anyio.fail_after(30):
            await again.wait()
    assert caplog.messages == ["/index can be written again; starting anew, containers run on"]


async def test_the_exports_of_a_peer_are_no_directories_of_ours() -> None:
    proxy = plugin(Registry(), "proxy", "/mine")
    proxy.exports["root"] = "/its"
    assert proxy.home == "/its"
    proxy.health.note_condition("ready")
    assert proxy.home == "/mine"
