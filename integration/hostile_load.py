"""Clients that read nothing, or open thousands of streams: what it costs our daemon, Debian's containerd, and others.

usage: hostile_load.py [--only WORD ...] [--peer]

Each row tells how long another client's `Version` took meanwhile at most, and the resident memory of the daemon
before, meanwhile and afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from aiocontainerd import api
from aiocontainerd.rpc import http2
from aiocontainerd.rpc.grpc_client import GrpcClient
from bench_events import frame
from harness import Debians, Installed, Peer, peer
from hostile import sample

CONTAINERS, LISTS, STREAMS = 2000, 600, 20_000
LOAD_S = 10.0
AFTER_S = 5.0
CONTAINERS_LIST = "/containerd.services.containers.v1.Containers/List"
SUBSCRIBE = "/containerd.services.events.v1.Events/Subscribe"


def headers(path: str, namespace: str) -> bytes:
    return http2.header_block(
        [
            (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"), ("te", "trailers"),
            ("content-type", "application/grpc"), ("containerd-namespace", namespace),
        ]
    )  # fmt: skip


def connected(daemon: Peer) -> socket.socket:
    """Return a connection that has said hello and reads nothing."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(daemon.address))
    sock.sendall(http2.PREFACE + frame(4, 0, 0, struct.pack(">HI", 4, 65535)))
    sock.setblocking(False)
    return sock


def call(sock: socket.socket, block: bytes, count: int) -> None:
    """Make calls as fast as the daemon takes them, for at most the time of a load."""
    data = b"".join(frame(1, 4, 2 * n + 1, block) + frame(0, 1, 2 * n + 1, bytes(5)) for n in range(count))
    rest, until = memoryview(data), time.monotonic() + LOAD_S
    while rest and time.monotonic() < until:
        try:
            rest = rest[sock.send(rest[: 1 << 16]) :]
        except BlockingIOError:
            time.sleep(0.001)


def lists_of_one(daemon: Peer, stack: ExitStack) -> None:
    sock = stack.enter_context(connected(daemon))
    call(sock, headers(CONTAINERS_LIST, daemon.namespace), LISTS)


def lists_of_many(daemon: Peer, stack: ExitStack) -> None:
    for _ in range(LISTS):
        call(stack.enter_context(connected(daemon)), headers(CONTAINERS_LIST, daemon.namespace), 1)


def streams(daemon: Peer, stack: ExitStack) -> None:
    call(stack.enter_context(connected(daemon)), headers(SUBSCRIBE, daemon.namespace), STREAMS)


LOADS: dict[str, Callable[[Peer, ExitStack], None]] = {
    f"{LISTS} unread lists, one connection": lists_of_one,
    f"{LISTS} unread lists, {LISTS} connections": lists_of_many,
    f"{STREAMS} subscribe streams, one connection": streams,
}


async def fill(daemon: Peer) -> None:
    """Create containers with a spec and labels of common size."""
    async with GrpcClient(str(daemon.address)) as client:
        for number in range(CONTAINERS):
            container = api.containers.Container(
                id=f"c{number}",
                labels={f"io.kubernetes.label.{n}": "value" * 4 for n in range(10)},
                runtime=api.containers.ContainerRuntime(name="io.containerd.runc.v2"),
                spec=api.protobuf.Any(type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec", value=b"{}"),
            )
            await client.unary(
                "containerd.services.containers.v1.Containers",
                "Create",
                api.containers.CreateContainerRequest(container=container),
                namespace=daemon.namespace,
            )


def rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


@contextmanager
def sampled(daemon: Peer) -> Iterator[Callable[[], float]]:
    """Sample `Version` in the block; the yielded function ends the sampling and returns the slowest in milliseconds."""
    spawn = multiprocessing.get_context("spawn")
    begin, done = spawn.Event(), spawn.Event()
    results, other = spawn.Pipe(duplex=False)
    process = spawn.Process(target=sample, args=(str(daemon.address), begin, done, other), daemon=True)
    process.start()
    begin.set()
    time.sleep(2)

    def slowest() -> float:
        done.set()
        return float(results.recv()[0]) * 1e3

    try:
        yield slowest
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], help="words of the names of loads")
    parser.add_argument("--peer", action="store_true", help="load Debian's containerd")
    options = parser.parse_args()
    with peer(Debians if options.peer else Installed) as daemon:
        asyncio.run(fill(daemon))
        for name, load in LOADS.items():
            if not options.only or any(word in name for word in options.only):
                report(daemon, name, load)


def report(daemon: Peer, name: str, load: Callable[[Peer, ExitStack], None]) -> None:
    before = rss_mb(daemon.pid)
    with sampled(daemon) as slowest:
        with ExitStack() as stack:
            load(daemon, stack)
            time.sleep(AFTER_S)
            during, took = rss_mb(daemon.pid), slowest()
        time.sleep(AFTER_S)
    after = rss_mb(daemon.pid)
    print(f"{name:<48} {took:>7.0f} ms {before:>7.0f} {during:>7.0f} {after:>7.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
