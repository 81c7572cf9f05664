"""Manifests that name their config `application/octet-stream`, as old registries and tools wrote them.

containerd gives such a manifest the type of Docker's configs, which makes another manifest of it (facts/core 14). The
new document is the one that containerd writes, so that both have the same digest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aiocontainerd.distribution import blobs, documents
from aiocontainerd.oci import image as oci
from aiocontainerd.oci.descriptor import Descriptor

if TYPE_CHECKING:
    from aiocontainerd.interfaces.content import ContentStore

_MANIFEST = ("schemaVersion", "mediaType", "artifactType", "config", "layers", "subject", "annotations")
_DESCRIPTOR = ("mediaType", "digest", "size", "urls", "annotations", "data", "platform", "artifactType")
_PLATFORM = ("architecture", "os", "os.version", "os.features", "variant")
_REQUIRED = frozenset({"schemaVersion", "config", "layers", "digest", "size", "architecture", "os"})
_ESCAPED = {character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


async def converted(content: ContentStore, target: Descriptor) -> Descriptor:
    """Return the target with the config's type mended, once the new manifest is stored; any other target as it is."""
    if target.media_type not in oci.MANIFEST_TYPES:
        return target
    data = await blobs.read_all(content, target.digest, limit=oci.MAX_DOCUMENT_BYTES)
    manifest = oci.decode_manifest(data, target.media_type)
    if manifest.config.media_type != oci.LEGACY_CONFIG:
        return target
    changed = mended(json.loads(data))
    made = Descriptor(target.media_type, documents.digest_of(changed), len(changed), target.annotations)
    children = enumerate((manifest.config, *manifest.layers))
    labels = {f"containerd.io/gc.ref.content.{number}": child.digest for number, child in children}
    await blobs.put(content, oci.ingest_key(made), changed, made, labels)
    return made


def mended(manifest: Mapping[str, Any]) -> bytes:
    """Return a manifest with Docker's type for its config, in the form that Go's encoder gives it."""
    config = {**manifest["config"], "mediaType": oci.DOCKER_CONFIG}
    layers = [_descriptor(layer) for layer in manifest.get("layers") or ()]
    ordered = _ordered({**manifest, "config": _descriptor(config), "layers": layers or None}, _MANIFEST)
    text = json.dumps(ordered, indent=3, ensure_ascii=False)
    return "".join(_ESCAPED.get(character, character) for character in text).encode()


def _descriptor(given: Mapping[str, Any]) -> dict[str, Any]:
    platform = given.get("platform")
    return _ordered({"mediaType": "", **given, "platform": platform and _ordered(platform, _PLATFORM)}, _DESCRIPTOR)


def _ordered(given: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of those names in their order. Empty ones are left out unless Go writes them all the same."""
    found = {name: given.get(name) for name in names if given.get(name) or name in _REQUIRED}
    annotations = found.get("annotations")
    return {**found, "annotations": dict(sorted(annotations.items()))} if annotations else found
