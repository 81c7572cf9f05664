"""gRPC messages on an HTTP/2 stream, both sides: length prefix, size limits, status headers."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Protocol
from urllib.parse import quote, unquote

from aiocontainerd import errors

MAX_MESSAGE_BYTES = 16 << 20
"""Largest message either way unless configured otherwise (facts/core 0)."""

CONTENT_TYPE = "application/grpc"
_PREFIX = struct.Struct(">BI")
_UNQUOTED = bytes(set(range(0x20, 0x7F)) - {ord("%")}).decode()
_TIMEOUT_DIGITS = 8
_TIMEOUT_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}

Headers = list[tuple[str, str]]


class ByteStream(Protocol):
    """A source of the bytes of messages."""

    async def recv_data(self, size: int, /) -> bytes:
        """Return exactly `size` bytes; none at the end of the stream.

        Raises AssertionError (as grpclib does) or EOFError if the stream ends in between.
        """


class WireStatus(Exception):
    """A status of gRPC itself, not of a service. It is sent unchanged."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


async def receive(stream: ByteStream, limit_bytes: int, encoding: str = "") -> bytes | None:
    """Return the bytes of the next message, None at the end of the stream.

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
    except (AssertionError, EOFError):
        raise WireStatus(errors.Internal.code, "unexpected EOF") from None


def frame(payload: bytes, limit_bytes: int) -> bytes:
    """Return a message with its prefix. Raises WireStatus over the limit."""
    if len(payload) > limit_bytes:
        raise WireStatus(
            errors.ResourceExhausted.code,
            f"grpc: trying to send message larger than max ({len(payload)} vs. {limit_bytes})",
        )
    return _PREFIX.pack(0, len(payload)) + payload


def status_headers(code: int, message: str) -> Headers:
    """Return the trailers of a status."""
    headers = [("grpc-status", str(code))]
    if message:
        headers.append(("grpc-message", quote(message, safe=_UNQUOTED)))
    return headers


def timeout_s(value: str) -> float:
    """Return the seconds of a `grpc-timeout` header. Raises ValueError."""
    digits, unit = value[:-1], value[-1:]
    if unit not in _TIMEOUT_UNITS_S or not (digits.isascii() and digits.isdigit()) or len(digits) > _TIMEOUT_DIGITS:
        raise ValueError(f"malformed grpc-timeout: {value}")
    return int(digits) * _TIMEOUT_UNITS_S[unit]


def status_of(headers: Iterable[tuple[str, str]]) -> tuple[int, str] | None:
    """Return the status among headers, None if there is none."""
    found = dict(headers)
    status = found.get("grpc-status")
    if status is None or not status.isdigit():
        return None
    return int(status), unquote(found.get("grpc-message", ""), errors="replace")
