"""Namespaces, containers, images, leases and snapshots: conversion, checks and events over in-test stores."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
import pytest
from aiocontainerd_services.images import ImagesService
from aiocontainerd_services.leases import LeasesManager

from aiocontainerd import api
from aiocontainerd.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unknown,
)
from aiocontainerd.interfaces.metadata import Collected, Container, Image, Lease, Namespace, Resource
from aiocontainerd.interfaces.snapshotter import Kind, SnapshotInfo, Usage
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.serve.containers import ContainersGrpc
from aiocontainerd.serve.images import ImagesGrpc
from aiocontainerd.serve.leases import LeasesGrpc
from aiocontainerd.serve.namespaces import NamespacesGrpc
from aiocontainerd.serve.snapshots import SnapshotsGrpc
from aiocontainerd.sys.mount import Mount
from aiocontainerd.wire.times import time_to_wire

pytestmark = pytest.mark.anyio


class Scheduler:
    def __init__(self, error: Exception | None = None) -> None:
        self.waits, self.error = 0, error

    async def schedule_and_wait(self) -> Collected:
        self.waits += 1
        if self.error:
            raise self.error
        return Collected(removed={}, duration_s=0.0)


# Namespaces


class NamespaceRecords:
    def __init__(self) -> None:
        self.error: Exception | None = None
        self.calls: list[Any] = []

    async def create(self, name: str, labels: Mapping[str, str]) -> None:
        self.calls.append(("create", name, dict(labels)))

    async def get(self, name: str) -> Namespace:
        return Namespace(name)

    async def list(self) -> list[Namespace]:
        return [Namespace("a", {"k": "v"}), Namespace("b")]

    async def update(self, namespace: Namespace, paths: Sequence[str] = ()) -> Namespace:
        if self.error:
            raise self.error
        self.calls.append(("update", namespace.name, dict(namespace.labels), tuple(paths)))
        return namespace

    async def delete(self, name: str) -> None:
        self.calls.append(("delete", name))


def namespaces() -> tuple[NamespacesGrpc, NamespaceRecords]:
    store = NamespaceRecords()
    return NamespacesGrpc(store), store


def named(name: str, **labels: str) -> api.namespaces.Namespace:
    return api.namespaces.Namespace(name=name, labels=labels)


async def test_namespace_create_echoes_the_request() -> None:
    service, store = namespaces()
    response = await service.create(api.namespaces.CreateNamespaceRequest(namespace=named("n1", a="", b="c")))
    assert response.namespace == named("n1", a="", b="c")
    assert store.calls == [("create", "n1", {"a": "", "b": "c"})]


async def test_namespace_update_answers_with_an_empty_message() -> None:
    service, store = namespaces()
    mask = api.protobuf.FieldMask(paths=["labels.a"])
    response = await service.update(
        api.namespaces.UpdateNamespaceRequest(namespace=named("n1", a="b"), update_mask=mask)
    )
    assert response == api.namespaces.UpdateNamespaceResponse()
    assert store.calls == [("update", "n1", {"a": "b"}, ("labels.a",))]


async def test_namespace_update_refuses_any_path_but_a_label() -> None:
    service, store = namespaces()
    for path in ("labels", "name"):
        mask = api.protobuf.FieldMask(paths=[path])
        with pytest.raises(InvalidArgument, match=f'cannot update "{path}" field'):
            await service.update(api.namespaces.UpdateNamespaceRequest(namespace=named("n1"), update_mask=mask))
    assert not store.calls


async def test_namespace_update_errors_of_labels_lose_their_class_but_not_their_text() -> None:
    service, store = namespaces()
    store.error = InvalidArgument("namespace.Labels: too long")
    with pytest.raises(Unknown, match=r"^namespace.Labels: too long: invalid argument$"):
        await service.update(api.namespaces.UpdateNamespaceRequest(namespace=named("n1")))


async def test_a_deadline_keeps_its_class_where_other_errors_lose_theirs() -> None:
    service, store = namespaces()
    store.error = DeadlineExceeded()
    with pytest.raises(DeadlineExceeded):
        await service.update(api.namespaces.UpdateNamespaceRequest(namespace=named("n1")))


async def test_namespace_requests_without_a_namespace_name_the_field() -> None:
    service, _ = namespaces()
    with pytest.raises(InvalidArgument, match="field namespace must be set"):
        await service.create(api.namespaces.CreateNamespaceRequest())
    with pytest.raises(InvalidArgument, match="field namespace must be set"):
        await service.update(api.namespaces.UpdateNamespaceRequest())


async def test_namespace_get_list_and_delete() -> None:
    service, store = namespaces()
    assert (await service.get(api.namespaces.GetNamespaceRequest(name="zz"))).namespace == named("zz")
    listed = await service.list(api.namespaces.ListNamespacesRequest(filter="ignored"))
    assert listed.namespaces == [named("a", k="v"), named("b")]
    await service.delete(api.namespaces.DeleteNamespaceRequest(name="a"))
    assert store.calls == [("delete", "a")]


# Containers


class ContainerRecords:
    def __init__(self) -> None:
        self.records: dict[str, Container] = {}
        self.paths: Sequence[str] | None = None

    async def get(self, container_id: str) -> Container:
        return self.records[container_id]

    async def list(self, filters: Sequence[str] = ()) -> list[Container]:
        return [self.records[key] for key in sorted(self.records)]

    async def create(self, container: Container) -> Container:
        stored = msgspec.structs.replace(container, created_at_ns=7, updated_at_ns=7)
        self.records[container.id] = stored
        return stored

    async def update(self, container: Container, paths: Sequence[str] = ()) -> Container:
        self.paths = paths
        return await self.create(container)

    async def delete(self, container_id: str) -> None:
        del self.records[container_id]


def containers() -> tuple[ContainersGrpc, ContainerRecords]:
    store = ContainerRecords()
    return ContainersGrpc(store), store


def opaque(value: bytes) -> api.protobuf.Any:
    return api.protobuf.Any(type_url="types.example/T", value=value)


def container(container_id: str = "c1") -> api.containers.Container:
    return api.containers.Container(
        id=container_id,
        labels={"k": "v"},
        image="i",
        runtime=api.containers.ContainerRuntime(name="io.containerd.runc.v2", options=opaque(b"\x00o")),
        spec=opaque(b"{}"),
        snapshotter="native",
        snapshot_key="s",
        extensions={"x": opaque(b"e")},
        sandbox="pod",
    )


async def test_a_container_comes_back_as_it_was_given_but_for_its_times() -> None:
    service, _ = containers()
    created = await service.create(api.containers.CreateContainerRequest(container=container()))
    expected = container()
    expected.created_at = expected.updated_at = time_to_wire(7)
    assert created.container == expected
    assert (await service.get(api.containers.GetContainerRequest(id="c1"))).container == expected
    streamed = [m async for m in service.list_stream(api.containers.ListContainersRequest())]
    assert streamed == [api.containers.ListContainerMessage(container=expected)]


async def test_a_container_without_runtime_or_spec_reaches_the_store_without_them() -> None:
    service, store = containers()
    await service.create(api.containers.CreateContainerRequest(container=api.containers.Container(id="c")))
    assert (store.records["c"].runtime_name, store.records["c"].spec) == ("", None)


async def test_a_container_update_hands_on_its_mask() -> None:
    service, store = containers()
    mask = api.protobuf.FieldMask(paths=["labels", "extensions.y"])
    await service.update(api.containers.UpdateContainerRequest(container=container(), update_mask=mask))
    assert store.paths == ("labels", "extensions.y")


async def test_container_requests_without_a_container_name_the_field() -> None:
    service, _ = containers()
    with pytest.raises(InvalidArgument, match="field container must be set"):
        await service.create(api.containers.CreateContainerRequest())
    with pytest.raises(InvalidArgument, match="field container must be set"):
        await service.update(api.containers.UpdateContainerRequest())


# Images


class ImageRecords:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    async def get(self, name: str) -> Image:
        raise NotFound(f'image "{name}"')

    async def list(self, filters: Sequence[str] = ()) -> list[Image]:
        return [Image(name="a", target=Descriptor("m", "d", 1, {"x": "y"}), created_at_ns=1, updated_at_ns=2)]

    async def create(self, image: Image, *, epoch_ns: int | None = None) -> Image:
        self.calls.append(("create", epoch_ns))
        return image

    async def update(self, image: Image, paths: Sequence[str] = (), *, epoch_ns: int | None = None) -> Image:
        self.calls.append(("update", tuple(paths), epoch_ns))
        return image

    async def delete(self, name: str, *, target: Descriptor | None = None) -> None:
        self.calls.append(("delete", name, target))


def images(gc_error: Exception | None = None) -> tuple[ImagesGrpc, ImageRecords, Scheduler]:
    store, gc = ImageRecords(), Scheduler(gc_error)
    return ImagesGrpc(ImagesService(store, gc)), store, gc


def image(name: str = "a") -> api.images.Image:
    return api.images.Image(name=name, target=api.types.Descriptor(media_type="m", digest="d", size=1))


async def test_an_image_needs_a_target() -> None:
    service, store, _ = images()
    with pytest.raises(InvalidArgument, match=r"field image\.target must be set"):
        await service.update(api.images.UpdateImageRequest(image=api.images.Image(name="a")))
    with pytest.raises(InvalidArgument, match="field image must be set"):
        await service.create(api.images.CreateImageRequest())
    assert not store.calls


async def test_the_epoch_of_an_image_replaces_the_clock() -> None:
    service, store, _ = images()
    epoch = time_to_wire(42)
    mask = api.protobuf.FieldMask(paths=["target"])
    await service.create(api.images.CreateImageRequest(image=image(), source_date_epoch=epoch))
    await service.update(api.images.UpdateImageRequest(image=image(), update_mask=mask, source_date_epoch=epoch))
    await service.create(api.images.CreateImageRequest(image=image()))
    assert store.calls == [("create", 42), ("update", ("target",), 42), ("create", None)]


async def test_images_are_listed_with_their_targets() -> None:
    service, _, _ = images()
    listed = (await service.list(api.images.ListImagesRequest())).images
    target = api.types.Descriptor(media_type="m", digest="d", size=1, annotations={"x": "y"})
    assert [i.target for i in listed] == [target]


async def test_only_a_sync_delete_of_an_image_waits_for_collection() -> None:
    service, store, gc = images()
    await service.delete(api.images.DeleteImageRequest(name="a"))
    assert gc.waits == 0
    target = api.types.Descriptor(digest="d")
    await service.delete(api.images.DeleteImageRequest(name="a", sync=True, target=target))
    assert gc.waits == 1
    assert store.calls == [("delete", "a", None), ("delete", "a", Descriptor("", "d", 0, {}))]


async def test_a_collection_that_fails_after_an_image_delete_is_unknown() -> None:
    service, _, _ = images(FailedPrecondition("gc failed"))
    with pytest.raises(Unknown, match=r"^gc failed: failed precondition$"):
        await service.delete(api.images.DeleteImageRequest(name="a", sync=True))


# Leases


class LeaseRecords:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    async def create(self, lease_id: str, labels: Mapping[str, str]) -> Lease:
        return Lease(id=lease_id or "made-up", created_at_ns=3, labels=labels)

    async def delete(self, lease_id: str) -> None:
        self.calls.append(("delete", lease_id))

    async def list(self, filters: Sequence[str] = ()) -> list[Lease]:
        return [Lease(id="l", created_at_ns=3)]

    async def add_resource(self, lease_id: str, resource: Resource) -> None:
        self.calls.append(("add", lease_id, resource))

    async def delete_resource(self, lease_id: str, resource: Resource) -> None:
        self.calls.append(("drop", lease_id, resource))

    async def resources(self, lease_id: str) -> Sequence[Resource]:
        return [Resource("d", "content")]


def leases() -> tuple[LeasesGrpc, LeaseRecords, Scheduler]:
    store, gc = LeaseRecords(), Scheduler()
    return LeasesGrpc(LeasesManager(store, gc)), store, gc


async def test_a_lease_is_created_and_listed_with_its_time() -> None:
    service, _, _ = leases()
    made = await service.create(api.leases.CreateRequest(labels={"a": "b"}))
    assert made.lease == api.leases.Lease(id="made-up", created_at=time_to_wire(3), labels={"a": "b"})
    listed = await service.list(api.leases.ListRequest())
    assert listed.leases == [api.leases.Lease(id="l", created_at=time_to_wire(3))]


async def test_only_a_sync_delete_of_a_lease_waits_for_collection() -> None:
    service, _, gc = leases()
    await service.delete(api.leases.DeleteRequest(id="l"))
    assert gc.waits == 0
    await service.delete(api.leases.DeleteRequest(id="l", sync=True))
    assert gc.waits == 1


async def test_lease_resources_are_added_dropped_and_listed() -> None:
    service, store, _ = leases()
    resource = api.leases.Resource(id="s", type="snapshots/native")
    await service.add_resource(api.leases.AddResourceRequest(id="l", resource=resource))
    await service.delete_resource(api.leases.DeleteResourceRequest(id="l", resource=resource))
    record = Resource("s", "snapshots/native")
    assert store.calls == [("add", "l", record), ("drop", "l", record)]
    held = await service.list_resources(api.leases.ListResourcesRequest(id="l"))
    assert held.resources == [api.leases.Resource(id="d", type="content")]
    with pytest.raises(InvalidArgument, match="field resource must be set"):
        await service.add_resource(api.leases.AddResourceRequest(id="l"))


# Snapshots


class Backend:
    def __init__(self, count: int = 0) -> None:
        self.count, self.error = count, None
        self.calls: list[Any] = []

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        self.calls.append(("prepare", key, parent, labels))
        return [Mount("bind", "/fs", "", ("rw", "rbind"))]

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        self.calls.append(("view", key, parent, labels))
        return []

    async def mounts(self, key: str) -> list[Mount]:
        return [Mount("overlay", "overlay", "/t", ("a=b",))]

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        self.calls.append(("commit", name, key, labels, parent))

    async def remove(self, key: str) -> None:
        self.calls.append(("remove", key))

    async def stat(self, key: str) -> SnapshotInfo:
        return SnapshotInfo(kind=Kind.ACTIVE, name=key, parent="p", labels={"a": "b"}, created_at_ns=1, updated_at_ns=2)

    async def update(self, info: SnapshotInfo, paths: Sequence[str] = ()) -> SnapshotInfo:
        self.calls.append(("update", info.name, info.labels, tuple(paths)))
        return await self.stat(info.name)

    async def usage(self, key: str) -> Usage:
        return Usage(5, 2)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[SnapshotInfo]:
        if filters:
            raise InvalidArgument("filters: parse error")
        for number in range(self.count):
            yield SnapshotInfo(kind=Kind.COMMITTED, name=str(number))

    async def cleanup(self) -> None:
        self.calls.append(("cleanup",))


class Snapshotters:
    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def snapshotter(self, name: str) -> Backend:
        if name != "native":
            raise InvalidArgument(f"no snapshotter {name!r}")
        return self.backend


def snapshots(count: int = 0) -> tuple[SnapshotsGrpc, Backend]:
    backend = Backend(count)
    return SnapshotsGrpc(Snapshotters(backend)), backend


async def test_every_snapshot_call_needs_a_loaded_snapshotter() -> None:
    service, _ = snapshots()
    messages, name = api.snapshots, "foo"
    calls = [
        service.prepare(messages.PrepareSnapshotRequest(snapshotter=name)),
        service.view(messages.ViewSnapshotRequest(snapshotter=name)),
        service.mounts(messages.MountsRequest(snapshotter=name)),
        service.commit(messages.CommitSnapshotRequest(snapshotter=name)),
        service.remove(messages.RemoveSnapshotRequest(snapshotter=name)),
        service.stat(messages.StatSnapshotRequest(snapshotter=name)),
        service.update(messages.UpdateSnapshotRequest(snapshotter=name)),
        service.usage(messages.UsageRequest(snapshotter=name)),
        service.cleanup(messages.CleanupRequest(snapshotter=name)),
        anext(service.list(messages.ListSnapshotsRequest(snapshotter=name))),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument, match=r"^no snapshotter 'foo'$"):
            await call


async def test_mounts_travel_whole() -> None:
    service, backend = snapshots()
    prepared = await service.prepare(
        api.snapshots.PrepareSnapshotRequest(snapshotter="native", key="k", parent="p", labels={"a": "b"})
    )
    assert prepared.mounts == [api.types.Mount(type="bind", source="/fs", options=["rw", "rbind"])]
    assert backend.calls == [("prepare", "k", "p", {"a": "b"})]
    shown = await service.mounts(api.snapshots.MountsRequest(snapshotter="native", key="k"))
    assert shown.mounts == [api.types.Mount(type="overlay", source="overlay", target="/t", options=["a=b"])]


async def test_commit_update_and_remove_hand_on_every_field() -> None:
    service, backend = snapshots()
    await service.view(api.snapshots.ViewSnapshotRequest(snapshotter="native", key="v", parent="p"))
    await service.commit(
        api.snapshots.CommitSnapshotRequest(snapshotter="native", name="n", key="k", labels={"a": "b"}, parent="p")
    )
    mask = api.protobuf.FieldMask(paths=["labels.a"])
    info = api.snapshots.Info(name="n", labels={"a": "c"})
    await service.update(api.snapshots.UpdateSnapshotRequest(snapshotter="native", info=info, update_mask=mask))
    await service.remove(api.snapshots.RemoveSnapshotRequest(snapshotter="native", key="n"))
    assert backend.calls == [
        ("view", "v", "p", {}),
        ("commit", "n", "k", {"a": "b"}, "p"),
        ("update", "n", {"a": "c"}, ("labels.a",)),
        ("remove", "n"),
    ]


async def test_stat_and_usage_of_a_snapshot() -> None:
    service, _ = snapshots()
    found = (await service.stat(api.snapshots.StatSnapshotRequest(snapshotter="native", key="k"))).info
    assert found is not None
    assert (found.kind, found.parent, found.labels) == (api.snapshots.Kind.ACTIVE, "p", {"a": "b"})
    usage = await service.usage(api.snapshots.UsageRequest(snapshotter="native", key="k"))
    assert (usage.size, usage.inodes) == (5, 2)


@pytest.mark.parametrize(("count", "batches"), [(0, []), (100, [100]), (101, [100, 1])])
async def test_snapshots_are_listed_a_hundred_a_message(count: int, batches: list[int]) -> None:
    service, _ = snapshots(count)
    listed = service.list(api.snapshots.ListSnapshotsRequest(snapshotter="native"))
    assert [len(message.info) async for message in listed] == batches


async def test_errors_of_a_snapshot_walk_are_unknown() -> None:
    service, _ = snapshots()
    request = api.snapshots.ListSnapshotsRequest(snapshotter="native", filters=["x=="])
    with pytest.raises(Unknown, match=r"^filters: parse error: invalid argument$"):
        await anext(service.list(request))


async def test_cleanup_is_left_to_the_snapshotter() -> None:
    service, backend = snapshots()
    await service.cleanup(api.snapshots.CleanupRequest(snapshotter="native"))
    assert backend.calls == [("cleanup",)]
