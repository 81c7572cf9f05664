"""Image records of a daemon: `ImageService` over the API (facts/core 5)."""

from __future__ import annotations

from collections.abc import Sequence

from aiocontainerd import api
from aiocontainerd.client.connection import Connection
from aiocontainerd.errors import Internal
from aiocontainerd.interfaces.metadata import Image
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.wire.descriptors import descriptor_to_wire
from aiocontainerd.wire.images import image_from_wire, image_to_wire
from aiocontainerd.wire.masks import mask_to_wire
from aiocontainerd.wire.times import epoch_to_wire


class Images:
    """`ImageService` over the API."""

    SERVICE = "containerd.services.images.v1.Images"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, name: str) -> Image:
        """Return the image of a name. Raises NotFound."""
        i = api.images
        answer = await self._connection.call(self.SERVICE, "Get", i.GetImageRequest(name=name), i.GetImageResponse)
        return _image(answer.image)

    async def list(self, filters: Sequence[str] = ()) -> list[Image]:
        """Return the images that a filter matches, sorted by name."""
        i = api.images
        request = i.ListImagesRequest(filters=list(filters))
        answer = await self._connection.call(self.SERVICE, "List", request, i.ListImagesResponse)
        return [_image(message) for message in answer.images]

    async def create(self, image: Image, *, epoch_ns: int | None = None) -> Image:
        """Create an image. Raises AlreadyExists."""
        i = api.images
        request = i.CreateImageRequest(image=image_to_wire(image), source_date_epoch=epoch_to_wire(epoch_ns))
        answer = await self._connection.call(self.SERVICE, "Create", request, i.CreateImageResponse)
        return _image(answer.image)

    async def update(self, image: Image, paths: Sequence[str] = (), *, epoch_ns: int | None = None) -> Image:
        """Change an image: everything, or the fields that `paths` name. Raises NotFound."""
        i = api.images
        request = i.UpdateImageRequest(
            image=image_to_wire(image), update_mask=mask_to_wire(paths), source_date_epoch=epoch_to_wire(epoch_ns)
        )
        answer = await self._connection.call(self.SERVICE, "Update", request, i.UpdateImageResponse)
        return _image(answer.image)

    async def delete(self, name: str, *, target: Descriptor | None = None, sync: bool = False) -> None:
        """Delete an image; `sync` waits for the garbage collection. Raises NotFound."""
        wanted = None if target is None else descriptor_to_wire(target)
        request = api.images.DeleteImageRequest(name=name, sync=sync, target=wanted)
        await self._connection.call(self.SERVICE, "Delete", request, api.protobuf.Empty)


def _image(message: api.images.Image | None) -> Image:
    if message is None:
        raise Internal("the daemon answered without an image")
    return image_from_wire(message)
