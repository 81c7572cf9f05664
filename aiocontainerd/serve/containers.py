"""The Containers service (facts/core 3)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import ClassVar

from aiocontainerd import api, timestamps, typeurl
from aiocontainerd.interfaces.metadata import Container, ContainerStore
from aiocontainerd.serve.requests import mask_paths, required


class ContainersGrpc:
    """`containerd.services.containers.v1.Containers`."""

    service_name: ClassVar[str] = "containerd.services.containers.v1.Containers"

    def __init__(self, containers: ContainerStore) -> None:
        self._containers = containers

    async def get(self, request: api.containers.GetContainerRequest) -> api.containers.GetContainerResponse:
        """One record."""
        return api.containers.GetContainerResponse(container=to_wire(await self._containers.get(request.id)))

    async def list(self, request: api.containers.ListContainersRequest) -> api.containers.ListContainersResponse:
        """Those that a filter matches, sorted by id."""
        found = await self._containers.list(request.filters)
        return api.containers.ListContainersResponse(containers=[to_wire(container) for container in found])

    async def list_stream(
        self, request: api.containers.ListContainersRequest
    ) -> AsyncIterator[api.containers.ListContainerMessage]:
        """As `list`, one record a message."""
        for container in await self._containers.list(request.filters):
            yield api.containers.ListContainerMessage(container=to_wire(container))

    async def create(self, request: api.containers.CreateContainerRequest) -> api.containers.CreateContainerResponse:
        """Answers with the record as stored."""
        container = from_wire(required(request.container, "container"))
        return api.containers.CreateContainerResponse(container=to_wire(await self._containers.create(container)))

    async def update(self, request: api.containers.UpdateContainerRequest) -> api.containers.UpdateContainerResponse:
        """Answers with the record as stored."""
        container = from_wire(required(request.container, "container"))
        updated = await self._containers.update(container, mask_paths(request.update_mask))
        return api.containers.UpdateContainerResponse(container=to_wire(updated))

    async def delete(self, request: api.containers.DeleteContainerRequest) -> api.protobuf.Empty:
        """Removes the record, whatever its task does."""
        await self._containers.delete(request.id)
        return api.protobuf.Empty()


def from_wire(message: api.containers.Container) -> Container:
    """The record of a container. Its times are the store's to set."""
    runtime = message.runtime
    return Container(
        id=message.id,
        labels=message.labels,
        image=message.image,
        runtime_name="" if runtime is None else runtime.name,
        runtime_options=None if runtime is None else typeurl.from_wire(runtime.options),
        spec=typeurl.from_wire(message.spec),
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        extensions={key: typeurl.Any(value.type_url, value.value) for key, value in message.extensions.items()},
        sandbox_id=message.sandbox,
    )


def to_wire(container: Container) -> api.containers.Container:
    """The message of a container; its opaque values byte for byte."""
    return api.containers.Container(
        id=container.id,
        labels=dict(container.labels),
        image=container.image,
        runtime=api.containers.ContainerRuntime(
            name=container.runtime_name, options=typeurl.to_wire(container.runtime_options)
        ),
        spec=typeurl.to_wire(container.spec),
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        created_at=timestamps.to_wire(container.created_at_ns),
        updated_at=timestamps.to_wire(container.updated_at_ns),
        extensions={
            key: api.protobuf.Any(type_url=value.type_url, value=value.value)
            for key, value in container.extensions.items()
        },
        sandbox=container.sandbox_id,
    )
