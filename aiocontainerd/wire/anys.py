"""Typed values: `Any` fields of messages, and generated messages wrapped in an `Any`.

Plugin authors know this module as `aiocontainerd.plugin.typeurl`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from aiocontainerd import api, gojson
from aiocontainerd.api import names
from aiocontainerd.errors import InvalidArgument, NotFound, Unknown
from aiocontainerd.typeurl import FEATURES_URL, LINUX_RESOURCES_URL, PROCESS_URL, SPEC_URL, Any, name_in
from aiocontainerd.wire import codec

if TYPE_CHECKING:
    import betterproto2

__all__ = [
    "FEATURES_URL", "LINUX_RESOURCES_URL", "PROCESS_URL", "SPEC_URL", "Any", "any_from_wire", "any_to_wire",
    "anys_from_wire", "anys_to_wire", "check_given", "from_wire", "marshal", "message_name", "to_wire", "unmarshal",
    "unmarshal_given", "unmarshal_known",
]  # fmt: skip

_JSON_URLS = frozenset({SPEC_URL, PROCESS_URL, LINUX_RESOURCES_URL, FEATURES_URL})


MAX_GIVEN_BYTES = 64 << 10
"""Longest value of a client that is decoded on the event loop. It takes some 70 ms in the worst case."""


def message_name(message: betterproto2.Message) -> str:
    """Return the full protocol buffer name of a generated message, such as `containerd.events.TaskExit`."""
    return names.class_name(type(message))


def marshal(message: betterproto2.Message) -> Any:
    """Wrap a generated message."""
    return Any(message_name(message), codec.encode(message))


def unmarshal(value: Any) -> betterproto2.Message:
    """Decode a wrapped message. Raises NotFound for a type the API lacks, InvalidArgument for bad bytes."""
    return codec.decode(codec.resolve(name_in(value.type_url)), value.value)


def unmarshal_known(value: Any) -> betterproto2.Message | None:
    """Decode a value as Go's typeurl does; None stands for a type whose values are JSON.

    Raises Unknown in its words: for a type that nobody knows, and for bytes that are no such value.
    """
    if value.type_url in _JSON_URLS:
        wrong = gojson.syntax_error(value.value)
        if wrong:
            raise Unknown(wrong)
        return None
    try:
        return unmarshal(value)
    except NotFound as unknown:
        raise Unknown(f"type with url {value.type_url}: not found") from unknown
    except InvalidArgument as bad:
        no_text = isinstance(bad.__cause__, UnicodeDecodeError)
        reason = "string field contains invalid UTF-8" if no_text else "proto: cannot parse invalid wire-format data"
        raise Unknown(reason) from bad


def check_given(value: Any) -> None:
    """Raise InvalidArgument for a value of a client that would hold up the event loop if it were decoded there."""
    if len(value.value) > MAX_GIVEN_BYTES:
        raise InvalidArgument(f"{name_in(value.type_url)}: {len(value.value)} bytes are more than {MAX_GIVEN_BYTES}")


def unmarshal_given(value: Any) -> betterproto2.Message:
    """Decode what a client wrapped. Raises as `unmarshal` and `check_given`."""
    check_given(value)
    return unmarshal(value)


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
