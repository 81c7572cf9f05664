"""The Leases service (facts/core 9)."""

from __future__ import annotations

from typing import ClassVar

from aiocontainerd import api
from aiocontainerd.interfaces.metadata import Resource
from aiocontainerd.interfaces.services import LeaseManager
from aiocontainerd.serve.requests import converted, required
from aiocontainerd.wire.leases import lease_to_wire, resource_from_wire, resource_to_wire


class LeasesGrpc:
    """`containerd.services.leases.v1.Leases`."""

    service_name: ClassVar[str] = "containerd.services.leases.v1.Leases"

    def __init__(self, manager: LeaseManager) -> None:
        self._manager = manager

    async def create(self, request: api.leases.CreateRequest) -> api.leases.CreateResponse:
        """Create a lease; an empty id lets the daemon choose one."""
        return api.leases.CreateResponse(lease=lease_to_wire(await self._manager.create(request.id, request.labels)))

    async def delete(self, request: api.leases.DeleteRequest) -> api.protobuf.Empty:
        """Remove a lease; `sync` waits until what it held is collected."""
        await self._manager.delete(request.id, sync=request.sync)
        return api.protobuf.Empty()

    async def list(self, request: api.leases.ListRequest) -> api.leases.ListResponse:
        """Return the leases that a filter matches."""
        found = await self._manager.list(request.filters)
        return api.leases.ListResponse(leases=await converted(found, lease_to_wire))

    async def add_resource(self, request: api.leases.AddResourceRequest) -> api.protobuf.Empty:
        """Add a resource to a lease."""
        await self._manager.add_resource(request.id, _resource(request.resource))
        return api.protobuf.Empty()

    async def delete_resource(self, request: api.leases.DeleteResourceRequest) -> api.protobuf.Empty:
        """Take a resource from a lease."""
        await self._manager.delete_resource(request.id, _resource(request.resource))
        return api.protobuf.Empty()

    async def list_resources(self, request: api.leases.ListResourcesRequest) -> api.leases.ListResourcesResponse:
        """Return the resources of a lease."""
        held = await self._manager.resources(request.id)
        return api.leases.ListResourcesResponse(resources=await converted(held, resource_to_wire))


def _resource(message: api.leases.Resource | None) -> Resource:
    return resource_from_wire(required(message, "resource"))
