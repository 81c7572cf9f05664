"""Contract of metadata stores (interfaces/metadata.py).

Subclass the classes below in a test module and give them the fixtures `metadata` (an empty, open store over one
`FakeContentStore` and one `FakeSnapshotter` named `fake`), `bus` (the `FakeBus` it publishes to), `blobs` and `layers`
(the two backends).
"""

from __future__ import annotations

import msgspec
import pytest

from aiocontainerd import api, context, timestamps
from aiocontainerd.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
    Unknown,
)
from aiocontainerd.interfaces.content import BlobInfo
from aiocontainerd.interfaces.metadata import Container, Image, MetadataStore, Namespace, Resource
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.testing.fakes import FakeBus, FakeContentStore, FakeSnapshotter, digest_of
from aiocontainerd.typeurl import Any
from aiocontainerd.wire.anys import any_to_wire

DIGEST = digest_of(b"manifest")
TARGET = Descriptor("application/vnd.oci.image.manifest.v1+json", DIGEST, 8, {"a": "1"})
RUNTIME = "io.containerd.runc.v2"
LAYERS = "snapshots/fake"


def container(container_id: str, **fields: object) -> Container:
    """Make a container record that passes validation."""
    return msgspec.structs.replace(Container(id=container_id, runtime_name=RUNTIME), **fields)


async def ingest(metadata: MetadataStore, data: bytes, labels: dict[str, str] | None = None, ref: str = "") -> str:
    """Write a blob into the current namespace and return its digest."""
    async with await metadata.content.writer(ref or digest_of(data)) as writer:
        await writer.write(data)
        return (await writer.commit(len(data), labels=labels)).digest


async def committed(metadata: MetadataStore, name: str, parent: str = "", labels: dict[str, str] | None = None) -> None:
    """Make a committed snapshot in the current namespace."""
    layers = metadata.snapshotter("fake")
    await layers.prepare(f"{name}-active", parent)
    await layers.commit(name, f"{name}-active", labels)


@pytest.mark.anyio
class NamespaceContract:
    """Namespaces (facts/core 1)."""

    async def test_namespace_is_created_once(self, metadata: MetadataStore) -> None:
        await metadata.namespaces.create("t1", {"a": "1", "empty": ""})
        assert await metadata.namespaces.list() == [Namespace("t1", {"a": "1"})]
        with pytest.raises(AlreadyExists, match=r'namespace "t1"\Z'):
            await metadata.namespaces.create("t1", {})

    async def test_unknown_namespace_has_no_labels_and_is_no_error(self, metadata: MetadataStore) -> None:
        assert await metadata.namespaces.get("nobody") == Namespace("nobody", {})

    async def test_name_version_is_refused(self, metadata: MetadataStore) -> None:
        with pytest.raises(Unknown, match="incompatible value"):
            await metadata.namespaces.create("version", {})

    async def test_malformed_name_is_refused(self, metadata: MetadataStore) -> None:
        with pytest.raises(InvalidArgument, match=r'identifier "a\.\.b" must match'):
            await metadata.namespaces.create("a..b", {})

    async def test_update_without_mask_replaces_labels_and_creates(self, metadata: MetadataStore) -> None:
        assert await metadata.namespaces.update(Namespace("t1", {"a": "1"})) == Namespace("t1", {"a": "1"})
        await metadata.namespaces.update(Namespace("t1", {"b": "2"}))
        assert await metadata.namespaces.get("t1") == Namespace("t1", {"b": "2"})

    async def test_update_mask_sets_and_deletes_single_labels(self, metadata: MetadataStore) -> None:
        await metadata.namespaces.create("t1", {"a": "1", "b": "2"})
        await metadata.namespaces.update(Namespace("t1", {"c": "3", "x": "0"}), ["labels.c", "labels.a"])
        assert (await metadata.namespaces.get("t1")).labels == {"b": "2", "c": "3"}
        with pytest.raises(InvalidArgument, match='cannot update "name" field'):
            await metadata.namespaces.update(Namespace("t1"), ["name"])

    async def test_label_too_large_is_refused(self, metadata: MetadataStore) -> None:
        with pytest.raises(InvalidArgument, match=r"namespace\.Labels: label key and value length \(4097 bytes\)"):
            await metadata.namespaces.create("t1", {"k": "v" * 4096})

    async def test_namespace_with_objects_is_not_deleted_and_says_which(self, metadata: MetadataStore) -> None:
        with context.use(namespace="t1"):
            await metadata.containers.create(container("c1"))
            await metadata.images.create(Image(name="i1", target=TARGET))
            await ingest(metadata, b"blob")
            await metadata.snapshotter("fake").prepare("s1")
        expected = (
            'namespace "t1" must be empty, but it still has images, blobs, containers, snapshots on "fake" snapshotter'
        )
        with pytest.raises(FailedPrecondition) as failure:
            await metadata.namespaces.delete("t1")
        assert failure.value.message == expected

    async def test_leases_and_ingests_do_not_keep_a_namespace(self, metadata: MetadataStore) -> None:
        with context.use(namespace="t1"):
            await metadata.leases.create("l1", {})
            await (await metadata.content.writer("ref")).close()
        await metadata.namespaces.delete("t1")
        assert await metadata.namespaces.list() == []
        with pytest.raises(NotFound, match=r'namespace "t1"\Z'):
            await metadata.namespaces.delete("t1")

    async def test_a_write_makes_its_namespace_and_a_failed_one_does_not(self, metadata: MetadataStore) -> None:
        with context.use(namespace="t9"):
            with pytest.raises(NotFound):
                await metadata.containers.delete("zz")
            assert await metadata.namespaces.list() == []
            await metadata.leases.create("l1", {})
        assert [n.name for n in await metadata.namespaces.list()] == ["t9"]

    async def test_calls_need_a_namespace(self, metadata: MetadataStore) -> None:
        with context.use(namespace=""), pytest.raises(FailedPrecondition, match="namespace is required"):
            await metadata.containers.list()

    async def test_changes_are_published_in_the_namespace_they_are_about(
        self, metadata: MetadataStore, bus: FakeBus
    ) -> None:
        await metadata.namespaces.create("t1", {"a": "1", "empty": ""})
        await metadata.namespaces.update(Namespace("t1", {"b": "2"}), ["labels.b"])
        await metadata.namespaces.delete("t1")
        with pytest.raises(NotFound):
            await metadata.namespaces.delete("t1")
        events = api.event_types
        assert bus.events == [
            ("/namespaces/create", events.NamespaceCreate(name="t1", labels={"a": "1", "empty": ""}), "t1"),
            ("/namespaces/update", events.NamespaceUpdate(name="t1", labels={"b": "2"}), "t1"),
            ("/namespaces/delete", events.NamespaceDelete(name="t1"), "t1"),
        ]


