"""What the daemon and the fork server say to each other: one request and one reply per connection.

A frame is a four byte big-endian length and that many bytes of MessagePack. No event loop in here.
"""

from __future__ import annotations

import struct
from enum import StrEnum

import msgspec

from aiocontainerd.errors import InvalidArgument, from_status, to_status
from aiocontainerd.interfaces.shim import ShimCommand

HEADER = struct.Struct(">I")
LIMIT_BYTES = 16 << 20


class Verb(StrEnum):
    """What is asked for. `hello` gives the server's fingerprint, `retire` ends it once its shims have ended."""

    START = "start"
    DELETE = "delete"
    HELLO = "hello"
    RETIRE = "retire"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `command` comes with start and delete; its `env` is the shim's whole environment."""

    verb: Verb
    namespace: str = ""
    id: str = ""
    bundle: str = ""
    grpc_address: str = ""
    ttrpc_address: str = ""
    debug: bool = False
    stdin: bytes = b""
    env: dict[str, str] = {}


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The result, or the code and text of an error."""

    result: bytes = b""
    code: int = 0
    error: str = ""

    def unwrap(self) -> bytes:
        """The result. Raises the error."""
        if self.code:
            raise from_status(self.code, self.error)
        return self.result


def request_of(verb: Verb, command: ShimCommand, environ: dict[str, str]) -> Request:
    """The request that carries out `command` as the binary would, started by a process with `environ`."""
    own = {
        "TTRPC_ADDRESS": command.ttrpc_address,
        "GRPC_ADDRESS": command.grpc_address,
        "NAMESPACE": command.namespace,
    }
    return Request(
        verb=verb,
        namespace=command.namespace,
        id=command.id,
        bundle=str(command.bundle),
        grpc_address=command.grpc_address,
        ttrpc_address=command.ttrpc_address,
        debug=command.debug,
        stdin=command.stdin,
        env={**environ, **own, **command.env},
    )


def failed(error: Exception) -> Reply:
    """The reply that carries an error."""
    code, text = to_status(error)
    return Reply(code=code, error=text)


def frame(message: Request | Reply) -> bytes:
    """A message as it travels."""
    body = msgspec.msgpack.encode(message)
    return HEADER.pack(len(body)) + body


def body_length(header: bytes) -> int:
    """The length a header announces. Raises InvalidArgument for one that is too large."""
    (length,) = HEADER.unpack(header)
    if length > LIMIT_BYTES:
        raise InvalidArgument(f"frame of {length} bytes, at most {LIMIT_BYTES} are read")
    return int(length)


def parse_request(body: bytes) -> Request:
    """Raises InvalidArgument for what is no request."""
    try:
        return msgspec.msgpack.decode(body, type=Request)
    except msgspec.MsgspecError as bad:
        raise InvalidArgument(f"fork server request: {bad}") from bad


def parse_reply(body: bytes) -> Reply:
    """Raises InvalidArgument for what is no reply."""
    try:
        return msgspec.msgpack.decode(body, type=Reply)
    except msgspec.MsgspecError as bad:
        raise InvalidArgument(f"fork server reply: {bad}") from bad
