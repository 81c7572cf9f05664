"""Images whose deletion can wait for garbage collection (facts/core 5)."""

from __future__ import annotations

from aiocontainerd.interfaces.gc import GCScheduler
from aiocontainerd.interfaces.metadata import ImageStore
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.serve.requests import unconverted


class ImagesService:
    """An ImageService. Its other methods are the store's own, so that a call passes through one plugin only."""

    def __init__(self, store: ImageStore, gc: GCScheduler) -> None:
        self._store = store
        self._gc = gc
        self.get, self.list, self.create, self.update = store.get, store.list, store.create, store.update

    async def delete(self, name: str, *, target: Descriptor | None = None, sync: bool = False) -> None:
        """Remove the record; `sync` waits for a whole garbage collection.

        Raises NotFound. A collection that fails is Unknown (facts/core 0).
        """
        await self._store.delete(name, target=target)
        if sync:
            with unconverted():
                await self._gc.schedule_and_wait()
