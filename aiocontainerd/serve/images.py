"""The Images service (facts/core 5)."""

from __future__ import annotations

from typing import ClassVar

from aiocontainerd import api
from aiocontainerd.interfaces.metadata import Image
from aiocontainerd.interfaces.services import ImageService
from aiocontainerd.serve.requests import converted, required
from aiocontainerd.wire.descriptors import descriptor_from_wire
from aiocontainerd.wire.images import image_from_wire, image_to_wire
from aiocontainerd.wire.masks import mask_from_wire
from aiocontainerd.wire.times import epoch_from_wire


class ImagesGrpc:
    """`containerd.services.images.v1.Images`."""

    service_name: ClassVar[str] = "containerd.services.images.v1.Images"

    def __init__(self, images: ImageService) -> None:
        self._images = images

    async def get(self, request: api.images.GetImageRequest) -> api.images.GetImageResponse:
        """Return one record."""
        return api.images.GetImageResponse(image=image_to_wire(await self._images.get(request.name)))

    async def list(self, request: api.images.ListImagesRequest) -> api.images.ListImagesResponse:
        """Return the records that a filter matches."""
        found = await self._images.list(request.filters)
        return api.images.ListImagesResponse(images=await converted(found, image_to_wire))

    async def create(self, request: api.images.CreateImageRequest) -> api.images.CreateImageResponse:
        """Create a record and return it as stored."""
        image = _image(request.image)
        created = await self._images.create(image, epoch_ns=epoch_from_wire(request.source_date_epoch))
        return api.images.CreateImageResponse(image=image_to_wire(created))

    async def update(self, request: api.images.UpdateImageRequest) -> api.images.UpdateImageResponse:
        """Change a record and return it as stored."""
        image = _image(request.image)
        updated = await self._images.update(
            image, mask_from_wire(request.update_mask), epoch_ns=epoch_from_wire(request.source_date_epoch)
        )
        return api.images.UpdateImageResponse(image=image_to_wire(updated))

    async def delete(self, request: api.images.DeleteImageRequest) -> api.protobuf.Empty:
        """Remove the name; `sync` waits until what it held is collected."""
        target = None if request.target is None else descriptor_from_wire(request.target)
        await self._images.delete(request.name, target=target, sync=request.sync)
        return api.protobuf.Empty()


def _image(message: api.images.Image | None) -> Image:
    given = required(message, "image")
    required(given.target, "image.target")
    return image_from_wire(given)
