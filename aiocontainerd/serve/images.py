"""The Images service (facts/core 5)."""

from __future__ import annotations

from typing import ClassVar

from aiocontainerd import api, timestamps
from aiocontainerd.interfaces.metadata import Image
from aiocontainerd.interfaces.services import ImageService
from aiocontainerd.serve.requests import mask_paths, required
from aiocontainerd.wire.convert import descriptor_from_wire, descriptor_to_wire


class ImagesGrpc:
    """`containerd.services.images.v1.Images`."""

    service_name: ClassVar[str] = "containerd.services.images.v1.Images"

    def __init__(self, images: ImageService) -> None:
        self._images = images

    async def get(self, request: api.images.GetImageRequest) -> api.images.GetImageResponse:
        """One record."""
        return api.images.GetImageResponse(image=to_wire(await self._images.get(request.name)))

    async def list(self, request: api.images.ListImagesRequest) -> api.images.ListImagesResponse:
        """Those that a filter matches."""
        return api.images.ListImagesResponse(images=[to_wire(i) for i in await self._images.list(request.filters)])

    async def create(self, request: api.images.CreateImageRequest) -> api.images.CreateImageResponse:
        """Answers with the record as stored."""
        image = from_wire(required(request.image, "image"))
        created = await self._images.create(image, epoch_ns=_epoch(request.source_date_epoch))
        return api.images.CreateImageResponse(image=to_wire(created))

    async def update(self, request: api.images.UpdateImageRequest) -> api.images.UpdateImageResponse:
        """Answers with the record as stored."""
        image = from_wire(required(request.image, "image"))
        updated = await self._images.update(
            image, mask_paths(request.update_mask), epoch_ns=_epoch(request.source_date_epoch)
        )
        return api.images.UpdateImageResponse(image=to_wire(updated))

    async def delete(self, request: api.images.DeleteImageRequest) -> api.protobuf.Empty:
        """Removes the name; `sync` waits until what it held is collected."""
        target = None if request.target is None else descriptor_from_wire(request.target)
        await self._images.delete(request.name, target=target, sync=request.sync)
        return api.protobuf.Empty()


def from_wire(message: api.images.Image) -> Image:
    """The record of an image. Its times are the store's to set. Raises InvalidArgument without a target."""
    target = descriptor_from_wire(required(message.target, "image.target"))
    return Image(name=message.name, target=target, labels=message.labels)


def to_wire(image: Image) -> api.images.Image:
    """The message of an image."""
    return api.images.Image(
        name=image.name,
        labels=dict(image.labels),
        target=descriptor_to_wire(image.target),
        created_at=timestamps.to_wire(image.created_at_ns),
        updated_at=timestamps.to_wire(image.updated_at_ns),
    )


def _epoch(value: api.protobuf.Timestamp | None) -> int | None:
    return None if value is None else timestamps.from_wire(value)
