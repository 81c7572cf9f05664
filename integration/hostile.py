"""Send big messages of awkward shapes to every method of a daemon; print how long another client's `Version` took.

usage: hostile.py [--mb N] [--only WORD ...] [--shape WORD ...] [--at-once N] [--peer]

Each row is one message: the method, the shape, the code of the answer, the time until the answer, the median and the
slowest `Version` meanwhile. A row above the limit is measured again, with the idle daemon before it, and counts as bad
if it is above the limit each time. `--at-once` sends the message on so many connections at once. `--peer` asks Debian's
containerd instead of our daemon. The clients are processes of their own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import Any

import grpc  # type: ignore[import-untyped]

from aiocontainerd import api
from aiocontainerd.api.services import SERVICES
from aiocontainerd.typeurl import SPEC_URL
from aiocontainerd.wire import codec, limits, protobuf
from harness import Debians, Installed, Peer, peer

VERSION = "/containerd.services.version.v1.Version/Version"
ANSWER_S = 300.0
STREAM_S = 5.0
"""A stream that does not end by itself is left after so long."""
SAMPLE_S = 0.005
LIMIT_MS = 100.0
TRIES = 3
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
    "Events/Publish": api.events.PublishRequest(topic="/a"),
    "Events/Forward": api.events.ForwardRequest(
        envelope=api.types.Envelope(topic="/a", namespace="a", timestamp=api.protobuf.Timestamp(seconds=1))
    ),
}
"""What lets a request pass the first checks."""
ENDLESS = frozenset({"Subscribe", "Watch"})
"""Methods that do not answer by themselves."""
TYPES = ("containerd.runc.v1.Options", "containerd.events.TaskCreate", "containerd.types.RuntimeRequest")
"""Some types of values that a daemon may decode."""


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
    if cls is api.protobuf.Any:
        yield from typed_values(size)
    for name, one in meta.meta_by_field_name.items():
        if one.proto_type == "map":
            most = limits.MAX_VALUES
            yield f"{name} many", entries(one.number, size)
            yield f"{name} as many as go", entries(one.number, size, b"v" * 100, most)
            yield f"{name} same", repeated(field(one.number, b""), size)
        elif one.proto_type in ("string", "bytes") and one.repeated:
            yield f"{name} empty", repeated(field(one.number, b""), size)
            yield f"{name} as many as go", field(one.number, b"") * limits.MAX_VALUES
            yield f"{name} one long", field(one.number, b"a" * size)
            yield f"{name} some long", field(one.number, b"a" * limits.MAX_STRING_CHARACTERS) * (size >> 20)
        elif one.proto_type in ("string", "bytes"):
            yield f"{name} long", field(one.number, b"a" * size)
            yield f"{name} as long as goes", field(one.number, b"a" * limits.MAX_STRING_CHARACTERS)
        elif one.proto_type == "message":
            if one.repeated:
                yield f"{name} empty", repeated(field(one.number, b""), size)
                yield f"{name} as many as go", field(one.number, b"") * limits.MAX_VALUES
            if depth < 2:
                for inner, data in shapes(meta.cls_by_field[name], size, depth + 1):
                    yield f"{name}.{inner}", field(one.number, data)
        elif one.repeated:
            yield f"{name} packed", field(one.number, repeated(b"\x01", size))


def typed_values(size: int) -> Iterator[tuple[str, bytes]]:
    """Return values for an `Any` that whoever decodes them has much to do with."""
    for name in TYPES:
        yield (
            f"{name.rpartition('.')[2]} of tiny fields",
            field(1, name.encode()) + field(2, repeated(b"\x78\x01", size)),
        )
    deep = b'{"linux":{"gidMappings":[' + repeated(b"{},", size) + b"{}]}}"
    yield "Spec", field(1, SPEC_URL.encode()) + field(2, deep)


def base(path: str, number: int) -> bytes:
    """Return the start of a request that passes the first checks; each request makes an object of its own."""
    message = BASES.get(path.rpartition(".")[2])
    data = b"" if message is None else codec.encode(message)
    return data.replace(b"\x01a", b"\x01" + bytes([64 + number % 26])) if "Create" in path else data


def requests(size: int, only: list[str], chosen: list[str]) -> Iterator[tuple[str, str, bytes]]:
    """Yield path, shape and message for every method, as far as asked for."""
    for service, methods in SERVICES.items():
        for method, (request, *_) in methods.items():
            path = f"/{service}/{method}"
            if only and not any(word in path for word in only):
                continue
            for number, (shape, data) in enumerate(shapes(codec.resolve(request), size), 1):
                if not chosen or any(word in shape for word in chosen):
                    yield path, shape, base(path, number) + data


def sample(address: str, begin: Event, done: Event, results: Connection) -> None:
    """Call `Version` again and again. Send the slowest call and the median between `begin` and `done`, in seconds."""
    with grpc.insecure_channel(f"unix://{address}") as channel:
        call = channel.unary_unary(VERSION)
        call(b"", timeout=ANSWER_S)
        while begin.wait():
            took: list[float] = []
            while not took or not done.is_set():
                began = time.perf_counter()
                call(b"", timeout=ANSWER_S)
                took.append(time.perf_counter() - began)
                time.sleep(SAMPLE_S)
            begin.clear()
            done.clear()
            results.send((max(took), statistics.median(took)))


class Hostile:
    """Clients of one daemon that send big messages, and one that calls `Version` meanwhile."""

    def __init__(self, daemon: Peer, at_once: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._begin, self._done = spawn.Event(), spawn.Event()
        self._results, other = spawn.Pipe(duplex=False)
        arguments = (str(daemon.address), self._begin, self._done, other)
        self._sampler = spawn.Process(target=sample, args=arguments, daemon=True)
        self._sampler.start()
        self._namespace = daemon.namespace
        sizes = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        own = [*sizes, ("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.insecure_channel(f"unix://{daemon.address}", options=own) for _ in range(at_once)]
        self._threads = ThreadPoolExecutor(at_once)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        self._threads.shutdown()
        self._sampler.kill()
        self._sampler.join()

    def idle(self) -> tuple[float, float]:
        """Return the slowest `Version` and the median of a second beside nothing, in milliseconds."""
        self._begin.set()
        time.sleep(1)
        return self._sampled()

    def send(self, path: str, data: bytes) -> tuple[str, float, float, float]:
        """Send a message on each connection. Return code, seconds, and the slowest `Version` and the median."""
        self._begin.set()
        time.sleep(0.1)
        began = time.perf_counter()
        codes = list(self._threads.map(lambda channel: send(channel, path, data, self._namespace), self._channels))
        took = time.perf_counter() - began
        return codes[0], took, *self._sampled()

    def _sampled(self) -> tuple[float, float]:
        self._done.set()
        slowest, median = self._results.recv()
        return slowest * 1e3, median * 1e3


def main() -> None:
    options = arguments()
    with peer(Debians if options.peer else Installed) as daemon:
        hostile = Hostile(daemon, options.at_once)
        try:
            measure(hostile, options)
        finally:
            hostile.close()


def measure(hostile: Hostile, options: argparse.Namespace) -> None:
    unserved: set[str] = set()
    pairs, bad, slowest_of_all = 0, 0, 0.0
    for path, shape, data in requests(options.mb << 20, options.only, options.shape):
        service = path.rpartition("/")[0]
        if service in unserved:
            continue
        for number in range(TRIES):
            idle = hostile.idle()[0] if number else 0.0
            code, took, slowest, median = hostile.send(path, data)
            if code == "UNSERVED":
                unserved.add(service)
                break
            name = path[1:].rpartition(".")[2]
            row = f"{name:<28} {shape:<40} {code:<20} {took:>7.2f} s {median:>6.1f} {slowest:>7.0f} ms"
            print(row + (f" (idle {idle:.0f} ms)" if number else ""), flush=True)
            if slowest <= LIMIT_MS:
                break
        else:
            bad += 1
            print(f"bad: {name} {shape}", flush=True)
        pairs += service not in unserved
        slowest_of_all = max(slowest_of_all, slowest)
    print(
        f"{pairs} pairs, slowest Version {slowest_of_all:.0f} ms, {bad} above {LIMIT_MS:.0f} ms each of {TRIES} times"
    )


def send(channel: grpc.Channel, path: str, data: bytes, namespace: str) -> str:
    """Return the code of the answer, `UNSERVED` for a service that the daemon lacks."""
    timeout_s = STREAM_S if path.rpartition("/")[2] in ENDLESS else ANSWER_S
    try:
        answers = channel.stream_stream(path)(
            iter([data]), timeout=timeout_s, metadata=[("containerd-namespace", namespace)]
        )
        for _ in answers:
            pass
    except grpc.RpcError as error:
        return "UNSERVED" if "unknown service" in (error.details() or "") else str(error.code().name)
    return "OK"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mb", type=int, default=15, help="size of each message in MiB")
    parser.add_argument("--only", nargs="*", default=[], help="words of the paths of methods")
    parser.add_argument("--shape", nargs="*", default=[], help="words of the names of shapes")
    parser.add_argument("--at-once", type=int, default=1, help="connections that send the message at once")
    parser.add_argument("--peer", action="store_true", help="ask Debian's containerd")
    return parser.parse_args()


if __name__ == "__main__":
    main()
