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

from aiocontainerd import api, errors
from aiocontainerd.errors import Unimplemented
from aiocontainerd.events import EventBus
from aiocontainerd.guard import dispatcher, stream
from aiocontainerd.guard.call import Call
from aiocontainerd.guard.health import MethodRecord
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.loading import registrations_of
from aiocontainerd.host.registry import Registry
from aiocontainerd.interfaces.metadata import Collected, MetadataStore
from aiocontainerd.oci import platform
from aiocontainerd.plugin import InitContext, PluginConfig, Registration, State, kinds
from aiocontainerd.rpc.grpc import GrpcFrontEnd
from aiocontainerd.rpc.grpc_client import GrpcClient
from aiocontainerd.wire.events import message_bus
from aiocontainerd.wire.times import time_from_wire

pytestmark = pytest.mark.anyio

PLUGINS = ("content-local", "snapshotter-native", "metadata-sqlite", "services")
needs_ctr = pytest.mark.skipif(shutil.which("ctr") is None, reason="needs Debian's ctr")
TIMEOUT_S = 20.0
BOLT = "io.containerd.metadata.v1.bolt"
NATIVE = "io.containerd.snapshotter.v1.native"


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
    installed = {entry.name: entry for entry in entry_points(group="aiocontainerd.plugins")}
    for name in PLUGINS:
        for registration in registrations_of(installed[name].value):
            if registration.id not in ("tasks", "tasks-service"):
                made.add(registration)
    return made


