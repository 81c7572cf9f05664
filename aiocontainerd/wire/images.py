"""Image records."""

from __future__ import annotations

from aiocontainerd import api
from aiocontainerd.interfaces.metadata import Image
from aiocontainerd.wire.descriptors import descriptor_from_wire, descriptor_to_wire
from aiocontainerd.wire.times import time_from_wire, time_to_wire


def image_from_wire(message: api.images.Image) -> Image:
    """Return the record of an image."""
    return Image(
        name=message.name,
        target=descriptor_from_wire(message.target),
        labels=message.labels,
        created_at_ns=time_from_wire(message.created_at),
        updated_at_ns=time_from_wire(message.updated_at),
    )


def image_to_wire(image: Image) -> api.images.Image:
    """Return the message of an image."""
    return api.images.Image(
        name=image.name,
        labels=dict(image.labels),
        target=descriptor_to_wire(image.target),
        created_at=time_to_wire(image.created_at_ns),
        updated_at=time_to_wire(image.updated_at_ns),
    )
