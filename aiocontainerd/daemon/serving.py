"""Start and stop the servers of the daemon's sockets."""

from __future__ import annotations

import logging

import anyio

from aiocontainerd import kinds
from aiocontainerd.daemon.errors import StartError
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import Plugin, State

log = logging.getLogger(__name__)

GRPC_SERVER = f"{kinds.SERVER}.grpc"
TTRPC_SERVER = f"{kinds.SERVER}.ttrpc"
_ENDPOINTS = {
    GRPC_SERVER: "main endpoint",
    TTRPC_SERVER: "main ttrpc endpoint",
    f"{kinds.SERVER}.grpc-tcp": "TCP grpc endpoint",
}
"""Servers without which containerd does not start either -> their names in its errors."""


async def start_servers(registry: Registry) -> None:
    """Begin to accept on every server that loaded. Raises StartError without a socket, or without services."""
    main = registry.get(GRPC_SERVER)
    if main is None:
        failed = "; ".join(f"{one.id}: {one.reason}" for one in registry.plugins if one.state == State.FAILED)
        raise StartError(f"there is no gRPC server, its module could not be loaded: {failed}")
    if main.state == State.LOADED and not getattr(main.instance, "serves", True):
        raise StartError(f"there is no gRPC service to serve: {_why_no_service(registry)}")
    for uri, endpoint in _ENDPOINTS.items():
        server = registry.get(uri)
        if server is not None and server.state == State.FAILED:
            raise StartError(f"failed to get listener for {endpoint}: {server.reason}")
    for plugin in _servers(registry):
        await plugin.instance.start()
        log.info("serving %s on %s", plugin.id, plugin.instance.address)


async def stop_servers(registry: Registry, grace_s: float) -> None:
    """Stop every server, all at the same time. Calls in flight have `grace_s` seconds to end."""
    async with anyio.create_task_group() as stopping:
        for plugin in _servers(registry):
            stopping.start_soon(plugin.instance.stop, grace_s, name=f"stop {plugin.id}")


def _servers(registry: Registry) -> list[Plugin]:
    return [plugin for plugin in registry.plugins if plugin.kind == kinds.SERVER and plugin.state == State.LOADED]


def _why_no_service(registry: Registry) -> str:
    """Return the reason that is nearest to what an operator can change."""
    services = [plugin for plugin in registry.plugins if plugin.kind == kinds.GRPC]
    for plugin in services:
        if plugin.state == State.FAILED:
            return f"{plugin.uri}: {plugin.reason}"
    if services:
        return "disabled_plugins disables all of them"
    for plugin in registry.plugins:
        if plugin.state == State.SKIPPED and "plugin_policy" in plugin.reason:
            return plugin.reason.removesuffix(": skip plugin")
    return "no package brings one; install the daemon's plugins: pip install 'aiocontainerd[daemon]'"
