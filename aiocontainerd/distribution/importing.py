"""Importing image archives: OCI layouts, and what `docker save` writes (facts/core 14).

An archive is read once from start to end: its files go to the content store as they come, and only then the index says
what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import IO, TYPE_CHECKING

import anyio.to_thread
import msgspec

from aiocontainerd.distribution import blobs, documents, images
from aiocontainerd.distribution.archive_files import MAX_JSON_BYTES, ArchiveReader, Contents
from aiocontainerd.distribution.docker_archive import docker_index
from aiocontainerd.distribution.import_names import Naming, names_of
from aiocontainerd.distribution.tar_stream import TarStream
from aiocontainerd.distribution.walk import Handler, Walker
from aiocontainerd.errors import InvalidArgument, NotFound
from aiocontainerd.interfaces.metadata import Image
from aiocontainerd.oci import image as oci
from aiocontainerd.oci import platform
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.oci.platform import Ranking

if TYPE_CHECKING:
    from aiocontainerd.distribution.stores import Stores
    from aiocontainerd.interfaces.content import ContentStore
    from aiocontainerd.oci.image import ChildDescriptor

_NONE: Mapping[str, str] = MappingProxyType({})
LAYOUT_VERSION = "1.0.0"


class ImportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to import and how to name it. `rank` is this host's platform unless given, `index_name` "" no name."""

    naming: Naming
    rank: Ranking = msgspec.field(default_factory=lambda: platform.ranking([platform.default()]))
    all_platforms: bool = False
    index_name: str = ""
    labels: Mapping[str, str] = _NONE


async def import_archive(stores: Stores, source: IO[bytes], options: ImportOptions) -> list[Image]:
    """Import every image that the archive names, under a lease the caller holds (`leases.held`).

    Raises InvalidArgument `unrecognized image format` for another kind of file, NotFound `image might be filtered out`
    where no image of it suits.
    """
    content = stores.content
    contents = await ArchiveReader(content, await anyio.to_thread.run_sync(TarStream, source)).read()
    index = await _index_of(content, contents)
    walker = Walker(
        content, _must_exist(content, contents), options.rank, all_platforms=options.all_platforms, label_all=False
    )
    found: list[Image] = []
    failure: NotFound | None = None
    for child in index.manifests:
        named = _named(child, options)
        if not options.all_platforms and child.platform is not None and options.rank(child.platform) is None:
            failure = NotFound(f"manifest {child.digest} is for {child.platform}; choose one with --platform")
            continue
        try:
            await walker.walk(child.plain())
        except NotFound as error:
            failure = error
            continue
        found += named
    if not found and not options.index_name:
        raise NotFound(f"image might be filtered out ({failure.message if failure else 'nothing in it has a name'})")
    if options.index_name:
        target = await _store_index(content, index)
        found.append(Image(name=options.index_name, target=target, labels=options.labels))
    return [await images.put(stores.images, image) for image in found]


def _named(child: ChildDescriptor, options: ImportOptions) -> list[Image]:
    target = Descriptor(child.media_type, child.digest, child.size)
    names = names_of(child.annotations, child.digest, options.naming)
    return [Image(name=name, target=target, labels=options.labels) for name in names]


def _must_exist(content: ContentStore, contents: Contents) -> Handler:
    here = {stored.digest for stored in contents.files.values()}

    async def check(item: ChildDescriptor) -> None:
        if item.digest not in here and not await blobs.exists(content, item.digest):
            raise NotFound(f"archive: blob {item.digest} is neither in it nor in the content store")

    return check


async def _index_of(content: ContentStore, contents: Contents) -> oci.Index:
    found = contents.documents
    if "oci-layout" in found and "index.json" in found:
        layout = oci.load_json(found["oci-layout"], "oci-layout")
        version = layout.get("imageLayoutVersion") if isinstance(layout, dict) else None
        if version != LAYOUT_VERSION:
            raise InvalidArgument(f"archive: image layout version {version!r} is not supported, only {LAYOUT_VERSION}")
        return oci.decode_index(found["index.json"], oci.OCI_INDEX, limit=MAX_JSON_BYTES)
    if "manifest.json" in found:
        return await docker_index(content, contents)
    raise InvalidArgument("unrecognized image format: neither an OCI layout nor a docker archive")


async def _store_index(content: ContentStore, index: oci.Index) -> Descriptor:
    manifests = [documents.child_json(child) for child in index.manifests]
    data = documents.encode({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": manifests})
    target = Descriptor(oci.OCI_INDEX, documents.digest_of(data), len(data))
    await blobs.put(content, f"index-{target.digest}", data, target, oci.child_labels(index.manifests))
    return target
