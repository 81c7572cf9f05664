"""Our daemon and Debian's containerd side by side: same client, same image, alternating; medians and ratios.

usage: bench.py [--rounds N] [--image-mb N] [--files N] [--only NAME ...]

Every figure is taken from outside: wall time of whole `ctr` calls, proportional set size from /proc/PID/smaps_rollup.
Absolute times say little on a busy machine; the ratios are taken from runs that alternate.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import msgspec

from aiocontainerd import api
from aiocontainerd.rpc.grpc_client import GrpcClient
from aiocontainerd.testing.images import BuiltImage, BuiltLayer, busybox_layer, entry, tar_of, write_archive
from bench_dispatch import overhead_us
from harness import Debians, Installed, Peer, docker_registry, peer, processes_of, push

CONTAINERS = 20
CREATES = 400
SETTLE_S = 0.4
CHURN_S, CHURN_RATE = 20.0, 70
"""How long snapshots are prepared and removed, and how many a second."""
OVERLAYS = "io.containerd.snapshotter.v1.overlayfs/snapshots"
NAMES = ("ready", "idle", "run", "exec", "many", "pull", "remove", "churn", "create1", "create8", "dispatch")


class Figure(msgspec.Struct, frozen=True):
    """One measured quantity of both daemons, or of ours alone against its budget."""

    name: str
    unit: str
    ours: float
    theirs: float
    budget: bool = False
    """`theirs` is what ours may be at most."""

    def row(self) -> str:
        if self.budget:
            return f"{self.name:<42} {self.ours:>10.1f} {'<= ' + format(self.theirs, 'g'):>10} {self.unit:<6}"
        ratio = self.ours / self.theirs if self.theirs else float("nan")
        return f"{self.name:<42} {self.ours:>10.1f} {self.theirs:>10.1f} {self.unit:<6} {ratio:>6.2f}"


class Pair:
    """Both daemons, the image both have, and the registry."""

    def __init__(self, ours: Peer, theirs: Peer, registry: str, rounds: int) -> None:
        self.ours, self.theirs, self.registry, self.rounds = ours, theirs, registry, rounds
        self.image = f"{registry}/busybox:1"

    def alternate(self, measure: Callable[[Peer, int], float]) -> tuple[float, float]:
        """Medians of `measure(peer, round)` over alternating rounds, after one round that is not counted."""
        ours, theirs = [], []
        for number in range(self.rounds + 1):
            values = (self._settled(measure, self.ours, number), self._settled(measure, self.theirs, number))
            if number:
                ours.append(values[0])
                theirs.append(values[1])
        return statistics.median(ours), statistics.median(theirs)

    @staticmethod
    def _settled(measure: Callable[[Peer, int], float], daemon: Peer, number: int) -> float:
        """Measure once after a pause, so that no daemon's clean-up is timed as part of the other's work."""
        time.sleep(SETTLE_S)
        return measure(daemon, number)


def pss_mb(pids: list[int]) -> float:
    """Proportional set size of processes, in MiB."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1])
    return total / 1024


def daemon_pids(daemon: Peer) -> list[int]:
    """Return the daemon and whatever it keeps running while it has no container."""
    own = [pid for pid, _ in processes_of(daemon.directory, daemon.namespace)]
    return sorted({daemon.pid, *own})


def timed(action: Callable[[], object]) -> float:
    """Milliseconds of a call."""
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


def bench_ready(pair: Pair) -> list[Figure]:
    def restart(daemon: Peer, _number: int) -> float:
        daemon.stop()
        return daemon.start() * 1000

    ours, theirs = pair.alternate(restart)
    return [Figure("ready after start", "ms", ours, theirs)]


def bench_idle(pair: Pair) -> list[Figure]:
    time.sleep(2)
    return [
        Figure("idle daemon and helpers, PSS", "MiB", pss_mb(daemon_pids(pair.ours)), pss_mb(daemon_pids(pair.theirs)))
    ]


def bench_run(pair: Pair) -> list[Figure]:
    def run(daemon: Peer, number: int) -> float:
        return timed(lambda: daemon.ctr("run", "--rm", pair.image, f"r{number}", "true"))

    ours, theirs = pair.alternate(run)
    return [Figure("ctr run --rm IMAGE true", "ms", ours, theirs)]


