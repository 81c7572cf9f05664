"""Registration of the walking differ."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from aiocontainerd_differ import plugin
from aiocontainerd_differ.differ import WalkingDiffer

from aiocontainerd.events import EventBus
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.registry import Registry
from aiocontainerd.plugin import InitContext, Registration, kinds

URI = "io.containerd.differ.v1.walking"


async def metadata(_context: InitContext[Any]) -> object:
    return SimpleNamespace(content=None)


def registry_and_daemon(tmp_path: Path) -> tuple[Registry, DaemonInfo]:
    registry = Registry()
    for registration in plugin.register_plugins():
        registry.add(registration)
    registry.add(Registration(kind=kinds.METADATA, id="bolt", init=metadata))
    daemon = DaemonInfo(
        root=tmp_path,
        state=tmp_path,
        temp=tmp_path,
        grpc_address="",
        ttrpc_address="",
        bus=EventBus(),
        plugins=lambda: registry.plugins,
        timeout_s=lambda _name: 30.0,
    )
    return registry, daemon


@pytest.mark.anyio
async def test_differ_is_loaded_after_the_metadata_store(tmp_path: Path) -> None:
    registry, daemon = registry_and_daemon(tmp_path)
    async with registry.run(daemon, lambda registration: registration.config(), required=[URI]):
        assert isinstance(registry[URI].instance, WalkingDiffer)
        assert repr(registry[URI].instance) == "<WalkingDiffer {'applying': 0}>"


@pytest.mark.anyio
async def test_the_config_says_how_many_layers_at_once_and_how_many_entries(tmp_path: Path) -> None:
    registry, daemon = registry_and_daemon(tmp_path)
    given = plugin.Config(at_once=3, max_entries=7)
    async with registry.run(daemon, lambda found: given if found.id == "walking" else found.config()):
        differ: WalkingDiffer = registry[URI].instance
        assert (differ._limiter.total_tokens, differ._max_entries) == (3, 7)


@pytest.mark.parametrize("key", ["at_once", "max_entries"])
def test_a_number_below_0_is_refused(key: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=rf"Expected `int` >= 0 - at `\$\.{key}`"):
        msgspec.convert({key: -1}, plugin.Config)
