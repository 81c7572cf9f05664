"""The logic of container records: the events (facts/core 3, 11). A record's own checks are the store's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aiocontainerd import api
from aiocontainerd.errors import InvalidArgument
from aiocontainerd.interfaces.metadata import Container, ContainerStore
from aiocontainerd.wire.anys import any_to_wire

if TYPE_CHECKING:
    from aiocontainerd.events import EventBus


class ContainersService:
    """A ContainerStore that publishes what it did."""

    def __init__(self, store: ContainerStore, bus: EventBus) -> None:
        self._store = store
        self._bus = bus

    async def get(self, container_id: str) -> Container:
        """Raises NotFound."""
        return await self._store.get(container_id)

    async def list(self, filters: Sequence[str] = ()) -> list[Container]:
        """Those that a filter matches, sorted by id."""
        return await self._store.list(filters)

    async def create(self, container: Container) -> Container:
        """Raises InvalidArgument, AlreadyExists."""
        created = await self._store.create(container)
        runtime = api.event_types.ContainerCreateRuntime(
            name=created.runtime_name, options=any_to_wire(created.runtime_options)
        )
        event = api.event_types.ContainerCreate(id=created.id, image=created.image, runtime=runtime)
        self._bus.publish("/containers/create", event)
        return created

    async def update(self, container: Container, paths: Sequence[str] = ()) -> Container:
        """Raises InvalidArgument, NotFound."""
        if not container.id:
            raise InvalidArgument("Container.ID required")
        updated = await self._store.update(container, paths)
        event = api.event_types.ContainerUpdate(
            id=updated.id, image=updated.image, labels=dict(updated.labels), snapshot_key=updated.snapshot_key
        )
        self._bus.publish("/containers/update", event)
        return updated

    async def delete(self, container_id: str) -> None:
        """Raises NotFound. Tasks are not looked at; snapshots are left to garbage collection."""
        await self._store.delete(container_id)
        self._bus.publish("/containers/delete", api.event_types.ContainerDelete(id=container_id))
