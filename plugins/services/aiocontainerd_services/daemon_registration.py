"""Registrations about the daemon itself: introspection, deprecations, events, version, health."""

from __future__ import annotations

from collections.abc import Iterable

from aiocontainerd.plugin import InitContext, PluginConfig, Registration, kinds

Context = InitContext[PluginConfig]

UUID_DIRECTORY = f"{kinds.GRPC}.introspection"
"""Where containerd keeps the daemon's uuid: the directory of another plugin than the one that reads it."""


def registrations() -> Iterable[Registration]:
    """Return the registrations of this module."""
    return [
        Registration(kind=kinds.WARNING, id="deprecations", init=_deprecations),
        Registration(kind=kinds.SERVICE, id="introspection-service", requires=(kinds.WARNING,), init=_introspection),
        Registration(kind=kinds.GRPC, id="introspection", requires=(kinds.SERVICE,), init=_introspection_grpc),
        Registration(kind=kinds.GRPC, id="events", requires=(kinds.EVENT,), init=_events_grpc),
        Registration(kind=kinds.TTRPC, id="events", requires=(kinds.EVENT,), init=_events_ttrpc),
        Registration(kind=kinds.GRPC, id="version", init=_version),
        Registration(kind=kinds.GRPC, id="healthcheck", init=_health),
        Registration(kind=kinds.GRPC, id="plugins", init=_plugins),
    ]


async def _deprecations(_context: Context) -> object:
    from aiocontainerd_services.deprecations import Deprecations

    return Deprecations()


async def _introspection(context: Context) -> object:
    from aiocontainerd.host.introspection import DaemonIntrospection

    daemon = context.daemon
    uuid_file = daemon.root / UUID_DIRECTORY / "uuid"
    return DaemonIntrospection(daemon.plugins, uuid_file, context.get(kinds.WARNING, "deprecations"))


async def _introspection_grpc(context: Context) -> object:
    from aiocontainerd.serve.introspection import IntrospectionGrpc

    return IntrospectionGrpc(context.get(kinds.SERVICE, "introspection-service"))


async def _events_grpc(context: Context) -> object:
    from aiocontainerd.serve.events import EventsGrpc

    return EventsGrpc(context.bus)


async def _events_ttrpc(context: Context) -> object:
    from aiocontainerd.serve.events import EventsTtrpc

    return EventsTtrpc(context.bus)


async def _version(_context: Context) -> object:
    from aiocontainerd.serve.version import VersionGrpc

    return VersionGrpc()


async def _health(_context: Context) -> object:
    from aiocontainerd.serve.health import HealthGrpc

    return HealthGrpc()


async def _plugins(context: Context) -> object:
    from aiocontainerd.serve.plugins import PluginsGrpc

    daemon = context.daemon
    return PluginsGrpc(daemon.plugins, daemon.owners, daemon.reload, daemon.explain_config)