class Served:
    """A daemon's services on a socket, and ways to ask them."""

    def __init__(self, address: str, bus: EventBus, client: GrpcClient) -> None:
        self.address, self.bus, self.client = address, bus, client

    async def ctr(self, *args: str, namespace: str = "t", stdin: bytes = b"", check: bool = True) -> str:
        """Return ctr's output. With `check` a failure fails the test; without, its error text is returned."""
        command = ["ctr", "--address", self.address, "--namespace", namespace, *args]
        with anyio.fail_after(TIMEOUT_S):
            done = await anyio.run_process(command, input=stdin, check=False)
        if not check:
            assert done.returncode != 0
            return done.stderr.decode()
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    async def call(self, service: str, method: str, request: Any, *, namespace: str = "t", lease: str = "") -> Any:
        """Make one unary call of `containerd.services.<service>`."""
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
        """Return the responses of one Content.Write whose requests follow each other."""
        service = "containerd.services.content.v1.Content"
        got = []
        async with self.client.stream(service, "Write", namespace=namespace, timeout_s=TIMEOUT_S) as call:
            for request in requests:
                await call.send(request, end=request is requests[-1])
                got.append(await call.recv())
            while (more := await call.recv()) is not None:
                got.append(more)
        return got


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as made:
        yield made


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Served]:
    bus, plugins = message_bus(), registry()
    address = directory / "s"
    daemon = DaemonInfo(
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
    await served.ctr(*snapshots, "prepare", "a1")
    assert "mount -t bind " in await served.ctr(*snapshots, "mounts", "/mnt", "a1")
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
    info = await served.client.unary(
        "containerd.services.containers.v1.Containers",
        "Get",
        api.containers.GetContainerRequest(id="c1"),
        namespace="t",
    )
    assert isinstance(info, api.containers.GetContainerResponse)
    assert info.container is not None
    assert info.container.labels == {"a": "b"}


@needs_ctr
async def test_ctr_shows_version_and_plugins(served: Served) -> None:
    assert "Version:  2.4.0+aiocontainerd." in await served.ctr("version")
    rows = [line.split() for line in (await served.ctr("plugins", "ls")).splitlines()[1:]]
    assert ["io.containerd.snapshotter.v1", "native", str(platform.default()), "ok"] in rows
    assert {row[-1] for row in rows} == {"ok"}
    detail = await served.ctr("plugins", "ls", "-d", "id==bolt")
    assert "policy" in detail


@needs_ctr
async def test_ctr_prints_events_as_they_come(served: Served) -> None:
    command = ["ctr", "--address", served.address, "events"]
    async with await anyio.open_process(command, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            with anyio.fail_after(TIMEOUT_S):
                while not served.bus.statistics()["subscriptions"]:  # noqa: ASYNC110 - another process subscribes
                    await anyio.sleep(0.005)
                await served.ctr("namespaces", "create", "n1")
                text = (await process.stdout.receive()).decode()
        finally:
            process.terminate()  # what fails above must not leave the block waiting for ctr
    assert "n1 /namespaces/create" in text


async def test_a_call_without_a_namespace_is_refused_in_containerds_words(served: Served) -> None:
    calls = [
        ("containers.v1.Containers", "List", api.containers.ListContainersRequest()),
        ("images.v1.Images", "List", api.images.ListImagesRequest()),
        ("leases.v1.Leases", "List", api.leases.ListRequest()),
    ]
    for service, method, request in calls:
        with pytest.raises(errors.FailedPrecondition, match=r"^namespace is required$"):
            await served.call(service, method, request, namespace="")
    with pytest.raises(errors.InvalidArgument, match=r'^namespace validation: identifier "a\.\.b" must match '):
        await served.call(*calls[0], namespace="a..b")


async def test_a_write_resumes_after_a_half_close_and_commits_once(served: Served) -> None:
    action = api.content.WriteAction
    digest = "sha256:" + hashlib.sha256(b"abcdef").hexdigest()
    first = await served.write(
        api.content.WriteContentRequest(action=action.STAT, ref="r", total=6, expected=digest),
        api.content.WriteContentRequest(action=action.WRITE, data=b"abc"),
    )
    assert [answer.offset for answer in first] == [0, 3, 3]
    status = await served.call("content.v1.Content", "Status", api.content.StatusRequest(ref="r"))
    assert (status.status.offset, status.status.total) == (3, 6)
    second = await served.write(
        api.content.WriteContentRequest(action=action.STAT, ref="r", total=6, expected=digest),
        api.content.WriteContentRequest(action=action.WRITE, offset=3, data=b"def"),
        api.content.WriteContentRequest(action=action.COMMIT, offset=6, total=6, expected=digest),
    )
    assert [answer.offset for answer in second] == [3, 6, 6, 6]
    assert second[-1].digest == digest
    with pytest.raises(errors.AlreadyExists, match=f"^content {digest}$"):
        await served.write(api.content.WriteContentRequest(action=action.STAT, ref="r2", expected=digest))


async def test_an_ingest_is_locked_until_its_client_goes_away(served: Served) -> None:
    action = api.content.WriteAction
    stat = api.content.WriteContentRequest(action=action.STAT, ref="r")
    service = "containerd.services.content.v1.Content"
    async with served.client.stream(service, "Write", namespace="t", timeout_s=TIMEOUT_S) as call:
        await call.send(stat)
        await call.recv()
        with pytest.raises(errors.Unavailable, match=r"^ref t/\d+/r locked for "):
            await served.write(stat)
    with anyio.fail_after(TIMEOUT_S):
        while True:
            try:
                assert len(await served.write(stat)) == 2
            except errors.Unavailable:
                await anyio.sleep(0.005)
            else:
                return


async def test_a_commit_of_another_digest_keeps_the_ingest(served: Served) -> None:
    action = api.content.WriteAction
    wrong = "sha256:" + "0" * 64
    with pytest.raises(errors.FailedPrecondition, match=f"^unexpected commit digest sha256:.*, expected {wrong}$"):
        await served.write(
            api.content.WriteContentRequest(action=action.WRITE, ref="r", data=b"abc"),
            api.content.WriteContentRequest(action=action.COMMIT, offset=3, expected=wrong),
        )
    listed = await served.call("content.v1.Content", "ListStatuses", api.content.ListStatusesRequest())
    assert [(status.ref, status.offset) for status in listed.statuses] == [("r", 3)]
    await served.call("content.v1.Content", "Abort", api.content.AbortRequest(ref="r"))
    with pytest.raises(errors.NotFound, match=r'^could not get status for ref "r": reference r$'):
        await served.call("content.v1.Content", "Status", api.content.StatusRequest(ref="r"))


async def test_a_large_blob_is_read_in_chunks_from_an_offset(served: Served) -> None:
    data = bytes(range(256)) * 10_000
    digest = await served.ingest(data)
    request = api.content.ReadContentRequest(digest=digest, offset=7)
    read = served.client.server_stream("containerd.services.content.v1.Content", "Read", request, namespace="t")
    messages: list[Any] = [message async for message in read]
    assert b"".join(message.data for message in messages) == data[7:]
    assert [message.offset for message in messages] == [0, 1 << 20, 2 << 20]


async def test_a_sync_delete_of_a_lease_collects_what_it_held(served: Served) -> None:
    made = await served.call("leases.v1.Leases", "Create", api.leases.CreateRequest(id="l"))
    assert time_from_wire(made.lease.created_at) > 0
    digest = await served.ingest(b"held")
    resource = api.leases.Resource(id=digest, type="content")
    await served.call("leases.v1.Leases", "AddResource", api.leases.AddResourceRequest(id="l", resource=resource))
    listed = await served.call("leases.v1.Leases", "ListResources", api.leases.ListResourcesRequest(id="l"))
    assert listed.resources == [resource]
    await served.call("leases.v1.Leases", "Delete", api.leases.DeleteRequest(id="l", sync=True))
    with pytest.raises(errors.NotFound, match=f"^content digest {digest}$"):
        await served.call("content.v1.Content", "Info", api.content.InfoRequest(digest=digest))


async def test_every_kind_of_change_publishes_containerds_topic(served: Served) -> None:
    topics: list[tuple[str, str]] = []
    with served.bus.subscribe() as subscription:
        digest = await served.ingest(b"blob", {"containerd.io/gc.root": "1"})
        create = api.images.CreateImageRequest(image=image("i", digest))
        await served.call("images.v1.Images", "Create", create)
        await served.call("images.v1.Images", "Delete", api.images.DeleteImageRequest(name="i"))
        await served.call("content.v1.Content", "Delete", api.content.DeleteContentRequest(digest=digest))
        prepare = api.snapshots.PrepareSnapshotRequest(snapshotter="native", key="k")
        await served.call("snapshots.v1.Snapshots", "Prepare", prepare)
        commit = api.snapshots.CommitSnapshotRequest(snapshotter="native", name="n", key="k")
        await served.call("snapshots.v1.Snapshots", "Commit", commit)
        remove = api.snapshots.RemoveSnapshotRequest(snapshotter="native", key="n")
        await served.call("snapshots.v1.Snapshots", "Remove", remove)
        await served.call("namespaces.v1.Namespaces", "Delete", api.namespaces.DeleteNamespaceRequest(name="t"))
    topics = [(envelope.namespace, envelope.topic) async for envelope in subscription]
    assert topics == [
        ("t", "/content/create"),
        ("t", "/images/create"),
        ("t", "/images/delete"),
        ("t", "/content/delete"),
        ("t", "/snapshot/prepare"),
        ("t", "/snapshot/commit"),
        ("t", "/snapshot/remove"),
        ("t", "/namespaces/delete"),
    ]


async def test_raw_spots_answer_unknown_over_the_wire(served: Served) -> None:
    long = api.namespaces.Namespace(name="n", labels={"k": "v" * 5000})
    with pytest.raises(errors.Unknown, match=r"^namespace\.Labels: label key and value length .*: invalid argument$"):
        await served.call("namespaces.v1.Namespaces", "Update", api.namespaces.UpdateNamespaceRequest(namespace=long))
    listing = api.snapshots.ListSnapshotsRequest(snapshotter="native", filters=["a=="])
    stream = served.client.server_stream("containerd.services.snapshots.v1.Snapshots", "List", listing, namespace="t")
    with pytest.raises(errors.Unknown, match=r"^filters: parse error: .*: invalid argument$"):
        await anext(stream)


async def test_snapshot_update_without_a_name_is_an_invalid_argument(served: Served) -> None:
    request = api.snapshots.UpdateSnapshotRequest(snapshotter="native", info=api.snapshots.Info())
    with pytest.raises(errors.InvalidArgument):
        await served.call("snapshots.v1.Snapshots", "Update", request)


class Passes:
    """The plugins and methods whose guards were passed."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []

    def call(self, record: MethodRecord, *args: Any) -> Call:
        self.made.append((record.plugin.uri, record.method))
        return Call(record, *args)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    made = Passes()
    monkeypatch.setattr(dispatcher, "Call", made.call)
    monkeypatch.setattr(stream, "Call", made.call)
    return made


@pytest.fixture
async def filled(served: Served) -> Served:
    """With a container, a snapshot and an image."""
    container = api.containers.Container(id="c", runtime=api.containers.ContainerRuntime(name="r"))
    await served.call("containers.v1.Containers", "Create", api.containers.CreateContainerRequest(container=container))
    request = api.snapshots.PrepareSnapshotRequest(snapshotter="native", key="k")
    await served.call("snapshots.v1.Snapshots", "Prepare", request)
    digest = await served.ingest(b"{}")
    await served.call("images.v1.Images", "Create", api.images.CreateImageRequest(image=image("a", digest)))
    return served


REQUESTS: dict[tuple[str, str], Any] = {
    ("containers", "Get"): api.containers.GetContainerRequest(id="c"),
    ("containers", "List"): api.containers.ListContainersRequest(),
    ("images", "Get"): api.images.GetImageRequest(name="a"),
    ("images", "Delete"): api.images.DeleteImageRequest(name="a"),
    ("leases", "Create"): api.leases.CreateRequest(id="l"),
    ("namespaces", "Get"): api.namespaces.GetNamespaceRequest(name="t"),
    ("snapshots", "Stat"): api.snapshots.StatSnapshotRequest(snapshotter="native", key="k"),
    ("snapshots", "Usage"): api.snapshots.UsageRequest(snapshotter="native", key="k"),
    ("snapshots", "Prepare"): api.snapshots.PrepareSnapshotRequest(snapshotter="native", key="k2"),
}


@pytest.mark.parametrize(("subject", "method"), REQUESTS, ids=map(".".join, REQUESTS))
async def test_a_request_passes_no_plugins_guard_twice(
    filled: Served, passes: Passes, subject: str, method: str
) -> None:
    await filled.call(f"{subject}.v1.{subject.capitalize()}", method, REQUESTS[subject, method])
    uris = [uri for uri, _ in passes.made]
    assert BOLT in uris
    assert len(uris) == len(set(uris)), passes.made


async def test_a_snapshot_is_asked_of_the_store_and_prepared_by_its_snapshotter(filled: Served, passes: Passes) -> None:
    stat, prepare = REQUESTS["snapshots", "Stat"], REQUESTS["snapshots", "Prepare"]
    await filled.call("snapshots.v1.Snapshots", "Stat", stat)
    assert (BOLT, "snapshotter.stat") in passes.made
    passes.made.clear()
    await filled.call("snapshots.v1.Snapshots", "Prepare", prepare)
    assert passes.made[-2:] == [(BOLT, "snapshotter.prepare"), (NATIVE, "prepare")]
