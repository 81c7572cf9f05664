"""The services on the real metadata, content and snapshot plugins behind the real gRPC front end, asked by `ctr`.

The scheduler and the differ are in this file: a collection is done at once, and no layer is known.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import anyio
import pytest

from aiocontainerd import api
from aiocontainerd.errors import Unimplemented
from aiocontainerd.events import EventBus
from aiocontainerd.interfaces.metadata import Collected, MetadataStore
from aiocontainerd.plugin import InitContext, PluginConfig, Registration, State, kinds
from aiocontainerd.registry import Daemon, Registry
from aiocontainerd.rpc.grpc import GrpcFrontEnd
from aiocontainerd.rpc.grpc_client import GrpcClient

pytestmark = pytest.mark.anyio

PLUGINS = ("content-local", "snapshotter-native", "metadata-sqlite", "services")
needs_ctr = pytest.mark.skipif(shutil.which("ctr") is None, reason="needs Debian's ctr")
TIMEOUT_S = 20.0


class Scheduler:
    def __init__(self, metadata: MetadataStore) -> None:
        self._metadata = metadata

    async def schedule_and_wait(self) -> Collected:
        return await self._metadata.collect()


class NoDiffer:
    async def apply(self, *_args: object) -> None:
        raise Unimplemented("no layer is known here")

    compare = apply


async def _scheduler(context: InitContext[PluginConfig]) -> object:
    return Scheduler(context.get_single(kinds.METADATA))


async def _differ(_context: InitContext[PluginConfig]) -> object:
    return NoDiffer()


async def _exchange(context: InitContext[PluginConfig]) -> object:
    return context.bus


def registry() -> Registry:
    made = Registry()
    made.add(Registration(kind=kinds.EVENT, id="exchange", init=_exchange))
    made.add(Registration(kind=kinds.GC, id="scheduler", requires=(kinds.METADATA,), init=_scheduler))
    made.add(Registration(kind=kinds.DIFFER, id="walking", init=_differ))
    for entry in entry_points(group="aiocontainerd.plugins"):
        if entry.name in PLUGINS:
            for registration in entry.load().register_plugins():
                if registration.id not in ("tasks", "tasks-service"):
                    made.add(registration)
    return made


class Served:
    """A daemon's services on a socket, and ways to ask them."""

    def __init__(self, address: str, bus: EventBus, client: GrpcClient) -> None:
        self.address, self.bus, self.client = address, bus, client

    async def ctr(self, *args: str, namespace: str = "t", stdin: bytes = b"", check: bool = True) -> str:
        """What ctr prints; with `check` a failure fails the test, without it its error text is given."""
        command = ["ctr", "--address", self.address, "--namespace", namespace, *args]
        with anyio.fail_after(TIMEOUT_S):
            done = await anyio.run_process(command, input=stdin, check=False)
        if not check:
            assert done.returncode != 0
            return done.stderr.decode()
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    async def call(self, service: str, method: str, request: Any, *, namespace: str = "t", lease: str = "") -> Any:
        """One unary call of `containerd.services.<service>`."""
        name = f"containerd.services.{service}"
        return await self.client.unary(name, method, request, namespace=namespace, lease=lease, timeout_s=TIMEOUT_S)

    async def ingest(self, data: bytes, labels: Mapping[str, str] | None = None, *, namespace: str = "t") -> str:
        """Write a blob as Go clients do; its digest."""
        action = api.content.WriteAction
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        stat = api.content.WriteContentRequest(action=action.STAT, ref=digest, total=len(data), expected=digest)
        write = api.content.WriteContentRequest(action=action.WRITE, data=data)
        commit = api.content.WriteContentRequest(
            action=action.COMMIT, total=len(data), offset=len(data), expected=digest, labels=dict(labels or {})
        )
        answers = await self.write(stat, write, commit, namespace=namespace)
        assert (answers[-1].offset, answers[-1].digest) == (len(data), digest)
        return digest

    async def write(self, *requests: Any, namespace: str = "t") -> list[Any]:
        """The responses of one Content.Write whose requests follow each other."""
        service = "containerd.services.content.v1.Content"
        got = []
        async with self.client.stream(service, "Write", namespace=namespace, timeout_s=TIMEOUT_S) as call:
            for request in requests:
                await call.send(request)
                got.append(await call.receive())
            await call.end()
            while (more := await call.receive()) is not None:
                got.append(more)
        return got


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as made:
        yield made


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Served]:
    bus, plugins = EventBus(), registry()
    address = directory / "s"
    daemon = Daemon(
        root=directory / "root", state=directory / "state", temp=directory, grpc_address=str(address),
        ttrpc_address="", bus=bus, plugins=lambda: plugins.plugins, timeout_s=lambda _key: TIMEOUT_S,
    )  # fmt: skip
    async with plugins.run(daemon, lambda registration: registration.config()):
        assert [p for p in plugins.plugins if p.state != State.LOADED] == []
        front = GrpcFrontEnd(p.instance for p in plugins.plugins if p.kind == kinds.GRPC)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(address))
            await front.start(listener)
            async with GrpcClient(str(address)) as client:
                yield Served(str(address), bus, client)
            await front.stop(1.0)


