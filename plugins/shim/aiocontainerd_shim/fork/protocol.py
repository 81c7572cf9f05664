"""The protocol between the daemon and the fork server: one request and one reply per connection.

A frame is a four byte big-endian length and as many bytes of MessagePack. The listening socket of a new shim comes with
the length, by SCM_RIGHTS. The daemon works out everything it can before it asks: each shim pays with pages of its own
for what the server and the shim execute. No event loop in here.
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
    """The verbs of a request, besides `start` and `delete` of a shim.

    `hello` is answered with the server's fingerprint, `findings` with what it found out about the OCI runtimes.
    `retire` ends the server once its shims have ended. `attend` keeps the connection: while there is one, a daemon
    lives and needs the server.
    """

    START = "start"
    DELETE = "delete"
    HELLO = "hello"
    FINDINGS = "findings"
    RETIRE = "retire"
    ATTEND = "attend"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `env` is the packed environment that a shim gives to the OCI runtime."""

    verb: Verb
    namespace: str = ""
    id: str = ""
    bundle: str = ""
    grpc_address: str = ""
    ttrpc_address: str = ""
    debug: bool = False
    shim_cgroup: str = ""
    oom_score_adj: int | None = None
    env: bytes = b""
    core_scheduling: bool = False


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a request, or the code and text of an error."""

    result: bytes = b""
    code: int = 0
    error: str = ""

    def unwrap(self) -> bytes:
        """Return the result. Raises the error."""
        if self.code:
            raise from_status(self.code, self.error)
        return self.result


_REQUEST = msgspec.msgpack.Decoder(Request)
_ENV = msgspec.msgpack.Decoder(dict[str, str])


def request_of(
    verb: Verb, command: ShimCommand, env: dict[str, str], *, shim_cgroup: str = "", oom_score_adj: int | None = None
) -> Request:
    """Return the request that carries out `command`."""
    return Request(
        verb=verb,
        namespace=command.namespace,
        id=command.id,
        bundle=str(command.bundle),
        grpc_address=command.grpc_address,
        ttrpc_address=command.ttrpc_address,
        debug=command.debug,
        shim_cgroup=shim_cgroup,
        oom_score_adj=oom_score_adj,
        env=msgspec.msgpack.encode(env),
        core_scheduling=bool(env.get("SCHED_CORE")),
    )


def unpack_env(packed: bytes) -> dict[str, str]:
    """Return the environment of a request."""
    return _ENV.decode(packed) if packed else {}


def failed(error: Exception) -> Reply:
    """Return the reply that carries an error."""
    code, text = to_status(error)
    return Reply(code=code, error=text)


def frame(message: Request | Reply) -> bytes:
    """Return a message as it travels."""
    header, body = split_frame(message)
    return header + body


def split_frame(message: Request | Reply) -> tuple[bytes, bytes]:
    """Return the length and the bytes of a frame."""
    body = msgspec.msgpack.encode(message)
    return HEADER.pack(len(body)), body


def body_length(header: bytes) -> int:
    """Return the length that a header announces. Raises InvalidArgument if it is too large."""
    (length,) = HEADER.unpack(header)
    if length > LIMIT_BYTES:
        raise InvalidArgument(f"frame of {length} bytes, at most {LIMIT_BYTES} are read")
    return int(length)


def parse_request(body: bytes) -> Request:
    """Return the request of a body. Raises InvalidArgument for any other bytes."""
    try:
        return _REQUEST.decode(body)
    except msgspec.MsgspecError as bad:
        raise InvalidArgument(f"fork server request: {bad}") from bad


def parse_reply(body: bytes) -> Reply:
    """Return the reply of a body. Raises InvalidArgument for any other bytes."""
    try:
        return msgspec.msgpack.decode(body, type=Reply)
    except msgspec.MsgspecError as bad:
        raise InvalidArgument(f"fork server reply: {bad}") from bad
