"""Leases of a daemon: `LeaseManager` over the API (facts/core 9). `distribution.leases.held` holds one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from aiocontainerd import api
from aiocontainerd.client.connection import Connection
from aiocontainerd.errors import Internal
from aiocontainerd.interfaces.metadata import Lease, Resource
from aiocontainerd.wire.leases import lease_from_wire, resource_from_wire, resource_to_wire

_NONE: Mapping[str, str] = MappingProxyType({})


class Leases:
    """`LeaseManager` over the API."""

    SERVICE = "containerd.services.leases.v1.Leases"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(self, lease_id: str = "", labels: Mapping[str, str] = _NONE) -> Lease:
        """Create a lease; for `lease_id` "" the daemon makes one up. Raises AlreadyExists."""
        le = api.leases
        request = le.CreateRequest(id=lease_id, labels=dict(labels))
        answer = await self._connection.call(self.SERVICE, "Create", request, le.CreateResponse)
        if answer.lease is None:
            raise Internal("the daemon created a lease without telling it")
        return lease_from_wire(answer.lease)

    async def delete(self, lease_id: str, *, sync: bool = False) -> None:
        """Delete a lease; `sync` waits for the garbage collection. Raises NotFound."""
        request = api.leases.DeleteRequest(id=lease_id, sync=sync)
        await self._connection.call(self.SERVICE, "Delete", request, api.protobuf.Empty)

    async def list(self, filters: Sequence[str] = ()) -> list[Lease]:
        """Return the leases that a filter matches."""
        le = api.leases
        answer = await self._connection.call(
            self.SERVICE, "List", le.ListRequest(filters=list(filters)), le.ListResponse
        )
        return [lease_from_wire(message) for message in answer.leases]

    async def add_resource(self, lease_id: str, resource: Resource) -> None:
        """Have a lease hold a resource, which need not exist. Raises NotFound for the lease."""
        le = api.leases
        request = le.AddResourceRequest(id=lease_id, resource=resource_to_wire(resource))
        await self._connection.call(self.SERVICE, "AddResource", request, api.protobuf.Empty)

    async def delete_resource(self, lease_id: str, resource: Resource) -> None:
        """Have a lease release a resource. Raises NotFound for the lease."""
        le = api.leases
        request = le.DeleteResourceRequest(id=lease_id, resource=resource_to_wire(resource))
        await self._connection.call(self.SERVICE, "DeleteResource", request, api.protobuf.Empty)

    async def resources(self, lease_id: str) -> Sequence[Resource]:
        """Return what a lease holds."""
        le = api.leases
        answer = await self._connection.call(
            self.SERVICE, "ListResources", le.ListResourcesRequest(id=lease_id), le.ListResourcesResponse
        )
        return [resource_from_wire(message) for message in answer.resources]