@pytest.mark.anyio
class ContainerContract:
    """Containers (facts/core 3)."""

    async def test_record_comes_back_byte_for_byte_with_equal_times(self, metadata: MetadataStore) -> None:
        record = container(
            "k1",
            labels={"a": "1", "gone": ""},
            image="i",
            runtime_options=Any("u/o", b"\x00\xff"),
            spec=Any("u/s", b"{}"),
            snapshotter="fake",
            snapshot_key="s",
            extensions={"e": Any("u/e", b"")},
            sandbox_id="sb",
        )
        with context.use(namespace="t1"):
            stored = await metadata.containers.create(record)
            assert stored.created_at_ns == stored.updated_at_ns > 0
            assert stored == msgspec.structs.replace(
                record, labels={"a": "1"}, created_at_ns=stored.created_at_ns, updated_at_ns=stored.updated_at_ns
            )
            assert await metadata.containers.get("k1") == stored
            assert await metadata.containers.list() == [stored]

    async def test_missing_spec_stays_missing_and_duplicate_is_refused(self, metadata: MetadataStore) -> None:
        with context.use(namespace="t1"):
            assert (await metadata.containers.create(container("k1"))).spec is None
            assert (await metadata.containers.get("k1")).spec is None
            with pytest.raises(AlreadyExists, match=r'container "k1"\Z'):
                await metadata.containers.create(container("k1"))

    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({"id": ""}, "container.ID: identifier must not be empty"),
            ({"extensions": {"": Any("u", b"")}}, "container.Extension keys must not be zero-length"),
            ({"labels": {"k": "v" * 4096}}, "containers.Labels: label key and value length (4097 bytes)"),
            ({"runtime_name": ""}, "container.Runtime.Name must be set"),
            ({"snapshot_key": "s"}, "container.Snapshotter must be set if container.SnapshotKey is set"),
        ],
    )
    async def test_create_validates(self, metadata: MetadataStore, fields: dict[str, object], text: str) -> None:
        with context.use(namespace="t1"), pytest.raises(InvalidArgument) as failure:
            await metadata.containers.create(container("k1", **fields))
        assert failure.value.message.startswith(f"create container failed validation: {text}")

    async def test_list_is_sorted_filtered_and_of_one_namespace(self, metadata: MetadataStore) -> None:
        with context.use(namespace="t2"):
            await metadata.containers.create(container("other"))
        with context.use(namespace="t1"):
            for name in ("b", "a-1", "a"):
                await metadata.containers.create(container(name, labels={"x.y": name}))
            assert [c.id for c in await metadata.containers.list()] == ["a", "a-1", "b"]
            for filters in (['labels."x.y"==b'], ["labels.x.y==b"], ["id==b,runtime.name==io.containerd.runc.v2"]):
                assert [c.id for c in await metadata.containers.list(filters)] == ["b"]
            with pytest.raises(InvalidArgument):
                await metadata.containers.list(["id=="])

    async def test_update_without_mask_takes_the_mutable_fields(self, metadata: MetadataStore) -> None:
        with context.use(namespace="t1"):
            before = await metadata.containers.create(container("k1", labels={"a": "1"}, snapshotter="fake"))
            given = container(
                "k1", labels={"b": "2"}, image="i", snapshotter="fake", snapshot_key="s", spec=Any("u", b"1")
            )
            after = await metadata.containers.update(given)
            assert (after.labels, after.image, after.snapshot_key, after.spec) == ({"b": "2"}, "i", "s", Any("u", b"1"))
            assert after.created_at_ns == before.created_at_ns
            assert after.updated_at_ns > before.updated_at_ns
            assert await metadata.containers.get("k1") == after

    async def test_immutable_fields_are_refused(self, metadata: MetadataStore) -> None:
        with context.use(namespace="t1"):
            await metadata.containers.create(container("k1"))
            with pytest.raises(InvalidArgument, match=r"container\.Snapshotter field is immutable"):
                await metadata.containers.update(container("k1", snapshotter="fake"))
            with pytest.raises(InvalidArgument, match=r"container\.Runtime\.Name field is immutable"):
                await metadata.containers.update(container("k1", runtime_name="other"))

    async def test_update_mask_takes_named_fields_only(self, metadata: MetadataStore) -> None:
        with context.use(namespace="t1"):
            await metadata.containers.create(
                container("k1", labels={"a": "1", "b": "2"}, extensions={"x": Any("u", b"1")})
            )
            given = container("k1", image="new", labels={"a": "9"}, extensions={"y": Any("u", b"2")})
            paths = ["labels.a", "labels.b", "extensions.y", "extensions.z"]
            after = await metadata.containers.update(given, paths)
            assert (after.labels, after.image) == ({"a": "9"}, "")
            assert after.extensions == {"x": Any("u", b"1"), "y": Any("u", b"2"), "z": Any("", b"")}
            assert await metadata.containers.get("k1") == after
            with pytest.raises(InvalidArgument, match='cannot update "sandbox" field on "k1"'):
                await metadata.containers.update(given, ["sandbox"])
            with pytest.raises(InvalidArgument, match=r"Container\.ID required"):
                await metadata.containers.update(container(""))
            with pytest.raises(InvalidArgument, match=r"^update failed validation: containers\.Labels: "):
                await metadata.containers.update(container("k1", labels={"k": "v" * 4096}), ["labels"])

    async def test_what_is_missing_is_named(self, metadata: MetadataStore) -> None:
        with context.use(namespace="t3"):
            with pytest.raises(NotFound, match=r'container "zz" in namespace "t3"\Z'):
                await metadata.containers.get("zz")
            with pytest.raises(NotFound, match=r'cannot delete container "zz" in namespace "t3"\Z'):
                await metadata.containers.delete("zz")
            with pytest.raises(NotFound, match=r'^cannot update container "zz" in namespace "t3"\Z'):
                await metadata.containers.update(container("zz"))
            await metadata.containers.create(container("k1"))
            with pytest.raises(NotFound, match=r'^container "zz"\Z'):
                await metadata.containers.update(container("zz"))
            with pytest.raises(NotFound, match=r"\Acontainer zz\Z"):
                await metadata.containers.delete("zz")
            await metadata.containers.delete("k1")
            assert await metadata.containers.list() == []

    async def test_changes_are_published_as_they_were_stored(self, metadata: MetadataStore, bus: FakeBus) -> None:
        options = Any("u/o", b"\x00\xff")
        record = container("k1", image="i", runtime_options=options, snapshotter="fake", snapshot_key="s")
        with context.use(namespace="t1"):
            await metadata.containers.create(record)
            with pytest.raises(AlreadyExists):
                await metadata.containers.create(record)
            given = container("k1", labels={"b": "2"}, image="j", spec=Any("u/s", b""))
            await metadata.containers.update(given, ["labels", "spec"])
            await metadata.containers.delete("k1")
            with pytest.raises(NotFound):
                await metadata.containers.delete("k1")
        events = api.event_types
        runtime = events.ContainerCreateRuntime(name=RUNTIME, options=any_to_wire(options))
        update = events.ContainerUpdate(id="k1", image="i", labels={"b": "2"}, snapshot_key="s")
        assert bus.events == [
            ("/containers/create", events.ContainerCreate(id="k1", image="i", runtime=runtime), "t1"),
            ("/containers/update", update, "t1"),
            ("/containers/delete", events.ContainerDelete(id="k1"), "t1"),
        ]

    async def test_an_update_without_an_id_is_refused_before_anything_else(self, metadata: MetadataStore) -> None:
        with pytest.raises(InvalidArgument, match=r"^Container\.ID required\Z"):
            await metadata.containers.update(container(""))


