"""Registration of the local store."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiocontainerd_content_local import plugin

from aiocontainerd.events import EventBus
from aiocontainerd.registration import Daemon
from aiocontainerd.registry import Registry
from aiocontainerd.testing.content import DATA, ingest


@pytest.mark.anyio
async def test_store_is_loaded_in_containerds_place(tmp_path: Path) -> None:
    registry = Registry()
    for registration in plugin.register_plugins():
        registry.add(registration)
    daemon = Daemon(
        root=tmp_path / "root",
        state=tmp_path / "state",
        temp=tmp_path / "temp",
        grpc_address="",
        ttrpc_address="",
        bus=EventBus(),
        plugins=lambda: registry.plugins,
        timeout_s=lambda _name: 30.0,
    )
    uri = "io.containerd.content.v1.content"
    async with registry.run(daemon, lambda registration: registration.config(), required=[uri]):
        store = registry[uri].instance
        await ingest(store, "one", DATA)
        assert registry[uri].exports == {"root": str(tmp_path / "root" / uri)}
    assert (tmp_path / "root" / uri / "blobs" / "sha256").is_dir()
