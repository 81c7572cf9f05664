"""Fixtures: the stores of a daemon on its own plugins and over a connection, which `distribution` must not tell apart.

A test module has `pytest_plugins = ["aiocontainerd.testing.image_stores"]`. The first-party plugins must be installed.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from aiocontainerd import context
from aiocontainerd.client.client import Client
from aiocontainerd.config.plugin import PluginConfig
from aiocontainerd.distribution import Stores
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.init_context import InitContext
from aiocontainerd.host.loading import registrations_of
from aiocontainerd.host.registration import Registration
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import State
from aiocontainerd.plugin import kinds
from aiocontainerd.rpc.grpc import GrpcFrontEnd
from aiocontainerd.wire.events import message_bus

PLUGINS = ("content-local", "differ", "gc", "metadata-sqlite", "services", "snapshotter-native")
PROBE = "io.containerd.internal.v1"
TIMEOUT_S = 20.0


async def _exchange(context: InitContext[PluginConfig]) -> object:
    return context.bus


async def _probe(context: InitContext[PluginConfig]) -> object:
    """Make what a plugin of the daemon gives to `distribution`."""
    return Stores.of(context.get_single(kinds.METADATA), context.get(kinds.DIFFER, "walking"))


def _registry() -> Registry:
    made = Registry()
    made.add(Registration(kind=kinds.EVENT, id="exchange", init=_exchange))
    made.add(Registration(kind=PROBE, id="stores", requires=(kinds.METADATA, kinds.DIFFER), init=_probe))
    installed = {entry.name: entry for entry in entry_points(group="aiocontainerd.plugins")}
    for name in PLUGINS:
        for registration in registrations_of(installed[name].value):
            if not registration.id.startswith("tasks"):
                made.add(registration)
    return made


@pytest.fixture
async def daemon_plugins(tmp_path: Path) -> AsyncIterator[Registry]:
    """Run the plugins of a daemon that moves images, in this process."""
    plugins = _registry()
    daemon = DaemonInfo(
        root=tmp_path / "root", state=tmp_path / "state", temp=tmp_path, grpc_address="", ttrpc_address="",
        bus=message_bus(), plugins=lambda: plugins.plugins, timeout_s=lambda _key: TIMEOUT_S,
    )  # fmt: skip
    async with plugins.run(daemon, lambda registration: registration.config()):
        assert [plugin for plugin in plugins.plugins if plugin.state != State.LOADED] == []
        yield plugins


@pytest.fixture
def collect(daemon_plugins: Registry) -> Callable[[], Awaitable[object]]:
    """Collect garbage in that daemon, at once."""
    metadata = _instance(daemon_plugins, kinds.METADATA, "bolt")

    async def run() -> object:
        return await metadata.collect()  # type: ignore[attr-defined]

    return run


@pytest.fixture(params=["connection", "daemon"])
async def stores_of(
    request: pytest.FixtureRequest, daemon_plugins: Registry
) -> AsyncIterator[Callable[[], AbstractContextManager[Stores]]]:
    """Open the stores of that daemon in namespace `t`: over a connection, and on the plugins' own instances."""
    if request.param == "daemon":
        yield lambda: _inside(daemon_plugins)
        return
    front = GrpcFrontEnd(plugin.instance for plugin in daemon_plugins.plugins if plugin.kind == kinds.GRPC)
    with tempfile.TemporaryDirectory(prefix="st-", dir="/tmp") as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/s")
        await front.start(listener)
        async with Client(f"{directory}/s", namespace="t", timeout_s=TIMEOUT_S) as client:
            yield client.stores
        await front.stop(1.0)


@contextmanager
def _inside(plugins: Registry) -> Iterator[Stores]:
    stores = _instance(plugins, PROBE, "stores")
    assert isinstance(stores, Stores)
    with context.use(namespace="t"):
        yield stores


def _instance(plugins: Registry, kind: str, plugin_id: str) -> object:
    found = plugins.get(f"{kind}.{plugin_id}")
    assert found is not None
    return found.instance
