"""Encode generated messages to bytes and decode them. Every request and response passes here."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, TypeVar

from aiocontainerd.api import names
from aiocontainerd.errors import InvalidArgument, ResourceExhausted
from aiocontainerd.wire import protobuf

if TYPE_CHECKING:
    import betterproto2

    MessageT = TypeVar("MessageT", bound=betterproto2.Message)


@cache
def resolve(full_name: str) -> type[betterproto2.Message]:
    """Return the generated class of a message by its full name; imports its package once. Raises NotFound."""
    return names.message_class(full_name)


class Encoded:
    """A message in its bytes, for an answer that many clients get: it is encoded once."""

    __slots__ = ("data", "framed")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.framed = b"\0" + len(data).to_bytes(4) + data
        """The same with the prefix of gRPC: not compressed, length."""


def encode(message: betterproto2.Message | Encoded) -> bytes:
    """Return the bytes of a message."""
    if isinstance(message, Encoded):
        return message.data
    return protobuf.serialize(message)


def decode(cls: type[MessageT], data: bytes) -> MessageT:
    """Return the message of `data`.

    Raises InvalidArgument naming the message type for bytes that do not fit, ResourceExhausted for more values in one
    field than we take.
    """
    try:
        message: MessageT = protobuf.parse(cls, data)
    except protobuf.TooManyValues as error:
        raise ResourceExhausted(f"decode {names.class_name(cls)}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"decode {names.class_name(cls)}: {error}") from error
    return message


def work_to_decode(cls: type[betterproto2.Message], data: bytes) -> int:
    """Return the bytes of `data` that cost time to decode: all but those of long strings. Damaged bytes count whole."""
    try:
        return protobuf.work_to_decode(cls, data)
    except ValueError:
        return len(data)


def parts(message: betterproto2.Message | Encoded, limit: int) -> int:
    """Return how many list items and map entries a message has to encode, at most about `limit`."""
    return 0 if isinstance(message, Encoded) else protobuf.parts(message, limit)