@pytest.mark.anyio
class ContentContract:
    """What the store adds to content: texts of bad digests, events (facts/core 4, 11)."""

    async def test_a_bad_digest_is_told_in_the_words_of_each_call(self, metadata: MetadataStore) -> None:
        content = metadata.content
        info = BlobInfo(digest="xx", size=0, created_at_ns=0, updated_at_ns=0)
        with pytest.raises(InvalidArgument, match=r'^"xx" failed validation\Z'):
            await content.info("xx")
        with pytest.raises(InvalidArgument, match=r'^"xx" failed validation\Z'):
            await content.update(info)
        with pytest.raises(InvalidArgument, match=r"^xx: invalid checksum digest format\Z"):
            await content.reader("xx")
        with pytest.raises(InvalidArgument, match=r"^invalid checksum digest format\Z"):
            await content.delete("xx")

    async def test_a_blob_is_published_when_it_comes_and_when_it_goes(
        self, metadata: MetadataStore, bus: FakeBus
    ) -> None:
        with context.use(namespace="t1"):
            digest = await ingest(metadata, b"blob")
            await metadata.content.delete(digest)
            with pytest.raises(NotFound):
                await metadata.content.delete(digest)
        assert [(topic, namespace) for topic, _, namespace in bus.events] == [
            ("/content/create", "t1"),
            ("/content/delete", "t1"),
        ]
        assert bus.events[1][1] == api.event_types.ContentDelete(digest=digest)


