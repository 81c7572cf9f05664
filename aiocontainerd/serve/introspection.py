"""The Introspection service (facts/core 12)."""

from __future__ import annotations

from typing import ClassVar

from aiocontainerd import api, timestamps, typeurl
from aiocontainerd.api import names
from aiocontainerd.interfaces.services import Deprecation, IntrospectionService, PluginStatus
from aiocontainerd.serve.requests import unconverted


class IntrospectionGrpc:
    """`containerd.services.introspection.v1.Introspection`."""

    service_name: ClassVar[str] = "containerd.services.introspection.v1.Introspection"

    def __init__(self, introspection: IntrospectionService) -> None:
        self._introspection = introspection

    async def plugins(self, request: api.introspection.PluginsRequest) -> api.introspection.PluginsResponse:
        """Every plugin that a filter matches, those that failed or skipped included."""
        found = self._introspection.plugins(request.filters)
        return api.introspection.PluginsResponse(plugins=[_plugin(plugin) for plugin in found])

    async def server(self, _request: api.protobuf.Empty) -> api.introspection.ServerResponse:
        """The daemon's identity and deprecation warnings."""
        server = await self._introspection.server()
        return api.introspection.ServerResponse(
            uuid=server.uuid,
            pid=server.pid,
            pidns=server.pidns,
            deprecations=[_deprecation(warning) for warning in server.deprecations],
        )

    async def plugin_info(self, request: api.introspection.PluginInfoRequest) -> api.introspection.PluginInfoResponse:
        """One plugin and what it says of itself. Options of a type that the API does not have are UNKNOWN."""
        options = typeurl.from_wire(request.options)
        if options is not None:
            with unconverted():
                names.message_class(options.type_url.rpartition("/")[2])
        plugin, extra = await self._introspection.plugin_info(request.type, request.id, options)
        return api.introspection.PluginInfoResponse(plugin=_plugin(plugin), extra=typeurl.to_wire(extra))


def _plugin(plugin: PluginStatus) -> api.introspection.Plugin:
    failure = api.rpc.Status(code=plugin.code, message=plugin.message) if plugin.code else None
    return api.introspection.Plugin(
        type=plugin.kind,
        id=plugin.id,
        requires=list(plugin.requires),
        platforms=[_platform(platform) for platform in plugin.platforms],
        exports=dict(plugin.exports),
        capabilities=list(plugin.capabilities),
        init_err=failure,
    )


def _platform(text: str) -> api.types.Platform:
    system, architecture, variant, *_ = [*text.split("/"), "", ""]
    return api.types.Platform(os=system, architecture=architecture, variant=variant)


def _deprecation(warning: Deprecation) -> api.introspection.DeprecationWarning:
    return api.introspection.DeprecationWarning(
        id=warning.id, message=warning.message, last_occurrence=timestamps.to_wire(warning.last_occurrence_ns)
    )