def bench_exec(pair: Pair) -> list[Figure]:
    with sleeping(pair, 1):

        def execute(daemon: Peer, number: int) -> float:
            return timed(lambda: daemon.ctr("tasks", "exec", "--exec-id", f"e{number}", "s0", "true"))

        ours, theirs = pair.alternate(execute)
    return [Figure("ctr tasks exec true", "ms", ours, theirs)]


def bench_many(pair: Pair) -> list[Figure]:
    figures: dict[str, tuple[float, float]] = {}
    for daemon, key in ((pair.ours, "ours"), (pair.theirs, "theirs")):
        idle = pss_mb([pid for pid in daemon_pids(daemon) if pid != daemon.pid])
        took = timed(lambda daemon=daemon: start_sleeping(daemon, pair.image, CONTAINERS))  # type: ignore[misc]
        time.sleep(1)
        runtime = [pid for pid, line in processes_of(daemon.directory, daemon.namespace) if pid != daemon.pid]
        shims = [pid for pid in runtime if "sleep" not in Path(f"/proc/{pid}/cmdline").read_text()]
        figures[key] = (took, (pss_mb(shims) - idle) / CONTAINERS)
        figures[f"{key} total"] = (0, pss_mb(shims) / CONTAINERS)
        end_sleeping(daemon, CONTAINERS)
    return [
        Figure(f"{CONTAINERS} x ctr run -d at once", "ms", figures["ours"][0], figures["theirs"][0]),
        Figure("runtime processes per container, PSS", "MiB", figures["ours"][1], figures["theirs"][1]),
        Figure("  the same with the idle helper counted", "MiB", figures["ours total"][1], figures["theirs total"][1]),
    ]


@contextmanager
def sleeping(pair: Pair, count: int) -> Iterator[None]:
    """`count` sleeping containers `s0`… on each daemon."""
    for daemon in (pair.ours, pair.theirs):
        start_sleeping(daemon, pair.image, count)
    yield
    for daemon in (pair.ours, pair.theirs):
        end_sleeping(daemon, count)


def start_sleeping(daemon: Peer, image: str, count: int) -> None:
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda n: daemon.ctr("run", "-d", image, f"s{n}", "sleep", "100000"), range(count)))


def end_sleeping(daemon: Peer, count: int) -> None:
    for number in range(count):
        daemon.ctr("tasks", "rm", "-f", f"s{number}")
        daemon.ctr("containers", "rm", f"s{number}")


def bench_pull(pair: Pair) -> list[Figure]:
    image = f"{pair.registry}/big:1"

    def pull(daemon: Peer, _number: int) -> float:
        took = timed(lambda: daemon.ctr("images", "pull", "--plain-http", image, timeout_s=900))
        daemon.ctr("images", "rm", "--sync", image)
        return took

    ours, theirs = pair.alternate(pull)
    return [Figure("ctr images pull (fetch and unpack)", "ms", ours, theirs)]


def bench_remove(pair: Pair) -> list[Figure]:
    image = f"{pair.registry}/big:1"

    def remove(daemon: Peer, _number: int) -> float:
        daemon.ctr("images", "pull", "--plain-http", image, timeout_s=900)
        return timed(lambda: daemon.ctr("images", "rm", "--sync", image, timeout_s=900))

    ours, theirs = pair.alternate(remove)
    return [Figure("ctr images rm --sync", "ms", ours, theirs)]


def bench_churn(pair: Pair) -> list[Figure]:
    def left(daemon: Peer) -> int:
        anyio.run(churn, str(daemon.address), daemon.namespace)
        return len(list((daemon.root / OVERLAYS).iterdir()))

    ours, theirs = left(pair.ours), left(pair.theirs)
    return [Figure(f"directories after {CHURN_RATE} prepares and removes/s", "", ours, theirs)]


async def churn(address: str, namespace: str) -> None:
    """Prepare and remove snapshots at a steady rate, each a second after it was made."""
    service = "containerd.services.snapshots.v1.Snapshots"
    async with GrpcClient(address) as client:

        async def live(number: int) -> None:
            await anyio.sleep(number / CHURN_RATE)
            key = f"churn-{number}"
            request = api.snapshots.PrepareSnapshotRequest(
                snapshotter="overlayfs", key=key, labels={"containerd.io/gc.root": "now"}
            )
            await client.unary(service, "Prepare", request, namespace=namespace, timeout_s=60)
            await anyio.sleep(1)
            removal = api.snapshots.RemoveSnapshotRequest(snapshotter="overlayfs", key=key)
            await client.unary(service, "Remove", removal, namespace=namespace, timeout_s=60)

        async with anyio.create_task_group() as group:
            for number in range(int(CHURN_S * CHURN_RATE)):
                group.start_soon(live, number)


