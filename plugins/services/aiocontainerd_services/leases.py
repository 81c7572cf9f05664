"""The lease manager: the store's leases, whose deletion can wait for garbage collection (facts/core 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aiocontainerd.interfaces.gc import GCScheduler
from aiocontainerd.interfaces.metadata import Lease, LeaseStore, Resource


class Manager:
    """A LeaseManager on a store and a scheduler."""

    def __init__(self, store: LeaseStore, gc: GCScheduler) -> None:
        self._store = store
        self._gc = gc

    async def create(self, lease_id: str, labels: Mapping[str, str]) -> Lease:
        """`lease_id` "" makes one up. Raises AlreadyExists."""
        return await self._store.create(lease_id, labels)

    async def delete(self, lease_id: str, *, sync: bool = False) -> None:
        """Raises NotFound."""
        await self._store.delete(lease_id)
        if sync:
            await self._gc.schedule_and_wait()

    async def list(self, filters: Sequence[str] = ()) -> list[Lease]:
        """Those that a filter matches."""
        return await self._store.list(filters)

    async def add_resource(self, lease_id: str, resource: Resource) -> None:
        """Whether the resource exists is not checked. Raises NotFound, InvalidArgument, Unimplemented."""
        await self._store.add_resource(lease_id, resource)

    async def delete_resource(self, lease_id: str, resource: Resource) -> None:
        """An entry that is absent is no error. Raises NotFound, InvalidArgument, Unimplemented."""
        await self._store.delete_resource(lease_id, resource)

    async def resources(self, lease_id: str) -> Sequence[Resource]:
        """Content, images, ingests, snapshots, in this order. Raises NotFound."""
        return await self._store.resources(lease_id)
