"""Image records over any store."""

from __future__ import annotations

from aiocontainerd.errors import NotFound
from aiocontainerd.interfaces.metadata import Image, ImageStore


async def put(images: ImageStore, image: Image) -> Image:
    """Create an image, or give the one of its name the target and labels; the image as stored."""
    try:
        return await images.update(image, ("labels", "target"))
    except NotFound:
        return await images.create(image)
