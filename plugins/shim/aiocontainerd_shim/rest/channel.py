"""The channel between the resident and its worker. No event loop in here.

The worker gets a `Duty` by the fork. The resident tells it of exits over a socket, one packet each. Back comes now and
then how many it has taken, so that a resident whose worker is never idle does not keep them for ever. The last packet
back is a `HandOver` with the descriptors; there is none if the worker ends without handing over.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from aiocontainerd_shim.children.reaper import Exit

FDS_LIMIT = 250
"""The kernel sends at most 253 at once."""
PACKET_LIMIT_BYTES = 1 << 16
EXIT = struct.Struct("=iIq")
ACKNOWLEDGED_EVERY = 64
_TAKEN = struct.Struct("=Q")


class Duty(msgspec.Struct, frozen=True):
    """The task of a worker.

    `shim` is a packed `RestedShim`. `fds` are its descriptors, the listener first. `exits` came after the last
    worker. `channel` leads back to the resident.
    """

    shim_pid: int
    shim: bytes
    fds: Sequence[int]
    exits: Sequence[Exit]
    channel: socket.socket
    linger_s: float


class HandOver(msgspec.Struct, frozen=True):
    """The state that a worker leaves: the packed `RestedShim`, and the poll masks of its descriptors.

    `exits_taken` is how many exits the worker was told of. An exit of one of `watched` wakes the shim.
    """

    exits_taken: int
    watched: list[int]
    masks: list[int]
    shim: bytes


_HAND_OVER = msgspec.msgpack.Decoder(HandOver)


def send_hand_over(channel: socket.socket, left: HandOver, fds: Sequence[int]) -> bool:
    """Send a hand-over and its descriptors; return False where it does not fit into one packet."""
    packet = msgspec.msgpack.encode(left)
    if len(packet) > PACKET_LIMIT_BYTES or len(fds) > FDS_LIMIT:
        return False
    channel.setblocking(True)
    socket.send_fds(channel, [packet], fds)
    return True


def take_hand_over(channel: socket.socket) -> tuple[bytes, list[int]]:
    """Return the packet and the descriptors that an ended worker left; no bytes where it left nothing.

    If the worker has not read every exit, the kernel first reports that as a reset connection, once. The packet comes
    after the report.
    """
    with suppress(ConnectionResetError):
        return _receive(channel)
    return _receive(channel)


def _receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    packet, fds, _, _ = socket.recv_fds(channel, PACKET_LIMIT_BYTES, FDS_LIMIT, socket.MSG_CMSG_CLOEXEC)
    return packet, fds


def pack_taken(exits: int) -> bytes:
    """Return the number of exits that a worker has taken as it travels to the resident."""
    return _TAKEN.pack(exits)


def unpack_taken(packet: bytes) -> int | None:
    """Return the number of exits that a packet tells; None for a hand-over, which is always longer."""
    return _TAKEN.unpack(packet)[0] if len(packet) == _TAKEN.size else None


def unpack_hand_over(packet: bytes) -> HandOver:
    """Return the hand-over of a packet."""
    return _HAND_OVER.decode(packet)


def pack_exit(exited: Exit) -> bytes:
    """Return an exit as it travels to a worker."""
    return EXIT.pack(exited.pid, exited.status, exited.exited_at_ns)


def unpack_exit(packet: bytes) -> Exit:
    """Return the exit of a packet."""
    return Exit(*EXIT.unpack(packet))
