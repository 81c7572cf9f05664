"""Image archives that `docker save` writes: their `manifest.json` becomes an index of manifests (facts/core 14)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from aiocontainerd import labels
from aiocontainerd.distribution import blobs, documents
from aiocontainerd.errors import InvalidArgument
from aiocontainerd.oci import image as oci
from aiocontainerd.oci import reference
from aiocontainerd.oci.descriptor import Descriptor

if TYPE_CHECKING:
    from aiocontainerd.distribution.archive_files import Contents, Stored
    from aiocontainerd.interfaces.content import ContentStore
    from aiocontainerd.oci.image import ChildDescriptor


class _Saved(msgspec.Struct, frozen=True, rename="pascal"):
    """One image of a docker-save `manifest.json`."""

    config: str
    layers: tuple[str, ...] = ()
    repo_tags: tuple[str, ...] | None = None


async def docker_index(content: ContentStore, contents: Contents) -> oci.Index:
    """Return the index of what `manifest.json` names, once the manifests are stored. Raises InvalidArgument."""
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
    manifest = documents.encode(
        {
            "schemaVersion": 2,
            "mediaType": oci.DOCKER_MANIFEST,
            "config": documents.child_json(oci.ChildDescriptor(config.digest, config.size, oci.DOCKER_CONFIG)),
            "layers": [documents.child_json(layer) for layer in layers],
        }
    )
    target = Descriptor(oci.DOCKER_MANIFEST, documents.digest_of(manifest), len(manifest))
    await blobs.put(content, f"manifest-{target.digest}", manifest, target)
    child = oci.ChildDescriptor(
        target.digest, target.size, target.media_type, platform=parsed.platform if parsed.os else None
    )
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
