"""Send big messages of awkward shapes to every method of a daemon; print how long another client's `Version` took.

usage: hostile.py [--mb N] [--only WORD ...] [--shape WORD ...] [--peer]

Each row is one message: the method, the shape, the code of the answer, the time until the answer, and the slowest
`Version` meanwhile. `--peer` asks Debian's containerd instead of our daemon. The clients are processes of their own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import Any

import grpc  # type: ignore[import-untyped]

from aiocontainerd import api
from aiocontainerd.api.services import SERVICES
from aiocontainerd.wire import codec, protobuf
from harness import Debians, Installed, Peer, peer

VERSION = "/containerd.services.version.v1.Version/Version"
ANSWER_S = 300.0
SAMPLE_S = 0.005
UNKNOWN = 111
"""No message of the API has a field of this number."""
DIGEST = "sha256:" + "0" * 64
BASES: dict[str, Any] = {
    "Containers/Create": api.containers.CreateContainerRequest(
        container=api.containers.Container(
            id="a", runtime=api.containers.ContainerRuntime(name="b"), spec=api.protobuf.Any(type_url="c", value=b"d")
        )
    ),
    "Containers/Update": api.containers.UpdateContainerRequest(container=api.containers.Container(id="b")),
    "Images/Create": api.images.CreateImageRequest(
        image=api.images.Image(name="a", target=api.types.Descriptor(digest=DIGEST, media_type="b", size=1))
    ),
    "Images/Update": api.images.UpdateImageRequest(
        image=api.images.Image(name="b", target=api.types.Descriptor(digest=DIGEST, media_type="b", size=1))
    ),
    "Leases/Create": api.leases.CreateRequest(id="a"),
    "Namespaces/Create": api.namespaces.CreateNamespaceRequest(namespace=api.namespaces.Namespace(name="a")),
    "Namespaces/Update": api.namespaces.UpdateNamespaceRequest(namespace=api.namespaces.Namespace(name="a")),
    "Snapshots/Prepare": api.snapshots.PrepareSnapshotRequest(snapshotter="native", key="a"),
    "Snapshots/View": api.snapshots.ViewSnapshotRequest(snapshotter="native", key="b"),
    "Snapshots/Commit": api.snapshots.CommitSnapshotRequest(snapshotter="native", name="c", key="a"),
    "Snapshots/List": api.snapshots.ListSnapshotsRequest(snapshotter="native"),
    "Content/Write": api.content.WriteContentRequest(ref="a"),
}
"""What lets a request pass the first checks."""
NOT_SENT = frozenset({"Subscribe", "Publish", "Forward"})
"""Methods that do not answer by themselves, or whose events nobody is there to take."""


def field(number: int, payload: bytes) -> bytes:
    """Return a length-delimited field."""
    out = bytearray()
    protobuf._put_varint(number << 3 | protobuf.LENGTH, out)
    protobuf._put_bytes(payload, out)
    return bytes(out)


def repeated(piece: bytes, size: int) -> bytes:
    """Return about `size` bytes of one piece again and again."""
    return piece * (size // len(piece))


def entries(number: int, size: int, value: bytes = b"v", most: int = 1 << 30) -> bytes:
    """Return about `size` bytes of map entries with short keys, each another."""
    out, count = bytearray(), 0
    while len(out) < size and count < most:
        out += field(number, field(1, b"%x" % count) + field(2, value))
        count += 1
    return bytes(out)


def shapes(cls: Any, size: int, depth: int = 0) -> Iterator[tuple[str, bytes]]:
    """Return messages of about `size` bytes for a class: unknown fields, and each field of its own filled up."""
    if not depth:
        yield "unknown numbers", repeated(b"\xf8\x06\x01", size)
        yield "unknown strings", repeated(b"\xfa\x06\x00", size)
        yield "unknown groups", repeated(b"\xfb\x06\xfc\x06", size)
    meta = cls._betterproto
    for name, one in meta.meta_by_field_name.items():
        if one.proto_type == "map":
            yield f"{name} many", entries(one.number, size)
            most = protobuf.MAX_VALUES
            yield f"{name} as many as go", entries(one.number, size, field(1, b"v" * (size // most - 16)), most)
            yield f"{name} same", repeated(field(one.number, b""), size)
        elif one.proto_type in ("string", "bytes") and one.repeated:
            yield f"{name} empty", repeated(field(one.number, b""), size)
            yield f"{name} one long", field(one.number, b"a" * size)
        elif one.proto_type in ("string", "bytes"):
            yield f"{name} long", field(one.number, b"a" * size)
        elif one.proto_type == "message":
            if one.repeated:
                yield f"{name} empty", repeated(field(one.number, b""), size)
            if depth < 2:
                for inner, data in shapes(meta.cls_by_field[name], size, depth + 1):
                    yield f"{name}.{inner}", field(one.number, data)
        elif one.repeated:
            yield f"{name} packed", field(one.number, repeated(b"\x01", size))


def base(path: str, number: int) -> bytes:
    """Return the start of a request that passes the first checks; each request makes an object of its own."""
    message = BASES.get(path.rpartition(".")[2])
    data = b"" if message is None else codec.encode(message)
    return data.replace(b"\x01a", b"\x01" + bytes([64 + number % 26])) if "Create" in path else data


def requests(size: int, only: list[str], chosen: list[str]) -> Iterator[tuple[str, str, bytes]]:
    """Yield path, shape and message for every method, as far as asked for."""
    for service, methods in SERVICES.items():
        if not service.startswith("containerd.services."):
            continue
        for method, (request, *_) in methods.items():
            path = f"/{service}/{method}"
            if method in NOT_SENT or (only and not any(word in path for word in only)):
                continue
            for number, (shape, data) in enumerate(shapes(codec.resolve(request), size), 1):
                if not chosen or any(word in shape for word in chosen):
                    yield path, shape, base(path, number) + data


def sample(address: str, begin: Event, done: Event, results: Connection) -> None:
    """Call `Version` again and again. Send the slowest call of each round between `begin` and `done`."""
    with grpc.insecure_channel(f"unix://{address}") as channel:
        call = channel.unary_unary(VERSION)
        call(b"", timeout=ANSWER_S)
        while begin.wait():
            slowest = 0.0
            while not done.is_set():
                began = time.perf_counter()
                call(b"", timeout=ANSWER_S)
                slowest = max(slowest, time.perf_counter() - began)
                time.sleep(SAMPLE_S)
            begin.clear()
            done.clear()
            results.send(slowest)


def main() -> None:
    options = arguments()
    with peer(Debians if options.peer else Installed) as daemon:
        measure(daemon, options)


def measure(daemon: Peer, options: argparse.Namespace) -> None:
    spawn = multiprocessing.get_context("spawn")
    begin, done = spawn.Event(), spawn.Event()
    results, other = spawn.Pipe(duplex=False)
    sampler = spawn.Process(target=sample, args=(str(daemon.address), begin, done, other), daemon=True)
    sampler.start()
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    worst = 0.0
    with grpc.insecure_channel(f"unix://{daemon.address}", options=limits) as channel:
        for path, shape, data in requests(options.mb << 20, options.only, options.shape):
            begin.set()
            time.sleep(0.1)
            code, took = send(channel, path, data, daemon.namespace)
            done.set()
            slowest = results.recv()
            worst = max(worst, slowest)
            print(f"{path[1:].rpartition('.')[2]:<32} {shape:<32} {code:<20} {took:>7.2f} s {slowest * 1e3:>7.0f} ms")
            sys.stdout.flush()
    sampler.kill()
    sampler.join()
    print(f"slowest Version: {worst * 1e3:.0f} ms")


def send(channel: grpc.Channel, path: str, data: bytes, namespace: str) -> tuple[str, float]:
    """Return the code of the answer and the seconds until it."""
    began = time.perf_counter()
    try:
        answers = channel.stream_stream(path)(
            iter([data]), timeout=ANSWER_S, metadata=[("containerd-namespace", namespace)]
        )
        for _ in answers:
            pass
        code = "OK"
    except grpc.RpcError as error:
        code = error.code().name
    return code, time.perf_counter() - began


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mb", type=int, default=15, help="size of each message in MiB")
    parser.add_argument("--only", nargs="*", default=[], help="words of the paths of methods")
    parser.add_argument("--shape", nargs="*", default=[], help="words of the names of shapes")
    parser.add_argument("--peer", action="store_true", help="ask Debian's containerd")
    return parser.parse_args()


if __name__ == "__main__":
    main()
