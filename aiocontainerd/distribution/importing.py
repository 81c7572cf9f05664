"""Importing image archives, OCI layouts and what `docker save` writes (facts/core 14).

An archive is read once from start to end: its files go to the content store as they come, and only then the index says
what they are. JSON is read up to 20 MiB. Nothing but the content store is written, whatever the archive's names are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import IO, TYPE_CHECKING

import anyio
import anyio.to_thread
import msgspec

from aiocontainerd import labels
from aiocontainerd.distribution import blobs, images
from aiocontainerd.distribution.import_names import Naming, names_of
from aiocontainerd.distribution.tar_stream import Entry, TarStream
from aiocontainerd.distribution.walk import Handler, Walker
from aiocontainerd.errors import AlreadyExists, InvalidArgument, NotFound
from aiocontainerd.interfaces.metadata import Image
from aiocontainerd.oci import image as oci
from aiocontainerd.oci import platform, reference
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.oci.platform import Ranking

if TYPE_CHECKING:
    from aiocontainerd.distribution.stores import Stores
    from aiocontainerd.interfaces.content import ContentStore
    from aiocontainerd.oci.image import ChildDescriptor

_NONE: Mapping[str, str] = MappingProxyType({})
MAX_JSON_BYTES = 20 << 20
LAYOUT_VERSION = "1.0.0"
_DOCUMENTS = ("oci-layout", "index.json", "manifest.json")
_MAX_LINKS = 16


class Stored(msgspec.Struct, frozen=True):
    """A file of the archive as it is in the content store, with its first bytes."""

    digest: str
    size: int
    start: bytes


class _Saved(msgspec.Struct, frozen=True, rename="pascal"):
    """One image of a docker-save `manifest.json`."""

    config: str
    layers: tuple[str, ...] = ()
    repo_tags: tuple[str, ...] | None = None


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive held: its JSON documents, the files stored, its links."""

    documents: Mapping[str, bytes]
    files: Mapping[str, Stored]
    links: Mapping[str, str]

    def find(self, path: str) -> Stored:
        """Return the file behind a path, through links. Raises InvalidArgument naming the missing path."""
        at = path
        for _ in range(_MAX_LINKS):
            if at in self.files:
                return self.files[at]
            if at not in self.links:
                break
            at = self.links[at]
        raise InvalidArgument(f'archive: manifest.json names "{path}", which is not in it')


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
    contents = await _Reader(content, await anyio.to_thread.run_sync(TarStream, source)).read()
    index = await _index_of(content, contents)
    walker = Walker(
        content, _must_exist(content, contents), options.rank, all_platforms=options.all_platforms, label_all=False
    )
    found: list[Image] = []
    failure: NotFound | None = None
    for child in index.manifests:
        named = _named(child, options)
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


class _Reader:
    """Reads an archive to its end and stores its files."""

    def __init__(self, content: ContentStore, stream: TarStream) -> None:
        self._content = content
        self._stream = stream

    async def read(self) -> Contents:
        documents: dict[str, bytes] = {}
        files: dict[str, Stored] = {}
        links: dict[str, str] = {}
        while (entry := await anyio.to_thread.run_sync(self._stream.next)) is not None:
            if entry.kind == "link":
                links[entry.name] = entry.link
            elif entry.kind == "file" and entry.name in _DOCUMENTS:
                documents[entry.name] = await self._document(entry)
            elif entry.kind == "file" and entry.size:
                files[entry.name] = await self._store(entry)
        return Contents(documents=documents, files=files, links=links)

    async def _document(self, entry: Entry) -> bytes:
        if entry.size > MAX_JSON_BYTES:
            raise InvalidArgument(f"archive: {entry.name} has {entry.size} bytes, more than {MAX_JSON_BYTES}")
        parts: list[bytes] = []
        while data := await anyio.to_thread.run_sync(self._stream.read):
            parts.append(data)
        return b"".join(parts)

    async def _store(self, entry: Entry) -> Stored:
        ref, hashed, start = f"tar-{entry.name}", hashlib.sha256(), b""
        try:
            async with await blobs.writer(self._content, ref, total=entry.size) as writer:
                await writer.truncate()
                while data := await anyio.to_thread.run_sync(self._stream.read):
                    start = start or data[:8]
                    await anyio.to_thread.run_sync(hashed.update, data)
                    await writer.write(data)
                digest = f"sha256:{hashed.hexdigest()}"
                _check_named(entry, digest)
                await writer.commit(entry.size, digest)
        except AlreadyExists:
            pass
        except BaseException:
            await blobs.discard(self._content, ref)
            raise
        return Stored(f"sha256:{hashed.hexdigest()}", entry.size, start)


