"""Time `ctr run -d` with and without event subscribers, for our daemon and for Debian's containerd, in turns.

usage: bench_events.py [--subscribers N] [--starts N] [--rounds N]

The subscribers are connections of one process of their own, which reads what comes and counts its bytes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import selectors
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from aiocontainerd.rpc import http2
from aiocontainerd.testing.images import BuiltImage, busybox_layer, write_archive
from harness import Debians, Installed, Peer, peer

SUBSCRIBE = http2.header_block(
    [
        (":method", "POST"), (":scheme", "http"), (":path", "/containerd.services.events.v1.Events/Subscribe"),
        (":authority", "localhost"), ("content-type", "application/grpc"), ("te", "trailers"),
    ]
)  # fmt: skip
LARGEST = (1 << 31) - 1


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def subscriber(address: str) -> socket.socket:
    """Return a connection that takes every event and never needs to open a window again."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(address)
    sock.sendall(
        http2.PREFACE
        + frame(4, 0, 0, struct.pack(">HI", 4, LARGEST))
        + frame(8, 0, 0, struct.pack(">I", LARGEST - 65535))
        + frame(1, 4, 1, SUBSCRIBE)
        + frame(0, 1, 1, bytes(5))
    )
    return sock


def subscribe(address: str, count: int, control: Connection) -> None:
    """Hold subscribers until told to end; then send how many bytes they took."""
    chosen = selectors.DefaultSelector()
    chosen.register(control, selectors.EVENT_READ)
    for _ in range(count):
        chosen.register(subscriber(address), selectors.EVENT_READ)
    control.send(count)
    taken = 0
    while True:
        for key, _ in chosen.select():
            if key.fileobj is control:
                control.send(taken)
                return
            assert isinstance(key.fileobj, socket.socket)
            data = key.fileobj.recv(1 << 16)
            assert data, "the daemon closed a connection"
            taken += len(data)


@contextmanager
def subscribed(daemon: Peer, count: int) -> Iterator[None]:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=subscribe, args=(str(daemon.address), count, there))
    process.start()
    here.recv()
    try:
        yield
    finally:
        here.send(None)
        print(f"  {count} subscribers took {here.recv()} bytes", file=sys.stderr)
        process.join()


def starts(daemon: Peer, image: str, count: int, prefix: str) -> float:
    """Return the seconds of `count` starts, one after another. The containers are removed again afterwards."""
    names = [f"{prefix}-{number}" for number in range(count)]
    began = time.perf_counter()
    for name in names:
        daemon.ctr("run", "-d", image, name, "sleep", "1000")
    took = time.perf_counter() - began
    for name in names:
        daemon.ctr("tasks", "rm", "-f", name)
    daemon.ctr("containers", "rm", *names)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--subscribers", type=int, default=200)
    parser.add_argument("--starts", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with ExitStack() as stack:
        archive = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "image.tar"
        write_archive(archive, "docker.io/bench/busybox:1", [BuiltImage(layers=[busybox_layer()])])
        daemons = [stack.enter_context(peer(kind)) for kind in (Installed, Debians)]
        for daemon in daemons:
            daemon.ctr("images", "import", str(archive))
            starts(daemon, "docker.io/bench/busybox:1", 2, "warm")
        report(daemons, options)


def report(daemons: list[Peer], options: argparse.Namespace) -> None:
    taken: dict[tuple[str, int], list[float]] = {}
    for number in range(options.rounds):
        for daemon in daemons:
            for count in (0, options.subscribers):
                with subscribed(daemon, count):
                    took = starts(daemon, "docker.io/bench/busybox:1", options.starts, f"r{number}-{count}")
                taken.setdefault((type(daemon).__name__, count), []).append(took)
    for daemon in daemons:
        name = type(daemon).__name__
        without, with_them = (statistics.median(taken[name, count]) for count in (0, options.subscribers))
        print(f"{name:<12} {without:>7.2f} s alone {with_them:>7.2f} s with them, ratio {with_them / without:.2f}")


if __name__ == "__main__":
    main()
