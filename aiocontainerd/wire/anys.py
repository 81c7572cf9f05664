"""Typed values: `Any` fields of messages, and generated messages wrapped in an `Any`.

Plugin authors know this module as `aiocontainerd.plugin.typeurl`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from aiocontainerd import api
from aiocontainerd.api import names
from aiocontainerd.typeurl import FEATURES_URL, LINUX_RESOURCES_URL, PROCESS_URL, SPEC_URL, Any, name_in
from aiocontainerd.wire import codec

if TYPE_CHECKING:
    import betterproto2

__all__ = [
    "FEATURES_URL", "LINUX_RESOURCES_URL", "PROCESS_URL", "SPEC_URL", "Any", "any_from_wire", "any_to_wire",
    "anys_from_wire", "anys_to_wire", "from_wire", "marshal", "message_name", "to_wire", "unmarshal",
]  # fmt: skip


def message_name(message: betterproto2.Message) -> str:
    """Return the full protocol buffer name of a generated message, such as `containerd.events.TaskExit`."""
    return names.class_name(type(message))


def marshal(message: betterproto2.Message) -> Any:
    """Wrap a generated message."""
    return Any(message_name(message), codec.encode(message))


def unmarshal(value: Any) -> betterproto2.Message:
    """Decode a wrapped message. Raises NotFound for a type the API lacks, InvalidArgument for bad bytes."""
    return codec.decode(codec.resolve(name_in(value.type_url)), value.value)


def any_from_wire(value: api.protobuf.Any | None) -> Any | None:
    """Return the value of an `Any` field; None where the field is absent."""
    return None if value is None else Any(value.type_url, value.value)


def any_to_wire(value: Any | None) -> api.protobuf.Any | None:
    """Return the field of a value; None leaves the field out."""
    return None if value is None else api.protobuf.Any(type_url=value.type_url, value=value.value)


def anys_from_wire(values: Mapping[str, api.protobuf.Any]) -> dict[str, Any]:
    """Return the values of a map field."""
    return {key: Any(value.type_url, value.value) for key, value in values.items()}


def anys_to_wire(values: Mapping[str, Any]) -> dict[str, api.protobuf.Any]:
    """Return the map field of values."""
    return {key: api.protobuf.Any(type_url=value.type_url, value=value.value) for key, value in values.items()}


from_wire, to_wire = any_from_wire, any_to_wire
"""The same by the names that plugin authors use."""
