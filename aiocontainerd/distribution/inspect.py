"""What an image weighs and runs on, from the blobs that are here; missing ones count as nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiocontainerd.distribution.walk import MAX_DEPTH, read_document
from aiocontainerd.errors import ContainerdError, NotFound
from aiocontainerd.oci import image as oci
from aiocontainerd.oci.image import Manifest

if TYPE_CHECKING:
    from aiocontainerd.client.content import Content
    from aiocontainerd.oci.descriptor import Descriptor


async def summary(content: Content, target: Descriptor, depth: int = 0) -> tuple[int, list[str]]:
    """Bytes of the blobs that are in the content store, and the platforms whose manifests are."""
    try:
        document = await read_document(content, target)
    except ContainerdError:
        return 0, []
    total, platforms = target.size, []
    if document is None or depth > MAX_DEPTH:
        return total, []
    if isinstance(document, Manifest):
        for child in (document.config, *document.layers):
            total += child.size if await content.exists(child.digest) else 0
        return total, await _platform(content, document)
    for entry in document.manifests:
        size, found = await summary(content, entry.plain(), depth + 1)
        total += size
        platforms += found
    return total, list(dict.fromkeys(platforms))


async def _platform(content: Content, manifest: Manifest) -> list[str]:
    if manifest.config.media_type not in oci.CONFIG_TYPES:
        return []
    try:
        config = oci.decode_config(await content.read_all(manifest.config.digest, limit=oci.MAX_DOCUMENT_BYTES))
    except NotFound:
        return []
    return [str(config.platform)] if config.os else []
