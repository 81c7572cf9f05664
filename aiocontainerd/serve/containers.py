"""The Containers service (facts/core 3)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import ClassVar

from aiocontainerd import api
from aiocontainerd.interfaces.metadata import ContainerStore
from aiocontainerd.serve.requests import converted, required
from aiocontainerd.wire.containers import container_from_wire, container_to_wire
from aiocontainerd.wire.masks import mask_from_wire


class ContainersGrpc:
    """`containerd.services.containers.v1.Containers`."""

    service_name: ClassVar[str] = "containerd.services.containers.v1.Containers"

    def __init__(self, containers: ContainerStore) -> None:
        self._containers = containers

    async def get(self, request: api.containers.GetContainerRequest) -> api.containers.GetContainerResponse:
        """Return one record."""
        return api.containers.GetContainerResponse(container=container_to_wire(await self._containers.get(request.id)))

    async def list(self, request: api.containers.ListContainersRequest) -> api.containers.ListContainersResponse:
        """Return the records that a filter matches, sorted by id."""
        found = await self._containers.list(request.filters)
        return api.containers.ListContainersResponse(containers=await converted(found, container_to_wire))

    async def list_stream(
        self, request: api.containers.ListContainersRequest
    ) -> AsyncIterator[api.containers.ListContainerMessage]:
        """Send the same records as `list`, one in each message."""
        for container in await self._containers.list(request.filters):
            yield api.containers.ListContainerMessage(container=container_to_wire(container))

    async def create(self, request: api.containers.CreateContainerRequest) -> api.containers.CreateContainerResponse:
        """Create a record and return it as stored."""
        container = container_from_wire(required(request.container, "container"))
        return api.containers.CreateContainerResponse(
            container=container_to_wire(await self._containers.create(container))
        )

    async def update(self, request: api.containers.UpdateContainerRequest) -> api.containers.UpdateContainerResponse:
        """Change a record and return it as stored."""
        container = container_from_wire(required(request.container, "container"))
        updated = await self._containers.update(container, mask_from_wire(request.update_mask))
        return api.containers.UpdateContainerResponse(container=container_to_wire(updated))

    async def delete(self, request: api.containers.DeleteContainerRequest) -> api.protobuf.Empty:
        """Remove the record, whatever its task does."""
        await self._containers.delete(request.id)
        return api.protobuf.Empty()
