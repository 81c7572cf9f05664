"""Registration of the local store."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiocontainerd_content_local import plugin
from aiocontainerd_content_local.layout import create_ingest
from aiocontainerd_content_local.store import LocalStore

from aiocontainerd.events import EventBus
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.registry import Registry
from aiocontainerd.testing.content import DATA, ingest


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """Make the ingests of a daemon that was killed while it made two of them."""
    ingests = tmp_path / "root" / "io.containerd.content.v1.content" / "ingest"
    for name in ("half", "without-data"):
        create_ingest(ingests / name, name, 0)
    (ingests / "half" / "data").write_bytes(DATA)
    (ingests / "begun").mkdir()
    (ingests.parent / "index.mark").touch()
    return ingests


@pytest.mark.anyio
async def test_nothing_is_removed_where_no_index_has_left_its_mark(crashed: Path) -> None:
    (crashed.parent / "index.mark").unlink()
    await LocalStore(crashed.parent).remove_unreadable()
    assert len(list(crashed.iterdir())) == 3


@pytest.mark.anyio
async def test_store_is_loaded_in_containerds_place_without_what_a_crash_left_unreadable(
    tmp_path: Path, crashed: Path
) -> None:
    registry = Registry()
    for registration in plugin.register_plugins():
        registry.add(registration)
    daemon = DaemonInfo(
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
        assert [status.ref for status in await store.statuses()] == ["half"]
        await ingest(store, "one", DATA)
        assert registry[uri].exports == {"root": str(tmp_path / "root" / uri)}
    assert (tmp_path / "root" / uri / "blobs" / "sha256").is_dir()
    assert [path.name for path in crashed.iterdir()] == ["half"]
