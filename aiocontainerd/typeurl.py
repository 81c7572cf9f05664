"""Typed values whose type the daemon need not know: `Any`, and the way between it and generated messages.

containerd's type URLs of protocol buffer messages are bare full names (`containerd.events.TaskExit`); a prefix
ending in a slash, as other stacks write it, is accepted when reading (facts/core 11, facts/runtime 4.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from aiocontainerd import api
from aiocontainerd.api import names

if TYPE_CHECKING:
    import betterproto2

SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
LINUX_RESOURCES_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
FEATURES_URL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


class Any(msgspec.Struct, frozen=True):
    """A value with the URL of its type. The daemon keeps and returns the bytes as they came."""

    type_url: str
    value: bytes


def message_name(message: betterproto2.Message) -> str:
    """The full protocol buffer name of a generated message, such as `containerd.events.TaskExit`."""
    return names.class_name(type(message))


def marshal(message: betterproto2.Message) -> Any:
    """Wrap a generated message."""
    from aiocontainerd.wire import codec

    return Any(message_name(message), codec.encode(message))


def unmarshal(value: Any) -> betterproto2.Message:
    """Decode a wrapped message. Raises NotFound for a type the API lacks, InvalidArgument for bad bytes."""
    from aiocontainerd.wire import codec

    return codec.decode(codec.resolve(value.type_url.rpartition("/")[2]), value.value)


def from_wire(value: api.protobuf.Any | None) -> Any | None:
    """The domain value of an `Any` field of a message; None where the field is absent."""
    return None if value is None else Any(value.type_url, value.value)


def to_wire(value: Any | None) -> api.protobuf.Any | None:
    """The field value of an `Any`; None leaves the field out."""
    return None if value is None else api.protobuf.Any(type_url=value.type_url, value=value.value)
