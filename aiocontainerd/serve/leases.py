"""The Leases service (facts/core 9)."""

from __future__ import annotations

from typing import ClassVar

from aiocontainerd import api, timestamps
from aiocontainerd.interfaces.metadata import Lease, Resource
from aiocontainerd.interfaces.services import LeaseManager
from aiocontainerd.serve.requests import required


class LeasesGrpc:
    """`containerd.services.leases.v1.Leases`."""

    service_name: ClassVar[str] = "containerd.services.leases.v1.Leases"

    def __init__(self, manager: LeaseManager) -> None:
        self._manager = manager

    async def create(self, request: api.leases.CreateRequest) -> api.leases.CreateResponse:
        """Makes a lease; an empty id is made up."""
        return api.leases.CreateResponse(lease=_to_wire(await self._manager.create(request.id, request.labels)))

    async def delete(self, request: api.leases.DeleteRequest) -> api.protobuf.Empty:
        """Removes a lease; `sync` waits until what it held is collected."""
        await self._manager.delete(request.id, sync=request.sync)
        return api.protobuf.Empty()

    async def list(self, request: api.leases.ListRequest) -> api.leases.ListResponse:
        """Those that a filter matches."""
        found = await self._manager.list(request.filters)
        return api.leases.ListResponse(leases=[_to_wire(lease) for lease in found])

    async def add_resource(self, request: api.leases.AddResourceRequest) -> api.protobuf.Empty:
        """Makes a lease hold something."""
        await self._manager.add_resource(request.id, _resource(request.resource))
        return api.protobuf.Empty()

    async def delete_resource(self, request: api.leases.DeleteResourceRequest) -> api.protobuf.Empty:
        """Makes a lease let go of something."""
        await self._manager.delete_resource(request.id, _resource(request.resource))
        return api.protobuf.Empty()

    async def list_resources(self, request: api.leases.ListResourcesRequest) -> api.leases.ListResourcesResponse:
        """What a lease holds."""
        held = await self._manager.resources(request.id)
        return api.leases.ListResourcesResponse(resources=[api.leases.Resource(id=r.id, type=r.type) for r in held])


def _resource(message: api.leases.Resource | None) -> Resource:
    given = required(message, "resource")
    return Resource(given.id, given.type)


def _to_wire(lease: Lease) -> api.leases.Lease:
    return api.leases.Lease(id=lease.id, created_at=timestamps.to_wire(lease.created_at_ns), labels=dict(lease.labels))
