"""Run a plugin in a test with the rest of a daemon around it: `async with host.running(tmp_path, Acme) as daemon`.

The event bus, the event sinks' pump and the servers are real, on a socket in the test's directory; there is no other
plugin unless the test brings it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType

import msgspec

from aiocontainerd import kinds
from aiocontainerd.config.plugin import PluginConfig
from aiocontainerd.config.timeouts import split_plugin_key
from aiocontainerd.daemon import event_sinks, servers
from aiocontainerd.events import EventBus
from aiocontainerd.host import authoring, conformance
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.registration import Registration
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import Plugin, State
from aiocontainerd.wire.events import message_bus

_NO_TIMEOUTS: Mapping[str, float] = MappingProxyType({})


class Host(msgspec.Struct, frozen=True):
    """What a test sees: the plugin's row, with its state and instance, the event bus, and the address of the socket."""

    plugin: Plugin
    bus: EventBus
    grpc_address: str


@asynccontextmanager
async def running(
    directory: Path,
    target: object,
    *,
    config: PluginConfig | None = None,
    others: Iterable[Registration] = (),
    timeout_s: float = 10.0,
    timeouts: Mapping[str, float] = _NO_TIMEOUTS,
) -> AsyncIterator[Host]:
    """Run what `target` was decorated with, or a Registration, until the block ends.

    Every deadline is `timeout_s` seconds, or what `timeouts` has for its key, such as
    `io.containerd.timeout.plugin.work`. `context.ready()` returns True before the block begins.
    Raise ValueError for a target that registers nothing, or several plugins.
    """
    registration = _registration(target)
    registry = Registry()
    plugin = registry.add(registration, "test")
    for other in (*event_sinks.register_plugins(), *servers.register_plugins(), *others):
        registry.add(other)
    bus, address = message_bus(), str(directory / "grpc.sock")
    daemon = DaemonInfo(
        root=directory / "root", state=directory / "state", temp=directory, grpc_address=address, ttrpc_address="",
        bus=bus, plugins=lambda: registry.plugins,
        timeout_s=lambda key: timeouts.get(split_plugin_key(key)[0], timeout_s),
    )  # fmt: skip
    configs = {plugin.uri: config, f"{kinds.SERVER}.ttrpc": servers.TtrpcConfig(address="")}

    def config_of(one: Registration) -> PluginConfig:
        return configs.get(one.uri) or one.config()

    async with registry.run(daemon, config_of, check=conformance.check):
        started = [one for one in registry.plugins if one.kind == kinds.SERVER and one.state == State.LOADED]
        for server in started:
            await server.instance.start()
        registry.serves()
        try:
            yield Host(plugin, bus, address)
        finally:
            for server in started:
                await server.instance.stop(1.0)


def _registration(target: object) -> Registration:
    if isinstance(target, Registration):
        return target
    found = authoring.carried(target)
    if len(found) != 1:
        raise ValueError(f"{target!r} registers {len(found)} plugins, one is needed")
    return found[0]