@pytest.mark.anyio
class SnapshotterNameContract:
    """Which snapshotter a call means (facts/core 6)."""

    @pytest.mark.parametrize(
        ("name", "text"), [("", "snapshotter argument missing"), ("foo", "snapshotter not loaded: foo")]
    )
    async def test_a_snapshotter_must_be_named_and_loaded(self, metadata: MetadataStore, name: str, text: str) -> None:
        with pytest.raises(InvalidArgument, match=f"^{text}$"):
            metadata.snapshotter(name)


@pytest.mark.anyio
class ImageContract:
    """Images (facts/core 5)."""

    async def test_image_is_created_once_and_announced(self, metadata: MetadataStore, bus: FakeBus) -> None:
        with context.use(namespace="t1"):
            stored = await metadata.images.create(Image(name="i1", target=TARGET, labels={"a": "1", "b": ""}))
            assert stored.labels == {"a": "1"}
            assert await metadata.images.get("i1") == stored
            with pytest.raises(AlreadyExists, match=r'image "i1"\Z'):
                await metadata.images.create(Image(name="i1", target=TARGET))
            await metadata.images.update(Image(name="i1", target=TARGET))
            await metadata.images.delete("i1")
        assert [(topic, namespace) for topic, _, namespace in bus.events] == [
            ("/images/create", "t1"),
            ("/images/update", "t1"),
            ("/images/delete", "t1"),
        ]

    @pytest.mark.parametrize(
        ("image", "text"),
        [
            (Image(name="", target=TARGET), "Image.Name required"),
            (Image(name="i", target=Descriptor("m", "x", 1)), 'target.Digest "x" invalid: '),
            (Image(name="i", target=Descriptor("m", DIGEST, 0)), "target.Size must be greater than zero"),
            (Image(name="i", target=Descriptor("", DIGEST, 1)), "target.MediaType must be set"),
            (Image(name="i", target=TARGET, labels={"k": "v" * 4096}), "image.Labels: label key and value"),
        ],
    )
    async def test_create_validates(self, metadata: MetadataStore, image: Image, text: str) -> None:
        with context.use(namespace="t1"), pytest.raises(InvalidArgument) as failure:
            await metadata.images.create(image)
        assert failure.value.message.startswith(text)

    async def test_an_image_without_a_name_is_refused_before_anything_else(self, metadata: MetadataStore) -> None:
        for change in (metadata.images.create, metadata.images.update):
            with pytest.raises(InvalidArgument, match=r"^Image\.Name required\Z"):
                await change(Image(name="", target=TARGET))

    async def test_source_date_epoch_replaces_now(self, metadata: MetadataStore) -> None:
        with context.use(namespace="t1"):
            made = await metadata.images.create(Image(name="i1", target=TARGET), epoch_ns=5)
            assert (made.created_at_ns, made.updated_at_ns) == (5, 5)
            changed = await metadata.images.update(Image(name="i1", target=TARGET), epoch_ns=7)
            assert (changed.created_at_ns, changed.updated_at_ns) == (5, 7)

    async def test_update_without_mask_replaces_labels_and_target(self, metadata: MetadataStore) -> None:
        other = Descriptor("m", digest_of(b"other"), 5)
        with context.use(namespace="t1"):
            await metadata.images.create(Image(name="i1", target=TARGET, labels={"a": "1"}))
            after = await metadata.images.update(Image(name="i1", target=other))
            assert (after.target, after.labels) == (other, {})

    async def test_update_mask_takes_named_fields_only(self, metadata: MetadataStore) -> None:
        given = Image(name="i1", target=Descriptor("m", DIGEST, 1, {"b": "2"}), labels={"y": "2"})
        with context.use(namespace="t1"):
            await metadata.images.create(Image(name="i1", target=TARGET, labels={"x": "1"}))
            after = await metadata.images.update(given, ["labels.y", "annotations.b"])
            assert after.labels == {"x": "1", "y": "2"}
            assert after.target == msgspec.structs.replace(TARGET, annotations={"a": "1", "b": "2"})
            after = await metadata.images.update(given, ["annotations"])
            assert after.target == msgspec.structs.replace(TARGET, annotations={"b": "2"})
            with pytest.raises(InvalidArgument, match='cannot update "name" field on image "i1"'):
                await metadata.images.update(given, ["name"])
            with pytest.raises(NotFound, match=r'image "zz"\Z'):
                await metadata.images.update(Image(name="zz", target=TARGET))

    async def test_delete_with_another_target_is_refused(self, metadata: MetadataStore) -> None:
        other = Descriptor("m", digest_of(b"other"), 5)
        with context.use(namespace="t1"):
            await metadata.images.create(Image(name="i1", target=TARGET))
            with pytest.raises(NotFound, match=f'image "i1" has target {DIGEST}, not {other.digest}'):
                await metadata.images.delete("i1", target=other)
            await metadata.images.delete("i1", target=TARGET)
            with pytest.raises(NotFound, match=r'image "i1"\Z'):
                await metadata.images.get("i1")

    async def test_list_filters(self, metadata: MetadataStore) -> None:
        with context.use(namespace="t1"):
            for name in ("b", "a"):
                await metadata.images.create(Image(name=name, target=TARGET, labels={"n": name}))
            assert [i.name for i in await metadata.images.list()] == ["a", "b"]
            for filters in (["name==a"], ["labels.n==a"], [f"target.digest=={DIGEST},name!=b"]):
                assert [i.name for i in await metadata.images.list(filters)] == ["a"]
            assert len(await metadata.images.list(["annotations.a==1"])) == 2

    async def test_only_an_expiring_image_is_leased(self, metadata: MetadataStore) -> None:
        expiring = Image(name="i2", target=TARGET, labels={"containerd.io/gc.expire": "2999-01-01T00:00:00Z"})
        with context.use(namespace="t1"):
            await metadata.leases.create("l1", {})
            with context.use(lease="l1"):
                await metadata.images.create(Image(name="i1", target=TARGET))
                await metadata.images.create(expiring)
            assert list(await metadata.leases.resources("l1")) == [Resource("i2", "images")]