def bench_create(pair: Pair, at_once: int) -> list[Figure]:
    def rate(daemon: Peer, number: int) -> float:
        return anyio.run(create_rate, str(daemon.address), daemon.namespace, at_once, number)

    ours, theirs = pair.alternate(rate)
    return [Figure(f"container record creates, {at_once} at once", "/s", ours, theirs)]


async def create_rate(address: str, namespace: str, at_once: int, number: int) -> float:
    """Container records created and deleted through one connection; creates per second."""
    service = "containerd.services.containers.v1.Containers"
    spec = api.protobuf.Any(
        type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec", value=b"{}" + b" " * 6000
    )
    names = iter([f"c{number}-{n}" for n in range(CREATES)])
    async with GrpcClient(address) as client:

        async def worker() -> None:
            for name in names:
                record = api.containers.Container(
                    id=name, runtime=api.containers.ContainerRuntime(name="io.containerd.runc.v2"), spec=spec
                )
                request = api.containers.CreateContainerRequest(container=record)
                await client.unary(service, "Create", request, namespace=namespace, timeout_s=30)

        began = time.perf_counter()
        async with anyio.create_task_group() as workers:
            for _ in range(at_once):
                workers.start_soon(worker)
        took = time.perf_counter() - began
        for n in range(CREATES):
            request = api.containers.DeleteContainerRequest(id=f"c{number}-{n}")
            await client.unary(service, "Delete", request, namespace=namespace, timeout_s=30)
    return CREATES / took


def bench_dispatch(_pair: Pair) -> list[Figure]:
    """Measure the guard of a call. It has no peer, since containerd's plugins are part of its program."""
    return [Figure("dispatch overhead of a guarded call", "us", overhead_us(), 15, budget=True)]


BENCHES: dict[str, Callable[[Pair], list[Figure]]] = {
    "ready": bench_ready,
    "idle": bench_idle,
    "run": bench_run,
    "exec": bench_exec,
    "many": bench_many,
    "pull": bench_pull,
    "remove": bench_remove,
    "churn": bench_churn,
    "create1": lambda pair: bench_create(pair, 1),
    "create8": lambda pair: bench_create(pair, 8),
    "dispatch": bench_dispatch,
}


def big_image(size_mb: int, files: int) -> BuiltImage:
    """Return an image of several layers with many small files and a few large ones of incompressible bytes."""
    layers = [busybox_layer()]
    per_layer = 4
    for layer in range(per_layer):
        entries = [entry(f"data/{layer}/{n % 50}/{n}", os.urandom(2048) * 2) for n in range(files // per_layer)]
        entries.append(entry(f"data/{layer}/large", os.urandom(size_mb * (1 << 20) // per_layer)))
        layers.append(BuiltLayer(tar_of(entries)))
    return BuiltImage(layers=layers)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare our daemon with Debian's containerd.")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds of each measurement")
    parser.add_argument("--image-mb", type=int, default=64, help="size of the large files of the pulled image")
    parser.add_argument("--files", type=int, default=4000, help="small files of the pulled image")
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES, help="what to measure")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aio-bench-")))
        registry = stack.enter_context(docker_registry(directory))
        images = {"busybox:1": BuiltImage(layers=[busybox_layer()])}
        if {"pull", "remove"} & set(chosen.only):
            images["big:1"] = big_image(chosen.image_mb, chosen.files)
        for name, image in images.items():
            archive = directory / f"{name[:-2]}.tar"
            write_archive(archive, f"docker.io/library/{name}", [image])
            push(archive, registry, name)
        ours, theirs = stack.enter_context(peer(Installed)), stack.enter_context(peer(Debians))
        pair = Pair(ours, theirs, registry, chosen.rounds)
        for daemon in (ours, theirs):
            daemon.ctr("images", "pull", "--plain-http", pair.image)
        title = f"median of {chosen.rounds} alternating rounds"
        print(f"{title:<42} {'ours':>10} {'containerd':>10} {'':6} {'ratio':>6}")
        for name in chosen.only:
            for figure in BENCHES[name](pair):
                print(figure.row(), flush=True)
        for daemon in (ours, theirs):
            daemon.ctr("images", "rm", "--sync", pair.image)
    return 0


if __name__ == "__main__":
    sys.exit(main())
