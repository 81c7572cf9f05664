"""Open the plugin of a `[proxy_plugins]` table: an instance over a connection, whose state is the plugin's condition.

Its exports are those of the config, then those of the peer, and `address`. Its capabilities are those of the config, or
those of the peer if the config has none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from aiocontainerd.client.diff import Diff
from aiocontainerd.plugin import InitContext, PluginError, kinds
from aiocontainerd_proxy import ownership
from aiocontainerd_proxy.connection import ProxyConnection
from aiocontainerd_proxy.content import ProxyContentStore
from aiocontainerd_proxy.limits import limits_of
from aiocontainerd_proxy.link import Link
from aiocontainerd_proxy.snapshotter import ProxySnapshotter

if TYPE_CHECKING:
    from aiocontainerd.config.records import ProxyPlugin


_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:/]+):[0-9]{1,5}")


async def open_proxy(context: InitContext[Any], settings: ProxyPlugin) -> object:
    """Return the instance of a `[proxy_plugins]` table. A task of the plugin connects it later."""
    check_address(settings.address, f"proxy_plugins.{context.uri.rpartition('.')[2]}.address")
    if settings.platform:
        context.platforms.append(settings.platform)
    context.exports.update(settings.exports)
    context.exports["address"] = settings.address
    shown = Shown(context, settings.capabilities)
    link = Link(context.uri, settings.address, limits_of(context), changed=shown.update)
    shown.update(link)
    context.tasks.start_soon(link.keep, name="connection")
    return await instance_of(context, link)


def check_address(address: str, key: str) -> None:
    """Raise PluginError, naming `key`, if an address is neither the path of a socket nor `host:port`."""
    place = address.partition("#")[0]
    if not place.startswith(("/", "unix:/")) and not _HOST_AND_PORT.fullmatch(place):
        raise PluginError(f'{key} is "{address}", which is neither the path of a socket nor host:port')


async def instance_of(context: InitContext[Any], link: Link) -> object:
    """Return the object that other plugins call, by the plugin's kind."""
    connection = ProxyConnection(link, limits_of(context))
    if link.kind == kinds.DIFFER:
        return Diff(connection)
    owned = await anyio.to_thread.run_sync(ownership.load, context.root / "owner")
    if link.kind == kinds.CONTENT:
        return ProxyContentStore(connection, owned)
    return ProxySnapshotter(connection, owned)


class Shown:
    """Copy the state of a connection into what is shown of its plugin."""

    def __init__(self, context: InitContext[Any], capabilities: tuple[str, ...] = ()) -> None:
        self._exports = context.exports
        self._health = context.health
        self._capabilities = context.capabilities
        self._configured = capabilities
        self._capabilities.extend(capabilities)

    def update(self, link: Link) -> None:
        """Show the current state of `link`."""
        for key, value in link.peer.exports.items():
            self._exports.setdefault(key, value)
        self._health.note_condition(link.state.value, link.reason)
        if not self._configured and link.peer.capabilities:
            self._capabilities[:] = link.peer.capabilities
