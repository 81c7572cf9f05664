"""The words of a start: what a shim reads from stdin, and what it answers (facts/runtime 3.2). Pure functions."""

from __future__ import annotations

import msgspec

from aiocontainerd import __version__, api
from aiocontainerd.errors import ContainerdError, InvalidArgument, Unimplemented
from aiocontainerd.typeurl import Any
from aiocontainerd.wire import codec
from aiocontainerd.wire.anys import any_to_wire

TTRPC = "ttrpc"
PROTOCOLS = (TTRPC, "grpc")
NEWEST_VERSION = 3
_JSON_MINIMUM = 2


class Endpoint(msgspec.Struct, frozen=True):
    """Where a shim listens and what it speaks there: task API version, address, `ttrpc` or `grpc`.

    Its JSON form is the bundle's `bootstrap.json`.
    """

    version: int
    address: str
    protocol: str = TTRPC


class _Json(msgspec.Struct):
    version: int
    address: str
    protocol: str = TTRPC


def parameters(
    *,
    instance_id: str,
    namespace: str,
    grpc_address: str,
    ttrpc_address: str,
    binary: str,
    debug: bool = False,
    options: Any | None = None,
    socket_dir: str = "",
) -> bytes:
    """Return the BootstrapParams message for the stdin of `start`. `options` are the runtime's own."""
    boot = api.bootstrap
    extensions = [] if options is None else [boot.Extension(value=any_to_wire(options))]
    message = boot.BootstrapParams(
        instance_id=instance_id,
        namespace=namespace,
        log_level=boot.LogLevel.DEBUG if debug else boot.LogLevel.INFO,
        containerd_version=__version__,
        containerd_ttrpc_address=ttrpc_address,
        containerd_grpc_address=grpc_address,
        containerd_binary=binary,
        extensions=extensions,
        socket_dir=socket_dir or None,
    )
    return codec.encode(message)


def options_of(params: bytes) -> bytes:
    """Return the runtime options within BootstrapParams as older shims want them on stdin: an Any, or nothing."""
    message = codec.decode(api.bootstrap.BootstrapParams, params)
    values = [codec.encode(extension.value) for extension in message.extensions if extension.value is not None]
    return values[0] if values else b""


def parse(data: bytes) -> Endpoint:
    """Return the endpoint that `start` printed or `bootstrap.json` holds.

    The bytes are a BootstrapResult, JSON, or only an address (version 2). Raises InvalidArgument for anything else,
    Unimplemented for a version newer than 3.
    """
    found = _from_message(data) or _from_json(data) or _from_text(data)
    if found.version > NEWEST_VERSION:
        raise Unimplemented(f"unsupported shim version ({found.version})")
    return found


def from_api_address(address: str, version: int) -> Endpoint:
    """Return the endpoint of a sandbox from `<protocol>+<address>`; a bare address means ttrpc."""
    protocol, plus, rest = address.partition("+")
    return Endpoint(version, rest, protocol) if plus else Endpoint(version, address)


def to_json(endpoint: Endpoint) -> bytes:
    """Return the content of `bootstrap.json`."""
    return msgspec.json.encode(endpoint)


def _from_message(data: bytes) -> Endpoint | None:
    try:
        message = codec.decode(api.bootstrap.BootstrapResult, data)
    except ContainerdError:
        return None
    if not (message.version > 0 and message.address and message.protocol):
        return None
    return Endpoint(message.version, message.address, message.protocol)


def _from_json(data: bytes) -> Endpoint | None:
    try:
        found = msgspec.json.decode(data, type=_Json)
    except msgspec.MsgspecError:
        return None
    if found.version < _JSON_MINIMUM:
        return None
    return Endpoint(found.version, found.address, found.protocol or TTRPC)


def _from_text(data: bytes) -> Endpoint:
    try:
        address = data.decode().strip()
    except UnicodeDecodeError:
        address = ""
    if not address or any(character.isspace() for character in address) or not address.isprintable():
        raise InvalidArgument(f"what the shim printed is no address: {data[:200]!r}")
    return Endpoint(_JSON_MINIMUM, address)
