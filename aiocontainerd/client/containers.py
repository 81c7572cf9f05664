"""Container records of a daemon: `ContainerStore` over the API (facts/core 3)."""

from __future__ import annotations

from collections.abc import Sequence

from aiocontainerd import api
from aiocontainerd.client.connection import Connection
from aiocontainerd.errors import Internal
from aiocontainerd.interfaces.metadata import Container
from aiocontainerd.wire.containers import container_from_wire, container_to_wire
from aiocontainerd.wire.masks import mask_to_wire


class Containers:
    """`ContainerStore` over the API."""

    SERVICE = "containerd.services.containers.v1.Containers"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, container_id: str) -> Container:
        """Return the container of an id. Raises NotFound."""
        c = api.containers
        answer = await self._connection.call(
            self.SERVICE, "Get", c.GetContainerRequest(id=container_id), c.GetContainerResponse
        )
        return _container(answer.container)

    async def list(self, filters: Sequence[str] = ()) -> list[Container]:
        """Return the containers that a filter matches, sorted by id."""
        c = api.containers
        request = c.ListContainersRequest(filters=list(filters))
        answer = await self._connection.call(self.SERVICE, "List", request, c.ListContainersResponse)
        return [_container(message) for message in answer.containers]

    async def create(self, container: Container) -> Container:
        """Create a container record. Raises AlreadyExists, InvalidArgument."""
        c = api.containers
        request = c.CreateContainerRequest(container=container_to_wire(container))
        answer = await self._connection.call(self.SERVICE, "Create", request, c.CreateContainerResponse)
        return _container(answer.container)

    async def update(self, container: Container, paths: Sequence[str] = ()) -> Container:
        """Change a container: everything, or the fields that `paths` name. Raises NotFound, InvalidArgument."""
        c = api.containers
        request = c.UpdateContainerRequest(container=container_to_wire(container), update_mask=mask_to_wire(paths))
        answer = await self._connection.call(self.SERVICE, "Update", request, c.UpdateContainerResponse)
        return _container(answer.container)

    async def delete(self, container_id: str) -> None:
        """Delete a container record. Raises NotFound."""
        request = api.containers.DeleteContainerRequest(id=container_id)
        await self._connection.call(self.SERVICE, "Delete", request, api.protobuf.Empty)


def _container(message: api.containers.Container | None) -> Container:
    if message is None:
        raise Internal("the daemon answered without a container")
    return container_from_wire(message)
