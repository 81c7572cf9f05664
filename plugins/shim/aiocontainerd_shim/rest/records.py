"""The memory of a shim while it rests: records that one worker leaves and the next one goes on from.

Descriptors travel beside the records. A record names a descriptor by its place in the list (`descriptors.py`).
"""

from __future__ import annotations

import msgspec

from aiocontainerd.rpc.ttrpc.server import RestedConnection
from aiocontainerd.sys.cgroup import CgroupPaths
from aiocontainerd_shim.cgroups.oom import OomPosition
from aiocontainerd_shim.io.stdio import Stdio
from aiocontainerd_shim.task.records import RuncOptions
from aiocontainerd_shim.task.states import State


class RestedStreams(msgspec.Struct, frozen=True):
    """Places of the descriptors held for a process.

    They are stdin, outputs with their paths, the logger's with its pid, the two ends of a relay.
    """

    stdin: int = -1
    outputs: list[tuple[str, int]] = []
    logger: tuple[int, int] | None = None
    relay: tuple[int, int] | None = None
    relayed: str = ""


class RestedProcess(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A process. Only an exec has a `spec`."""

    exec_id: str = ""
    stdio: Stdio
    spec: bytes = b""
    state: State
    pid: int = 0
    exit_status: int = 0
    exited_at_ns: int | None = None
    exited: bool = False
    streams: RestedStreams | None = None


class RestedContainer(msgspec.Struct, frozen=True, kw_only=True):
    """A container and its processes. The `fd` of `oom` is a place."""

    id: str
    bundle: str
    binary: str
    root: str
    options: RuncOptions
    init: RestedProcess
    execs: list[RestedProcess]
    cgroup: CgroupPaths | None = None
    oom: OomPosition | None = None


class RestedShim(msgspec.Struct, frozen=True):
    """A whole shim: its containers, and its connections with the places of their descriptors."""

    containers: list[RestedContainer] = []
    connections: list[tuple[int, RestedConnection]] = []


_SHIM = msgspec.msgpack.Decoder(RestedShim)


def pack_shim(shim: RestedShim) -> bytes:
    """Return a shim as bytes."""
    return msgspec.msgpack.encode(shim)


def unpack_shim(packed: bytes) -> RestedShim:
    """Return the shim of these bytes; without any, a shim that has done nothing yet."""
    return _SHIM.decode(packed) if packed else RestedShim()
