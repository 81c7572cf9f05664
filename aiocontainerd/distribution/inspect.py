"""Size and platforms of an image, from the blobs that the content store has; missing ones count as nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiocontainerd.distribution import blobs
from aiocontainerd.distribution.walk import MAX_DEPTH, read_document
from aiocontainerd.errors import ContainerdError
from aiocontainerd.oci import image as oci
from aiocontainerd.oci.image import Manifest

if TYPE_CHECKING:
    from aiocontainerd.interfaces.content import ContentStore
    from aiocontainerd.oci.descriptor import Descriptor


async def summary(content: ContentStore, target: Descriptor, depth: int = 0) -> tuple[int, list[str]]:
    """Return the bytes of the blobs that the content store has, and the platforms whose manifests it has."""
    try:
        document = await read_document(content, target)
    except ContainerdError:
        return 0, []
    total, platforms = target.size, []
    if document is None or depth > MAX_DEPTH:
        return total, []
    if isinstance(document, Manifest):
        for child in (document.config, *document.layers):
            total += child.size if await blobs.exists(content, child.digest) else 0
        return total, await _platform(content, document)
    for entry in document.manifests:
        size, found = await summary(content, entry.plain(), depth + 1)
        total += size
        platforms += found
    return total, list(dict.fromkeys(platforms))


async def _platform(content: ContentStore, manifest: Manifest) -> list[str]:
    try:
        config = oci.decode_config(await blobs.read_all(content, manifest.config.digest, limit=oci.MAX_DOCUMENT_BYTES))
    except ContainerdError:
        return []
    return [str(config.platform)] if config.os else []
