"""Ask what is behind a proxy plugin's socket: its capabilities and exports, and whether it is a whole daemon.

`link` asks once for every connection.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import msgspec

from aiocontainerd import api
from aiocontainerd.errors import ContainerdError, DeadlineExceeded, Unavailable
from aiocontainerd.rpc.grpc_client import Unreachable

if TYPE_CHECKING:
    from aiocontainerd.rpc.grpc_client import GrpcClient

INTROSPECTION = "containerd.services.introspection.v1.Introspection"
NAMESPACES = "containerd.services.namespaces.v1.Namespaces"
_NO_ANSWER = (Unreachable, DeadlineExceeded)
"""Errors of a peer that does not answer. Any other error says that it has no such service."""


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer says of itself."""

    capabilities: tuple[str, ...] = ()
    exports: dict[str, str] = {}
    namespaced: bool = False
    """The peer is a whole daemon: it has namespaces, and deletes what nothing refers to."""


async def ask(transport: GrpcClient, kind: str, name: str, *, timeout_s: float | None) -> Peer:
    """Return the peer behind a connection. Raise Unavailable if the plugin did not load there, and what calls raise."""
    namespaced = await namespaces(transport, timeout_s=timeout_s) is not None
    plugin = await _plugin(transport, kind, name, timeout_s)
    if plugin is None:
        return Peer(namespaced=namespaced)
    return Peer(capabilities=tuple(plugin.capabilities), exports=dict(plugin.exports), namespaced=namespaced)


async def _plugin(
    transport: GrpcClient, kind: str, name: str, timeout_s: float | None
) -> api.introspection.Plugin | None:
    """Return what the peer's introspection says of the plugin; None if it has no introspection or no such plugin."""
    i = api.introspection
    request = i.PluginsRequest(filters=[f"type=={json.dumps(kind)},id=={json.dumps(name)}"])
    try:
        answer = await transport.unary(INTROSPECTION, "Plugins", request, timeout_s=timeout_s)
    except _NO_ANSWER:
        raise
    except ContainerdError:
        return None
    for plugin in cast("api.introspection.PluginsResponse", answer).plugins:
        if plugin.init_err is not None and plugin.init_err.code:
            raise Unavailable(f"{kind}.{name} is not loaded there: {plugin.init_err.message}")
        return plugin
    return None


async def namespaces(transport: GrpcClient, *, timeout_s: float | None) -> list[str] | None:
    """Return the namespaces of a peer, sorted; None for a peer without namespaces."""
    request = api.namespaces.ListNamespacesRequest()
    try:
        answer = await transport.unary(NAMESPACES, "List", request, timeout_s=timeout_s)
    except _NO_ANSWER:
        raise
    except ContainerdError:
        return None
    return sorted(n.name for n in cast("api.namespaces.ListNamespacesResponse", answer).namespaces)
