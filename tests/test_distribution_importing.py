"""Importing archives over a connection and inside a daemon, honest and hostile ones (facts/core 13, 14)."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType

import msgspec
import pytest

from aiocontainerd.distribution import Stores
from aiocontainerd.distribution.import_names import Naming
from aiocontainerd.distribution.importing import ImportOptions, import_archive
from aiocontainerd.distribution.leases import held
from aiocontainerd.distribution.unpack import unpack_image
from aiocontainerd.errors import ContainerdError, InvalidArgument, NotFound
from aiocontainerd.interfaces.metadata import Image
from aiocontainerd.oci import image as oci
from aiocontainerd.oci import platform
from aiocontainerd.testing import images

pytestmark = pytest.mark.anyio
pytest_plugins = ["aiocontainerd.testing.image_stores"]

StoresOf = Callable[[], AbstractContextManager[Stores]]
NAME = "docker.io/library/t:1"
LAYER = images.BuiltLayer(images.tar_of([images.entry("a", b"data" * 50_000)]))
HOST = platform.default()
IMAGE = images.BuiltImage(layers=[LAYER], architecture=HOST.architecture, os=HOST.os, variant=HOST.variant)
MANIFEST, BLOBS = IMAGE.blobs()
OPTIONS = ImportOptions(naming=Naming(prefix="import", allow_overwrite=True))


def layout(blobs: Sequence[images.Blob] = BLOBS, renamed: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """Return an OCI layout that names one image; `renamed` has other digests for the names of blobs."""
    named = MANIFEST.descriptor(oci.OCI_MANIFEST, annotations={images.IMAGE_NAME: NAME})
    index = {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": [named]}
    entries = [
        images.entry("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
        images.entry("index.json", json.dumps(index).encode()),
    ]
    entries += [
        images.entry(f"blobs/sha256/{renamed.get(blob.digest, blob.digest).removeprefix('sha256:')}", blob.data)
        for blob in blobs
    ]
    return images.tar_of(entries)


def saved(layer: bytes, layer_path: str = "l/layer.tar") -> bytes:
    """Return the archive that `docker save` writes of an image."""
    item = {"Config": "c.json", "Layers": [layer_path], "RepoTags": ["t:1"]}
    entries = [images.entry("l/layer.tar", layer), images.entry("c.json", IMAGE.config().data)]
    return images.tar_of([*entries, images.entry("manifest.json", json.dumps([item]).encode())])


async def imported(stores: Stores, archive: bytes, options: ImportOptions = OPTIONS) -> list[Image]:
    async with held(stores.leases):
        found = await import_archive(stores, io.BytesIO(archive), options)
        for image in found:
            await unpack_image(stores, image.target, options.rank, "native")
    return found


@pytest.mark.parametrize(
    ("archive", "target"),
    [
        (layout(), oci.OCI_MANIFEST),
        (gzip.compress(layout()), oci.OCI_MANIFEST),
        (saved(LAYER.tar), oci.DOCKER_MANIFEST),
        (saved(LAYER.blob().data), oci.DOCKER_MANIFEST),
    ],
    ids=["layout", "compressed layout", "docker save", "docker save with a compressed layer"],
)
async def test_an_archive_is_imported_named_and_unpacked(stores_of: StoresOf, archive: bytes, target: str) -> None:
    with stores_of() as stores:
        (image,) = await imported(stores, archive)
        assert (image.name, image.target.media_type) == (NAME, target)
        assert await stores.images.list() == [image]
        (snapshot,) = [info async for info in stores.snapshotter("native").walk()]
        assert snapshot.name == LAYER.diff_id
        assert (await stores.leases.list(), await stores.content.statuses()) == ([], [])


async def test_a_second_import_changes_nothing(stores_of: StoresOf, collect: Callable[[], Awaitable[object]]) -> None:
    with stores_of() as stores:
        for _ in range(2):
            await imported(stores, layout())
            await collect()
            assert {info.digest async for info in stores.content.walk()} == {blob.digest for blob in BLOBS}
            assert [image.name for image in await stores.images.list()] == [NAME]


async def test_the_index_is_named_as_well(stores_of: StoresOf) -> None:
    options = ImportOptions(naming=Naming(), index_name="i:1", labels={"k": "v"})
    with stores_of() as stores:
        async with held(stores.leases):
            found = await import_archive(stores, io.BytesIO(layout()), options)
        assert {image.name: image.target.media_type for image in found}["i:1"] == oci.OCI_INDEX
        assert found[-1].labels == {"k": "v"}


@pytest.mark.parametrize("all_platforms", [False, True])
async def test_other_platforms_are_kept_only_where_all_are_wanted(
    stores_of: StoresOf, collect: Callable[[], Awaitable[object]], tmp_path: Path, all_platforms: bool
) -> None:
    foreign = images.BuiltImage(layers=[LAYER], architecture="other", os="plan9")
    images.write_archive(tmp_path / "image.tar", NAME, [IMAGE, foreign])
    options = msgspec.structs.replace(OPTIONS, all_platforms=all_platforms)
    with stores_of() as stores:
        await imported(stores, (tmp_path / "image.tar").read_bytes(), options)
        await collect()
        digests = {info.digest async for info in stores.content.walk()}
    assert {blob.digest for blob in BLOBS} < digests
    assert (foreign.blobs()[0].digest in digests) == all_platforms


def saved_long_ago(*, link: str = "../1/layer.tar", architecture: str = HOST.architecture) -> bytes:
    """Return what old versions of docker save: a directory for each layer, links, `repositories`."""
    config = json.loads(IMAGE.config().data) | {"architecture": architecture}
    config["rootfs"]["diff_ids"] *= 2
    linked = tarfile.TarInfo("2/layer.tar")
    linked.type, linked.linkname = tarfile.SYMTYPE, link
    item = {"Config": "c.json", "RepoTags": ["t:1"], "Layers": ["1/layer.tar", "2/layer.tar"]}
    return images.tar_of(
        [
            images.entry("2/VERSION", b"1.0"),
            images.entry("2/json", b'{"id":"2","parent":"1","os":"linux"}'),
            (linked, b""),
            images.entry("1/VERSION", b"1.0"),
            images.entry("1/json", b'{"id":"1"}'),
            images.entry("1/layer.tar", LAYER.tar),
            images.entry("c.json", json.dumps({**config, "parent": None, "container": "x"}).encode()),
            images.entry("manifest.json", json.dumps([item]).encode()),
            images.entry("repositories", b'{"t":{"1":"2"}}'),
        ]
    )


async def test_an_archive_of_an_old_docker_is_imported(
    stores_of: StoresOf, collect: Callable[[], Awaitable[object]]
) -> None:
    with stores_of() as stores:
        (image,) = await imported(stores, saved_long_ago())
        await collect()
        assert (image.name, image.target.media_type) == (NAME, oci.DOCKER_MANIFEST)
        assert len([info async for info in stores.snapshotter("native").walk()]) == 2
        assert len([info async for info in stores.content.walk()]) == 3, "manifest, config, layer"


async def test_a_layer_may_be_an_empty_file(stores_of: StoresOf) -> None:
    empty = images.BuiltLayer(b"", "tar")
    config = json.loads(IMAGE.config().data)
    config["rootfs"]["diff_ids"].append(empty.diff_id)
    item = {"Config": "c.json", "Layers": ["l", "e"], "RepoTags": ["t:1"]}
    entries = [images.entry("l", LAYER.tar), images.entry("e"), images.entry("c.json", json.dumps(config).encode())]
    archive = images.tar_of([*entries, images.entry("manifest.json", json.dumps([item]).encode())])
    with stores_of() as stores:
        await imported(stores, archive)
        assert len([info async for info in stores.snapshotter("native").walk()]) == 2


async def test_an_image_of_another_platform_is_filtered_out_unless_it_is_asked_for(stores_of: StoresOf) -> None:
    archive = saved_long_ago(architecture="other")
    with stores_of() as stores:
        with pytest.raises(NotFound, match=r"image might be filtered out .*other"):
            await imported(stores, archive)
        (image,) = await imported(stores, archive, msgspec.structs.replace(OPTIONS, all_platforms=True))
        assert image.name == NAME


_OTHER = images.Blob(b"other")
HOSTILE: Mapping[str, tuple[bytes, type[ContainerdError], str]] = {
    "no archive": (b"no tar" * 200, InvalidArgument, "unrecognized image format"),
    "no image": (images.tar_of([images.entry("x", b"y")]), InvalidArgument, "unrecognized image format"),
    "a blob under another digest": (layout(renamed={MANIFEST.digest: _OTHER.digest}), InvalidArgument, "is damaged"),
    "a blob less": (layout([b for b in BLOBS if b != LAYER.blob()]), NotFound, "image might be filtered out"),
    "the end missing": (saved(LAYER.tar)[:100_000], InvalidArgument, "unexpected end of the tar"),
    "a name that leaves it": (saved(LAYER.tar, "../../x"), InvalidArgument, "which is not in it"),
    "a layer that links nowhere": (saved_long_ago(link="../3/layer.tar"), InvalidArgument, "which is not in it"),
    "a layer that links to itself": (saved_long_ago(link="layer.tar"), InvalidArgument, "which is not in it"),
    "a layer of another image": (saved(b"z" * 600), ContainerdError, "failed to extract layer"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
async def test_a_hostile_archive_leaves_neither_ingest_nor_lease_nor_snapshot(stores_of: StoresOf, case: str) -> None:
    archive, kind, text = HOSTILE[case]
    with stores_of() as stores:
        with pytest.raises(kind, match=text):
            await imported(stores, archive)
        assert (await stores.leases.list(), await stores.content.statuses()) == ([], [])
        assert [info async for info in stores.snapshotter("native").walk()] == []


async def test_an_archive_in_a_file_is_read_beside_the_loop(stores_of: StoresOf, tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    images.write_archive(path, NAME, [IMAGE])
    with stores_of() as stores, path.open("rb") as source:
        async with held(stores.leases):
            assert len(await import_archive(stores, source, OPTIONS)) == 1
