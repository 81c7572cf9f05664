"""What is on the other side of a proxy plugin's socket, asked once for every connection."""

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
"""Any other error is the peer's way to say that it has no such service."""


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer told of itself."""

    capabilities: tuple[str, ...] = ()
    exports: dict[str, str] = {}
    namespaced: bool = False
    """A whole daemon: it keeps what it is given apart by namespace, and collects what nothing refers to."""


async def ask(transport: GrpcClient, kind: str, name: str, *, timeout_s: float) -> Peer:
    """The peer behind a connection. Raises Unavailable for a plugin that did not load there, and what calls raise."""
    namespaced = await namespaces(transport, timeout_s=timeout_s) is not None
    plugin = await _plugin(transport, kind, name, timeout_s)
    if plugin is None:
        return Peer(namespaced=namespaced)
    return Peer(capabilities=tuple(plugin.capabilities), exports=dict(plugin.exports), namespaced=namespaced)


async def _plugin(transport: GrpcClient, kind: str, name: str, timeout_s: float) -> api.introspection.Plugin | None:
    """The plugin where it lives; None where the peer has no introspection, or no plugin of that kind and name."""
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
    """The namespaces of a peer, sorted; None for one that has no namespaces."""
    request = api.namespaces.ListNamespacesRequest()
    try:
        answer = await transport.unary(NAMESPACES, "List", request, timeout_s=timeout_s)
    except _NO_ANSWER:
        raise
    except ContainerdError:
        return None
    return sorted(n.name for n in cast("api.namespaces.ListNamespacesResponse", answer).namespaces)
