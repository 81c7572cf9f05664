"""Between messages and domain records: what several services share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from aiocontainerd.errors import Cancelled, ContainerdError, DeadlineExceeded, InvalidArgument, Unknown, to_status
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.sys.mount import Mount

if TYPE_CHECKING:
    from aiocontainerd import api

LIST_BATCH = 100
"""Records in one message of a streamed list (facts/core 4, 6)."""

MessageT = TypeVar("MessageT")


def required(message: MessageT | None, field: str) -> MessageT:
    """A sub-message that a request cannot do without. Raises InvalidArgument naming the field (facts/core 0)."""
    if message is None:
        raise InvalidArgument(f"field {field} must be set")
    return message


@contextmanager
def unconverted() -> Iterator[None]:
    """A block whose errors lose their class on the wire, but not their text, as containerd's do (facts/core 0)."""
    try:
        yield
    except (Cancelled, DeadlineExceeded, Unknown):
        raise
    except ContainerdError as error:
        raise Unknown(to_status(error)[1]) from error


def mask_paths(mask: api.protobuf.FieldMask | None) -> Sequence[str]:
    """The field paths of an update; none where the mask is absent."""
    return () if mask is None else tuple(mask.paths)


def descriptor_from_wire(message: api.types.Descriptor) -> Descriptor:
    """The record of a descriptor."""
    return Descriptor(message.media_type, message.digest, message.size, message.annotations)


def descriptor_to_wire(descriptor: Descriptor) -> api.types.Descriptor:
    """The message of a descriptor."""
    from aiocontainerd import api

    return api.types.Descriptor(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        annotations=dict(descriptor.annotations),
    )


def mounts_from_wire(messages: Iterable[api.types.Mount]) -> list[Mount]:
    """The records of mounts."""
    return [Mount(m.type, m.source, m.target, tuple(m.options)) for m in messages]


def mounts_to_wire(mounts: Iterable[Mount]) -> list[api.types.Mount]:
    """The messages of mounts."""
    from aiocontainerd import api

    return [api.types.Mount(type=m.type, source=m.source, target=m.target, options=list(m.options)) for m in mounts]
