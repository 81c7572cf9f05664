"""Services about the daemon itself: version, health."""

from __future__ import annotations

from collections.abc import Iterable

from aiocontainerd.plugin import InitContext, PluginConfig, Registration, kinds


def registrations() -> Iterable[Registration]:
    """The plugins of this module."""
    return [
        Registration(kind=kinds.GRPC, id="version", init=_version),
        Registration(kind=kinds.GRPC, id="healthcheck", init=_health),
    ]


async def _version(_context: InitContext[PluginConfig]) -> object:
    from aiocontainerd_services.version_grpc import VersionGrpc

    return VersionGrpc()


async def _health(_context: InitContext[PluginConfig]) -> object:
    from aiocontainerd_services.health_grpc import HealthGrpc

    return HealthGrpc()
