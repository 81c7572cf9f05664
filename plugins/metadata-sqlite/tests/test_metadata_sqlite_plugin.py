"""The registration as the daemon uses it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest
from aiocontainerd_metadata_sqlite.plugin import GC_BACKEND, Config, register_plugins
from aiocontainerd_metadata_sqlite.store import SqliteMetadataStore

from aiocontainerd import context
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import Plugin, State
from aiocontainerd.plugin import InitContext, PluginConfig, Registration, kinds
from aiocontainerd.testing.fakes import FakeBus, FakeContentStore, FakeSnapshotter


async def _content(_context: InitContext[PluginConfig]) -> object:
    return FakeContentStore()


async def _snapshotter(_context: InitContext[PluginConfig]) -> object:
    return FakeSnapshotter()


async def _bus(context: InitContext[PluginConfig]) -> object:
    return context.bus


@asynccontextmanager
async def running(tmp_path: Path, config: Config, limits_s: Mapping[str, float]) -> AsyncIterator[Plugin]:
    """Run the plugin in a daemon with a content store and a snapshotter."""
    registry = Registry()
    registry.add(Registration(kind=kinds.CONTENT, id="content", init=_content))
    registry.add(Registration(kind=kinds.SNAPSHOTTER, id="fake", init=_snapshotter))
    registry.add(Registration(kind=kinds.EVENT, id="exchange", init=_bus))
    (registration,) = register_plugins()
    plugin = registry.add(registration)
    daemon = DaemonInfo(
        root=tmp_path / "root",
        state=tmp_path / "state",
        temp=tmp_path,
        grpc_address="",
        ttrpc_address="",
        bus=FakeBus(),  # type: ignore[arg-type]  # all that the store needs of the bus
        plugins=lambda: registry.plugins,
        timeout_s=lambda key: limits_s.get(key, 30.0),
    )
    async with registry.run(daemon, lambda found: config if found is registration else found.config()):
        assert plugin.state == State.LOADED, plugin.reason
        yield plugin


@pytest.mark.anyio
async def test_plugin_opens_its_database_and_exports_path_and_policy(tmp_path: Path) -> None:
    async with running(tmp_path, Config(), {}) as plugin:
        assert plugin.uri == "io.containerd.metadata.v1.bolt"
        path = tmp_path / "root" / plugin.uri / "meta.db"
        assert plugin.exports == {"path": str(path), "policy": "shared"}
        assert isinstance(plugin.instance, SqliteMetadataStore)
        with context.use(namespace="t1"):
            await plugin.instance.leases.create("l", {})
    assert not path.with_suffix(".db-wal").exists()


@pytest.mark.anyio
async def test_a_backend_that_hangs_costs_a_collection_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def hangs(_self: FakeSnapshotter) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(FakeSnapshotter, "cleanup", hangs)
    async with running(tmp_path, Config(), {GC_BACKEND.key: 0.05}) as plugin:
        with anyio.fail_after(20):
            await plugin.instance.collect()
    assert caplog.messages == ["cannot prune the backend of snapshots/fake, will try again: TimeoutError"]


@pytest.mark.anyio
async def test_the_size_of_the_cache_is_that_of_the_config(tmp_path: Path) -> None:
    async with running(tmp_path, Config(cache_bytes=0), {}) as plugin:
        store: SqliteMetadataStore = plugin.instance
        before = store.statistics().reads
        with context.use(namespace="t1"):
            for _ in range(2):
                await store.namespaces.get("t1")
        assert store.statistics().reads == before + 2


def test_config_has_containerds_keys_and_refuses_others() -> None:
    decoded = msgspec.convert({"content_sharing_policy": "isolated", "no_sync": True}, Config)
    assert (decoded.content_sharing_policy, decoded.no_sync) == ("isolated", True)
    for wrong in ({"content_sharing_policy": "other"}, {"nosync": True}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, Config)
