"""gRPC messages on an HTTP/2 stream of grpclib, both sides: length prefix, size limits, status headers."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING

from grpclib.metadata import decode_grpc_message, encode_grpc_message

from aiocontainerd import errors

if TYPE_CHECKING:
    from grpclib.protocol import Stream

MAX_MESSAGE_BYTES = 16 << 20
"""Largest message either way unless configured otherwise (facts/core 0)."""

CONTENT_TYPE = "application/grpc"
_PREFIX = struct.Struct(">BI")

Headers = list[tuple[str, str]]


class WireStatus(Exception):
    """A status that travels exactly as it stands: what gRPC itself says, not a service."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


async def receive(stream: Stream, limit_bytes: int, encoding: str = "") -> bytes | None:
    """The next message's bytes, None at the end of the stream.

    Raises WireStatus for a message over the limit, before any of it is held, for a compressed one, and for a stream
    that ends inside a message.
    """
    try:
        prefix = await stream.recv_data(_PREFIX.size)
        if not prefix:
            return None
        compressed, length = _PREFIX.unpack(prefix)
        if compressed:
            raise WireStatus(
                errors.Unimplemented.code, f'grpc: Decompressor is not installed for grpc-encoding "{encoding}"'
            )
        if length > limit_bytes:
            raise WireStatus(
                errors.ResourceExhausted.code, f"grpc: received message larger than max ({length} vs. {limit_bytes})"
            )
        return await stream.recv_data(length)
    except AssertionError:
        raise WireStatus(errors.Internal.code, "unexpected EOF") from None


def frame(payload: bytes, limit_bytes: int) -> bytes:
    """A message with its prefix. Raises WireStatus over the limit."""
    if len(payload) > limit_bytes:
        raise WireStatus(
            errors.ResourceExhausted.code,
            f"grpc: trying to send message larger than max ({len(payload)} vs. {limit_bytes})",
        )
    return _PREFIX.pack(0, len(payload)) + payload


def status_headers(code: int, message: str) -> Headers:
    """The trailers of a status."""
    headers = [("grpc-status", str(code))]
    if message:
        headers.append(("grpc-message", encode_grpc_message(message)))
    return headers


def status_of(headers: Iterable[tuple[str, str]]) -> tuple[int, str] | None:
    """The status among headers, None where there is none."""
    found = dict(headers)
    status = found.get("grpc-status")
    if status is None or not status.isdigit():
        return None
    return int(status), decode_grpc_message(found.get("grpc-message", ""))
