"""The Introspection service (facts/core 12)."""

from __future__ import annotations

from typing import ClassVar

from aiocontainerd import api
from aiocontainerd.api import names
from aiocontainerd.errors import InvalidArgument, NotFound, Unknown, to_status
from aiocontainerd.interfaces.services import IntrospectionService
from aiocontainerd.typeurl import name_in
from aiocontainerd.wire.anys import any_from_wire, any_to_wire
from aiocontainerd.wire.introspection import plugin_status_to_wire, server_status_to_wire


class IntrospectionGrpc:
    """`containerd.services.introspection.v1.Introspection`."""

    service_name: ClassVar[str] = "containerd.services.introspection.v1.Introspection"

    def __init__(self, introspection: IntrospectionService) -> None:
        self._introspection = introspection

    async def plugins(self, request: api.introspection.PluginsRequest) -> api.introspection.PluginsResponse:
        """Return every plugin that a filter matches, also those that failed or were skipped."""
        try:
            found = self._introspection.plugins(request.filters)
        except InvalidArgument as bad:
            raise InvalidArgument(f"{bad.text}: {bad.message}") from bad
        return api.introspection.PluginsResponse(plugins=[plugin_status_to_wire(plugin) for plugin in found])

    async def server(self, _request: api.protobuf.Empty) -> api.introspection.ServerResponse:
        """Return the daemon's identity and deprecation warnings."""
        return server_status_to_wire(await self._introspection.server())

    async def plugin_info(self, request: api.introspection.PluginInfoRequest) -> api.introspection.PluginInfoResponse:
        """Return a plugin and what it says about itself. Options of a type that the API lacks are UNKNOWN."""
        options = any_from_wire(request.options)
        if options is not None:
            try:
                names.message_class(name_in(options.type_url))
            except NotFound as unknown:
                text = f"failed to unmarshal plugin info Options: {to_status(unknown)[1]}"
                raise Unknown(text) from unknown
        plugin, extra = await self._introspection.plugin_info(request.type, request.id, options)
        return api.introspection.PluginInfoResponse(plugin=plugin_status_to_wire(plugin), extra=any_to_wire(extra))
