"""Registration of the walking differ."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiocontainerd_differ import plugin
from aiocontainerd_differ.differ import WalkingDiffer

from aiocontainerd.events import EventBus
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.registry import Registry
from aiocontainerd.plugin import InitContext, Registration, kinds


async def metadata(_context: InitContext[Any]) -> object:
    return SimpleNamespace(content=None)


@pytest.mark.anyio
async def test_differ_is_loaded_after_the_metadata_store(tmp_path: Path) -> None:
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
    uri = "io.containerd.differ.v1.walking"
    async with registry.run(daemon, lambda registration: registration.config(), required=[uri]):
        assert isinstance(registry[uri].instance, WalkingDiffer)
        assert repr(registry[uri].instance) == "<WalkingDiffer {'applying': 0}>"
