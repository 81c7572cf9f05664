"""Content descriptors."""

from __future__ import annotations

from aiocontainerd import api
from aiocontainerd.oci.descriptor import Descriptor


def descriptor_from_wire(message: api.types.Descriptor | None) -> Descriptor:
    """Return the record of a descriptor; one without digest where the field is absent."""
    if message is None:
        return Descriptor("", "", 0)
    return Descriptor(message.media_type, message.digest, message.size, message.annotations)


def descriptor_to_wire(descriptor: Descriptor) -> api.types.Descriptor:
    """Return the message of a descriptor."""
    return api.types.Descriptor(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        annotations=dict(descriptor.annotations),
    )
