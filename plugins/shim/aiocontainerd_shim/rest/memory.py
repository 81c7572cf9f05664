"""What a shim remembers while it rests: the records that one worker leaves behind and the next one goes on from.

Descriptors travel beside the records, which name them by their places (`descriptors.py`). No event loop in here.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from aiocontainerd.rpc.ttrpc.server import RestedConnection
from aiocontainerd.sys.cgroup import CgroupPaths
from aiocontainerd_shim.io.stdio import RestedStreams, Stdio
from aiocontainerd_shim.task.reaper import Exit
from aiocontainerd_shim.task.records import RuncOptions
from aiocontainerd_shim.task.states import State

FDS_LIMIT = 250
"""The kernel sends no more than 253 at once."""
RECORD_LIMIT_BYTES = 1 << 16
EXIT = struct.Struct("=iIq")
LINGER_S = 0.3
"""How long nothing must have happened before a worker leaves, at first."""
LONGEST_LINGER_S = 4.0
_MISSED_WITHIN = 3


class RestedProcess(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A process; `spec` is an exec's."""

    exec_id: str = ""
    stdio: Stdio
    spec: bytes = b""
    state: State
    pid: int = 0
    exit_status: int = 0
    exited_at_ns: int | None = None
    exited: bool = False
    streams: RestedStreams | None = None


class RestedOom(msgspec.Struct, frozen=True):
    """A watch for kills: its descriptor, and the kills it has seen in its cgroup and in those above."""

    fd: int
    kills: int
    above: list[int] = []


class RestedContainer(msgspec.Struct, frozen=True, kw_only=True):
    """A container and its processes."""

    id: str
    bundle: str
    binary: str
    root: str
    options: RuncOptions
    init: RestedProcess
    execs: list[RestedProcess]
    cgroup: CgroupPaths | None = None
    oom: RestedOom | None = None


class RestedShim(msgspec.Struct, frozen=True):
    """A whole shim; the connections with their descriptors."""

    containers: list[RestedContainer] = []
    connections: list[tuple[int, RestedConnection]] = []


class HandOver(msgspec.Struct, frozen=True):
    """What a worker leaves: how many exits it has taken, whose exits wake the shim, masks, the packed `RestedShim`."""

    exits_taken: int
    watched: list[int]
    masks: list[int]
    shim: bytes


class Duty(msgspec.Struct, frozen=True):
    """What a worker is given: a rested shim, its descriptors with the listener in front, exits since, a way back, and
    how long to linger."""

    shim_pid: int
    shim: bytes
    fds: Sequence[int]
    exits: Sequence[Exit]
    channel: socket.socket
    linger_s: float = LINGER_S

    def rested(self) -> RestedShim:
        """The shim to go on as; an empty one for the first worker."""
        return _SHIM.decode(self.shim) if self.shim else RestedShim()


_SHIM = msgspec.msgpack.Decoder(RestedShim)
_HAND_OVER = msgspec.msgpack.Decoder(HandOver)


def take_hand_over(channel: socket.socket) -> tuple[bytes, list[int]]:
    """The packet and the descriptors that a worker which has ended left in its channel; no bytes where it left none.

    A worker that ends before it has read every exit makes the kernel report that first, and only once; what the worker
    had sent comes after it.
    """
    with suppress(ConnectionResetError):
        return _receive(channel)
    return _receive(channel)


def _receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    packet, fds, _, _ = socket.recv_fds(channel, RECORD_LIMIT_BYTES, FDS_LIMIT, socket.MSG_CMSG_CLOEXEC)
    return packet, fds


def unpack_hand_over(packet: bytes) -> HandOver:
    """The hand-over of a packet."""
    return _HAND_OVER.decode(packet)


def next_linger_s(linger_s: float, rested_s: float) -> float:
    """How long the next worker lingers: twice as long as the last where that one was missed soon after it had left."""
    missed = rested_s < linger_s * _MISSED_WITHIN
    return min(linger_s * 2, LONGEST_LINGER_S) if missed else LINGER_S


def pack_exit(exited: Exit) -> bytes:
    """An exit as it travels to a worker."""
    return EXIT.pack(exited.pid, exited.status, exited.exited_at_ns)


def unpack_exit(packet: bytes) -> Exit:
    """The exit of a packet."""
    return Exit(*EXIT.unpack(packet))