@pytest.mark.anyio
class LeaseContract:
    """Leases (facts/core 9)."""

    async def test_lease_is_created_listed_and_deleted(self, metadata: MetadataStore) -> None:
        with context.use(namespace="t1"):
            made = await metadata.leases.create("l1", {"a": "1"})
            assert await metadata.leases.list(["labels.a==1"]) == [made]
            assert await metadata.leases.list(["id==other"]) == []
            with pytest.raises(AlreadyExists, match=r'lease "l1"\Z'):
                await metadata.leases.create("l1", {})
            await metadata.leases.delete("l1")
            with pytest.raises(NotFound, match=r'lease "l1"\Z'):
                await metadata.leases.delete("l1")

    async def test_id_is_made_up_where_none_is_given(self, metadata: MetadataStore) -> None:
        with context.use(namespace="t1"):
            made = await metadata.leases.create("", {})
        nanoseconds, _, suffix = made.id.partition("-")
        assert int(nanoseconds) < timestamps.NANOSECONDS
        assert len(suffix) == 4

    async def test_resources_are_ordered_and_adding_and_deleting_is_idempotent(self, metadata: MetadataStore) -> None:
        held = [Resource(DIGEST, "content"), Resource("i", "images"), Resource("r", "ingests"), Resource("s", LAYERS)]
        with context.use(namespace="t1"):
            await metadata.leases.create("l1", {})
            for resource in [*reversed(held), *held]:
                await metadata.leases.add_resource("l1", resource)
            assert list(await metadata.leases.resources("l1")) == held
            for _ in range(2):
                await metadata.leases.delete_resource("l1", held[0])
            assert list(await metadata.leases.resources("l1")) == held[1:]

    @pytest.mark.parametrize(
        ("resource", "kind", "text"),
        [
            (Resource("x", "content"), InvalidArgument, "invalid content resource id x"),
            (Resource("x", "snapshots"), InvalidArgument, "snapshots"),
            (Resource("x", "snapshots/a/b"), InvalidArgument, "snapshots/a/b"),
            (Resource("x", "images/a"), InvalidArgument, "invalid resource type images/a"),
            (Resource("x", "containers"), Unimplemented, "resource type containers not supported yet"),
        ],
    )
    async def test_resource_types_are_checked(
        self, metadata: MetadataStore, resource: Resource, kind: type[Exception], text: str
    ) -> None:
        with context.use(namespace="t1"):
            await metadata.leases.create("l1", {})
            with pytest.raises(kind, match=text):
                await metadata.leases.add_resource("l1", resource)
            with pytest.raises(kind, match=text):
                await metadata.leases.delete_resource("l1", resource)
            for unknown in (metadata.leases.add_resource, metadata.leases.delete_resource):
                with pytest.raises(NotFound, match=r'lease "zz"\Z'):
                    await unknown("zz", resource)

    async def test_what_a_call_makes_is_in_its_lease(self, metadata: MetadataStore) -> None:
        with context.use(namespace="t1"):
            await metadata.leases.create("l1", {})
            with context.use(lease="l1"):
                digest = await ingest(metadata, b"blob")
                await (await metadata.content.writer("open")).close()
                await committed(metadata, "base")
                await metadata.snapshotter("fake").view("look", "base")
            held = [
                Resource(digest, "content"),
                Resource("open", "ingests"),
                Resource("base", LAYERS),
                Resource("look", LAYERS),
            ]
            assert list(await metadata.leases.resources("l1")) == held
            with context.use(lease="l1"):
                await metadata.content.delete(digest)
                await metadata.content.abort("open")
                await metadata.snapshotter("fake").remove("look")
            assert list(await metadata.leases.resources("l1")) == held[2:3]

    async def test_what_exists_already_is_leased(self, metadata: MetadataStore) -> None:
        with context.use(namespace="t1"):
            digest = await ingest(metadata, b"blob")
            await committed(metadata, "base")
            await metadata.leases.create("l1", {})
            with context.use(lease="l1"):
                with pytest.raises(AlreadyExists):
                    await metadata.content.writer("again", expected=digest)
                with pytest.raises(AlreadyExists):
                    await metadata.snapshotter("fake").prepare("base")
            assert list(await metadata.leases.resources("l1")) == [
                Resource(digest, "content"),
                Resource("base", LAYERS),
            ]

    async def test_unknown_lease_fails_the_operation_and_leaves_nothing(
        self, metadata: MetadataStore, blobs: FakeContentStore, layers: FakeSnapshotter
    ) -> None:
        with context.use(namespace="t1", lease="zz"):
            with pytest.raises(NotFound, match=r"\Alease does not exist\Z"):
                await metadata.content.writer("ref")
            with pytest.raises(NotFound, match=r"\Alease does not exist\Z"):
                await metadata.snapshotter("fake").prepare("s1")
        assert blobs.ingests == {}
        assert layers.infos == {}
