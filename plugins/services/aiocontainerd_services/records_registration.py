"""Registrations of namespaces, containers, images and leases: records of the metadata store.

A service to which nothing is left to add is the store's own part.
"""

from __future__ import annotations

from collections.abc import Iterable

from aiocontainerd.plugin import InitContext, PluginConfig, Registration, kinds

Context = InitContext[PluginConfig]


def registrations() -> Iterable[Registration]:
    """Return the registrations of this module."""
    collected = (kinds.METADATA, kinds.GC)
    return [
        Registration(kind=kinds.SERVICE, id="namespaces-service", requires=(kinds.METADATA,), init=_namespaces),
        Registration(kind=kinds.GRPC, id="namespaces", requires=(kinds.SERVICE,), init=_namespaces_grpc),
        Registration(kind=kinds.SERVICE, id="containers-service", requires=(kinds.METADATA,), init=_containers),
        Registration(kind=kinds.GRPC, id="containers", requires=(kinds.SERVICE,), init=_containers_grpc),
        Registration(kind=kinds.SERVICE, id="images-service", requires=collected, init=_images),
        Registration(kind=kinds.GRPC, id="images", requires=(kinds.SERVICE,), init=_images_grpc),
        Registration(kind=kinds.LEASE, id="manager", requires=collected, init=_lease_manager),
        Registration(kind=kinds.GRPC, id="leases", requires=(kinds.LEASE,), init=_leases_grpc),
    ]


async def _namespaces(context: Context) -> object:
    return context.get_single(kinds.METADATA).namespaces


async def _namespaces_grpc(context: Context) -> object:
    from aiocontainerd.serve.namespaces import NamespacesGrpc

    return NamespacesGrpc(context.get(kinds.SERVICE, "namespaces-service"))


async def _containers(context: Context) -> object:
    return context.get_single(kinds.METADATA).containers


async def _containers_grpc(context: Context) -> object:
    from aiocontainerd.serve.containers import ContainersGrpc

    return ContainersGrpc(context.get(kinds.SERVICE, "containers-service"))


async def _images(context: Context) -> object:
    from aiocontainerd_services.images import ImagesService

    return ImagesService(context.get_single(kinds.METADATA).images, context.get(kinds.GC, "scheduler"))


async def _images_grpc(context: Context) -> object:
    from aiocontainerd.serve.images import ImagesGrpc

    return ImagesGrpc(context.get(kinds.SERVICE, "images-service"))


async def _lease_manager(context: Context) -> object:
    from aiocontainerd_services.leases import LeasesManager

    return LeasesManager(context.get_single(kinds.METADATA).leases, context.get(kinds.GC, "scheduler"))


async def _leases_grpc(context: Context) -> object:
    from aiocontainerd.serve.leases import LeasesGrpc

    return LeasesGrpc(context.get(kinds.LEASE, "manager"))