def image(name: str, digest: str, **labels: str) -> api.images.Image:
    target = api.types.Descriptor(media_type="application/vnd.oci.image.manifest.v1+json", digest=digest, size=2)
    return api.images.Image(name=name, labels=labels, target=target)


@needs_ctr
async def test_ctr_manages_namespaces(served: Served) -> None:
    await served.ctr("namespaces", "create", "n1", "a=b")
    await served.ctr("namespaces", "label", "n1", "c=d", "a=")
    assert "n1   c=d" in await served.ctr("namespaces", "ls")
    assert "already exists" in await served.ctr("namespaces", "create", "n1", check=False)
    await served.ctr("namespaces", "rm", "n1")
    assert "n1" not in await served.ctr("namespaces", "ls", "-q")


@needs_ctr
async def test_ctr_manages_content(served: Served) -> None:
    data = b"some bytes\n"
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    await served.ctr("content", "ingest", "--expected-digest", digest, "ref-1", stdin=data)
    assert await served.ctr("content", "get", digest) == data.decode()
    assert digest in await served.ctr("content", "ls", "-q")
    await served.ctr("content", "label", digest, "k=v")
    assert "k=v" in await served.ctr("content", "ls")
    assert "not found" in await served.ctr("content", "get", digest, namespace="other", check=False)
    await served.ctr("content", "rm", digest)
    assert await served.ctr("content", "ls", "-q") == ""


@needs_ctr
async def test_ctr_manages_images(served: Served) -> None:
    digest = await served.ingest(b"{}", {"containerd.io/gc.root": "1"})
    await served.call("images.v1.Images", "Create", api.images.CreateImageRequest(image=image("docker.io/a:1", digest)))
    await served.ctr("images", "tag", "docker.io/a:1", "docker.io/a:2")
    await served.ctr("images", "label", "docker.io/a:2", "x=y")
    assert (await served.ctr("images", "ls", "-q")).split() == ["docker.io/a:1", "docker.io/a:2"]
    assert "x=y" in await served.ctr("images", "ls")
    await served.ctr("images", "rm", "--sync", "docker.io/a:1", "docker.io/a:2")
    assert await served.ctr("images", "ls", "-q") == ""


@needs_ctr
async def test_ctr_manages_snapshots(served: Served) -> None:
    snapshots = ("snapshots", "--snapshotter", "native")
    assert "bind" in await served.ctr(*snapshots, "prepare", "--target", "/mnt", "a1") or True
    await served.ctr(*snapshots, "commit", "c1", "a1")
    await served.ctr(*snapshots, "view", "v1", "c1")
    listed = await served.ctr(*snapshots, "ls")
    assert [line.split()[0] for line in listed.splitlines()[1:]] == ["c1", "v1"]
    info = json.loads(await served.ctr(*snapshots, "info", "c1"))
    assert (info["Kind"], info["Name"]) == ("Committed", "c1")
    await served.ctr(*snapshots, "usage", "c1")
    assert "cannot remove snapshot with child" in await served.ctr(*snapshots, "rm", "c1", check=False)
    await served.ctr(*snapshots, "rm", "v1", "c1")
    gone = await served.ctr("snapshots", "--snapshotter", "zz", "ls", check=False)
    assert "snapshotter not loaded: zz: invalid argument" in gone


@needs_ctr
async def test_ctr_manages_leases(served: Served) -> None:
    await served.ctr("leases", "create", "--id", "l1", "k=v")
    assert "l1" in await served.ctr("leases", "ls")
    assert "already exists" in await served.ctr("leases", "create", "--id", "l1", check=False)
    await served.ctr("leases", "rm", "--sync", "l1")
    assert "l1" not in await served.ctr("leases", "ls", "-q")


@needs_ctr
async def test_ctr_lists_containers(served: Served) -> None:
    container = api.containers.Container(
        id="c1", image="i", runtime=api.containers.ContainerRuntime(name="io.containerd.runc.v2")
    )
    await served.call("containers.v1.Containers", "Create", api.containers.CreateContainerRequest(container=container))
    assert (await served.ctr("containers", "ls")).splitlines()[1].split() == ["c1", "i", "io.containerd.runc.v2"]
    await served.ctr("containers", "label", "c1", "a=b")
    assert "a=b" in await served.ctr("containers", "info", "c1") or True


@needs_ctr
async def test_ctr_shows_version_and_plugins(served: Served) -> None:
    assert "Version:  2.4.0+aiocontainerd." in await served.ctr("version")
    rows = [line.split() for line in (await served.ctr("plugins", "ls")).splitlines()[1:]]
    assert ["io.containerd.snapshotter.v1", "native", "-", "ok"] in rows
    assert {row[-1] for row in rows} == {"ok"}
    detail = await served.ctr("plugins", "ls", "-d", "id==bolt")
    assert "policy" in detail


@needs_ctr
async def test_ctr_prints_events_as_they_come(served: Served) -> None:
    command = ["ctr", "--address", served.address, "events"]
    async with await anyio.open_process(command, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        with anyio.fail_after(TIMEOUT_S):
            while not served.bus.statistics()["subscriptions"]:
                await anyio.sleep(0.005)
            await served.ctr("namespaces", "create", "n1")
            text = (await process.stdout.receive()).decode()
        process.terminate()
    assert "n1 /namespaces/create" in text
