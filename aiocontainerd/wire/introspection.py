"""The daemon seen from inside: plugins, identity, deprecations."""

from __future__ import annotations

from aiocontainerd import api
from aiocontainerd.interfaces.services import Deprecation, PluginStatus, ServerStatus
from aiocontainerd.wire.times import time_from_wire, time_to_wire


def plugin_status_from_wire(message: api.introspection.Plugin) -> PluginStatus:
    """Return a plugin as introspection shows it."""
    failure = message.init_err
    return PluginStatus(
        kind=message.type,
        id=message.id,
        requires=tuple(message.requires),
        platforms=tuple("/".join(p for p in (x.os, x.architecture, x.variant) if p) for x in message.platforms),
        exports=message.exports,
        capabilities=tuple(message.capabilities),
        code=0 if failure is None else failure.code,
        message="" if failure is None else failure.message,
    )


def plugin_status_to_wire(plugin: PluginStatus) -> api.introspection.Plugin:
    """Return the message of a plugin."""
    failure = api.rpc.Status(code=plugin.code, message=plugin.message) if plugin.code else None
    return api.introspection.Plugin(
        type=plugin.kind,
        id=plugin.id,
        requires=list(plugin.requires),
        platforms=[_platform_to_wire(platform) for platform in plugin.platforms],
        exports=dict(plugin.exports),
        capabilities=list(plugin.capabilities),
        init_err=failure,
    )


def server_status_from_wire(message: api.introspection.ServerResponse) -> ServerStatus:
    """Return the daemon's identity and its deprecation warnings."""
    warnings = [deprecation_from_wire(warning) for warning in message.deprecations]
    return ServerStatus(uuid=message.uuid, pid=message.pid, pidns=message.pidns, deprecations=warnings)


def server_status_to_wire(server: ServerStatus) -> api.introspection.ServerResponse:
    """Return the message of the daemon's identity and its deprecation warnings."""
    warnings = [deprecation_to_wire(warning) for warning in server.deprecations]
    return api.introspection.ServerResponse(uuid=server.uuid, pid=server.pid, pidns=server.pidns, deprecations=warnings)


def deprecation_from_wire(message: api.introspection.DeprecationWarning) -> Deprecation:
    """Return a deprecation in use."""
    return Deprecation(
        id=message.id, message=message.message, last_occurrence_ns=time_from_wire(message.last_occurrence)
    )


def deprecation_to_wire(warning: Deprecation) -> api.introspection.DeprecationWarning:
    """Return the message of a deprecation in use."""
    return api.introspection.DeprecationWarning(
        id=warning.id, message=warning.message, last_occurrence=time_to_wire(warning.last_occurrence_ns)
    )


def _platform_to_wire(text: str) -> api.types.Platform:
    system, architecture, variant, *_ = [*text.split("/"), "", ""]
    return api.types.Platform(os=system, architecture=architecture, variant=variant)
