"""The logic of images: names are required, and deletion can wait for garbage collection (facts/core 5).

The store publishes the events. Get and list are the store's own.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiocontainerd.errors import InvalidArgument
from aiocontainerd.interfaces.gc import GCScheduler
from aiocontainerd.interfaces.metadata import Image, ImageStore
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.serve.requests import unconverted


class ImagesService:
    """An ImageService on a store and a scheduler."""

    def __init__(self, store: ImageStore, gc: GCScheduler) -> None:
        self._store = store
        self._gc = gc

    async def get(self, name: str) -> Image:
        """Raises NotFound."""
        return await self._store.get(name)

    async def list(self, filters: Sequence[str] = ()) -> list[Image]:
        """Those that a filter matches."""
        return await self._store.list(filters)

    async def create(self, image: Image, *, epoch_ns: int | None = None) -> Image:
        """Raises InvalidArgument, AlreadyExists."""
        _check_name(image)
        return await self._store.create(image, epoch_ns=epoch_ns)

    async def update(self, image: Image, paths: Sequence[str] = (), *, epoch_ns: int | None = None) -> Image:
        """Raises InvalidArgument, NotFound."""
        _check_name(image)
        return await self._store.update(image, paths, epoch_ns=epoch_ns)

    async def delete(self, name: str, *, target: Descriptor | None = None, sync: bool = False) -> None:
        """Raises NotFound; a collection that failed after a `sync` deletion is Unknown (facts/core 0)."""
        await self._store.delete(name, target=target)
        if sync:
            with unconverted():
                await self._gc.schedule_and_wait()


def _check_name(image: Image) -> None:
    if not image.name:
        raise InvalidArgument("Image.Name required")