def _check_named(entry: Entry, digest: str) -> None:
    """Raise InvalidArgument where the name of a blob is a digest that its bytes do not have."""
    if entry.name.startswith("blobs/sha256/") and entry.name != digest.replace(":", "/").replace("sha", "blobs/sha", 1):
        raise InvalidArgument(f"archive: {entry.name} has digest {digest}; the archive is damaged")


async def _index_of(content: ContentStore, contents: Contents) -> oci.Index:
    documents = contents.documents
    if "oci-layout" in documents and "index.json" in documents:
        layout = oci.load_json(documents["oci-layout"], "oci-layout")
        version = layout.get("imageLayoutVersion") if isinstance(layout, dict) else None
        if version != LAYOUT_VERSION:
            raise InvalidArgument(f"archive: image layout version {version!r} is not supported, only {LAYOUT_VERSION}")
        return oci.decode_index(documents["index.json"], oci.OCI_INDEX, limit=MAX_JSON_BYTES)
    if "manifest.json" in documents:
        return await _docker_index(content, contents)
    raise InvalidArgument("unrecognized image format: neither an OCI layout nor a docker archive")


async def _docker_index(content: ContentStore, contents: Contents) -> oci.Index:
    try:
        saved = msgspec.json.decode(contents.documents["manifest.json"], type=list[_Saved])
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidArgument(f"archive: manifest.json: {error}") from error
    children: list[ChildDescriptor] = []
    for item in saved:
        children += await _docker_manifest(content, contents, item)
    return oci.Index(tuple(children), media_type=oci.OCI_INDEX)


async def _docker_manifest(content: ContentStore, contents: Contents, saved: _Saved) -> list[ChildDescriptor]:
    config = contents.find(saved.config)
    parsed = oci.decode_config(await blobs.read_all(content, config.digest, limit=oci.MAX_DOCUMENT_BYTES))
    layers = [await _docker_layer(content, contents.find(path)) for path in saved.layers]
    manifest = _document(
        {
            "schemaVersion": 2,
            "mediaType": oci.DOCKER_MANIFEST,
            "config": _json(oci.ChildDescriptor(config.digest, config.size, oci.DOCKER_CONFIG)),
            "layers": [_json(layer) for layer in layers],
        }
    )
    target = Descriptor(oci.DOCKER_MANIFEST, _digest(manifest), len(manifest))
    await blobs.put(content, f"manifest-{target.digest}", manifest, target)
    child = oci.ChildDescriptor(target.digest, target.size, target.media_type, platform=parsed.platform)
    return [msgspec.structs.replace(child, annotations=a) for a in _tag_annotations(saved.repo_tags or ())] or [child]


def _tag_annotations(tags: Sequence[str]) -> list[dict[str, str]]:
    full = [reference.normalize(tag) for tag in tags]
    return [{oci.NAME_ANNOTATION: name, oci.REF_ANNOTATION: reference.parse(name).tag} for name in full]


async def _docker_layer(content: ContentStore, stored: Stored) -> ChildDescriptor:
    """Return the descriptor of a layer. An uncompressed layer gives way to a compressed blob of the same layer."""
    if stored.start.startswith(b"\x1f\x8b"):
        return oci.ChildDescriptor(stored.digest, stored.size, oci.DOCKER_LAYER_GZIP)
    if stored.start.startswith(b"\x28\xb5\x2f\xfd"):
        return oci.ChildDescriptor(stored.digest, stored.size, f"{oci.DOCKER_LAYER}.zstd")
    async for info in content.walk([f'labels."{labels.UNCOMPRESSED}"=={stored.digest}']):
        if info.digest != stored.digest:
            return oci.ChildDescriptor(info.digest, info.size, oci.DOCKER_LAYER_GZIP)
    return oci.ChildDescriptor(stored.digest, stored.size, oci.DOCKER_LAYER)


async def _store_index(content: ContentStore, index: oci.Index) -> Descriptor:
    data = _document({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": [_json(c) for c in index.manifests]})
    target = Descriptor(oci.OCI_INDEX, _digest(data), len(data))
    await blobs.put(content, f"index-{target.digest}", data, target, oci.child_labels(index.manifests))
    return target


def _json(child: ChildDescriptor) -> dict[str, object]:
    made: dict[str, object] = {"mediaType": child.media_type, "digest": child.digest, "size": child.size}
    if child.annotations:
        made["annotations"] = child.annotations
    if child.platform is not None:
        plain = msgspec.to_builtins(child.platform)
        made["platform"] = {key: value for key, value in plain.items() if value}
    return made


def _document(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
