"""Leases whose deletion can wait for garbage collection (facts/core 9)."""

from __future__ import annotations

from aiocontainerd.interfaces.gc import GCScheduler
from aiocontainerd.interfaces.metadata import LeaseStore


class LeasesManager:
    """A LeaseManager. Its other methods are the store's own, so that a call passes through one plugin only."""

    def __init__(self, store: LeaseStore, gc: GCScheduler) -> None:
        self._store = store
        self._gc = gc
        self.create, self.list, self.resources = store.create, store.list, store.resources
        self.add_resource, self.delete_resource = store.add_resource, store.delete_resource

    async def delete(self, lease_id: str, *, sync: bool = False) -> None:
        """Remove the lease; `sync` waits for a whole garbage collection. Raises NotFound."""
        await self._store.delete(lease_id)
        if sync:
            await self._gc.schedule_and_wait()
