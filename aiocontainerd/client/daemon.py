"""The daemon itself: version, plugins, events (facts/core 11 to 13)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from aiocontainerd import api, typeurl
from aiocontainerd.client.connection import Connection
from aiocontainerd.wire.anys import any_to_wire
from aiocontainerd.wire.events import envelope_from_wire
from aiocontainerd.wire.introspection import plugin_status_from_wire, server_status_from_wire

if TYPE_CHECKING:
    from aiocontainerd.events import Envelope
    from aiocontainerd.interfaces.services import PluginStatus, ServerStatus

VERSION_SERVICE = "containerd.services.version.v1.Version"


async def version(connection: Connection) -> tuple[str, str]:
    """Return the daemon's version and revision."""
    answer = await connection.call(VERSION_SERVICE, "Version", api.protobuf.Empty(), api.version.VersionResponse)
    return answer.version, answer.revision


class Introspection:
    """The plugins of the daemon, and its identity."""

    SERVICE = "containerd.services.introspection.v1.Introspection"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def plugins(self, filters: Sequence[str] = ()) -> list[PluginStatus]:
        """Return every plugin that a filter matches, also those that failed or were skipped."""
        i = api.introspection
        request = i.PluginsRequest(filters=list(filters))
        answer = await self._connection.call(self.SERVICE, "Plugins", request, i.PluginsResponse)
        return [plugin_status_from_wire(message) for message in answer.plugins]

    async def uuid(self) -> str:
        """Return the daemon's persistent identity."""
        i = api.introspection
        return (await self._connection.call(self.SERVICE, "Server", api.protobuf.Empty(), i.ServerResponse)).uuid

    async def server(self) -> ServerStatus:
        """Return the daemon's identity and its deprecation warnings."""
        i = api.introspection
        answer = await self._connection.call(self.SERVICE, "Server", api.protobuf.Empty(), i.ServerResponse)
        return server_status_from_wire(answer)


class Events:
    """The daemon's events."""

    SERVICE = "containerd.services.events.v1.Events"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def subscribe(self, filters: Sequence[str] = ()) -> AsyncGenerator[Envelope, None]:
        """Yield the events of every namespace that a filter matches, from now on, until the iterator is closed."""
        request = api.events.SubscribeRequest(filters=list(filters))
        stream = self._connection.messages(self.SERVICE, "Subscribe", request, api.types.Envelope, unlimited=True)
        async with aclosing(stream) as messages:
            async for message in messages:
                yield envelope_from_wire(message)

    async def publish(self, topic: str, event: typeurl.Any) -> None:
        """Publish an event. Raises InvalidArgument for a malformed topic."""
        request = api.events.PublishRequest(topic=topic, event=any_to_wire(event))
        await self._connection.call(self.SERVICE, "Publish", request, api.protobuf.Empty)
