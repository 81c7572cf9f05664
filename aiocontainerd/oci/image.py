"""Image documents: index, manifest and config, decoded so strictly that no document can be read as another sort.

Docker's and OCI's types of one sort are treated alike. A document that could pass for another sort is refused
(facts/security 2021-41190). So are documents over 8 MiB and documents that are nested too deep (facts/security 2.4).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from aiocontainerd.errors import InvalidArgument, Unimplemented
from aiocontainerd.oci.descriptor import Descriptor, split_digest
from aiocontainerd.oci.platform import Platform

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
_SCHEMA1_TYPES = frozenset({DOCKER_SCHEMA1, "application/vnd.docker.distribution.manifest.v1+json"})
"""Signed and not signed."""
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
EROFS_LAYER = "application/vnd.erofs.layer.v1"
IN_TOTO = "application/vnd.in-toto+json"
LEGACY_CONFIG = "application/octet-stream"
"""The type that old registries and tools gave to image configs (distribution/distribution#1622)."""

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})
_CHECKPOINT = "application/vnd.containerd.container"
_KNOWN_CONFIGS = CONFIG_TYPES | {
    f"{_CHECKPOINT}.criu.checkpoint.criu.tar",
    f"{_CHECKPOINT}.checkpoint.config.v1+proto",
}
_OCI_LAYERS = "application/vnd.oci.image.layer."
_OTHER_LAYERS = frozenset(
    {DOCKER_LAYER, DOCKER_LAYER_GZIP, f"{DOCKER_LAYER}.zstd", DOCKER_LAYER_FOREIGN, f"{DOCKER_LAYER_FOREIGN}.gzip"}
    | {EROFS_LAYER}
)
NAME_ANNOTATION = "io.containerd.image.name"
REF_ANNOTATION = "org.opencontainers.image.ref.name"

MAX_DOCUMENT_BYTES = 8 << 20
MAX_JSON_DEPTH = 64
MAX_JSON_VALUES = 250_000
"""Twice what an index of MAX_MANIFESTS needs. The bytes alone do not bound the memory that the values take."""
MAX_LAYERS = 1000
MAX_MANIFESTS = 10_000

DocumentT = TypeVar("DocumentT")


class ChildDescriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A descriptor inside an image document. `data` has the bytes of a small blob in base64, or is ""."""

    digest: str
    size: int
    media_type: str = ""
    annotations: dict[str, str] = {}
    urls: tuple[str, ...] = ()
    platform: Platform | None = None
    artifact_type: str = ""
    data: str = ""

    def plain(self) -> Descriptor:
        """Return the record that travels over the API."""
        return Descriptor(self.media_type, self.digest, self.size, self.annotations)


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """The manifest of one platform."""

    config: ChildDescriptor
    layers: tuple[ChildDescriptor, ...] = ()
    schema_version: int = 2
    media_type: str = ""
    annotations: dict[str, str] | None = None


class Index(msgspec.Struct, frozen=True, rename="camel"):
    """A list of manifests, or of further indexes."""

    manifests: tuple[ChildDescriptor, ...] = ()
    schema_version: int = 2
    media_type: str = ""
    annotations: dict[str, str] | None = None


class RootFS(msgspec.Struct, frozen=True):
    """The layers of an image: the digests of their uncompressed tars."""

    type: str = "layers"
    diff_ids: tuple[str, ...] = ()


class ContainerConfig(msgspec.Struct, frozen=True, rename="pascal"):
    """The part of an image config that describes the processes to run."""

    user: str = ""
    env: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    working_dir: str = ""
    labels: dict[str, str] | None = None
    stop_signal: str = ""


class ImageConfig(msgspec.Struct, frozen=True):
    """An image configuration (OCI image specification, config.md)."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    config: ContainerConfig | None = None
    rootfs: RootFS = RootFS()

    @property
    def platform(self) -> Platform:
        """The platform that the image runs on."""
        return Platform(self.os, self.architecture, self.variant)


def decode_index(data: bytes, media_type: str, *, limit: int = MAX_DOCUMENT_BYTES) -> Index:
    """Decode an index. Raises InvalidArgument for a document that is no index or could be something else."""
    index = _decode(data, media_type, Index, limit)
    for child in index.manifests:
        _check(child)
    return index


def decode_manifest(data: bytes, media_type: str) -> Manifest:
    """Decode a manifest. Raises InvalidArgument for a document that is no manifest or could be something else."""
    manifest = _decode(data, media_type, Manifest, MAX_DOCUMENT_BYTES)
    for child in (manifest.config, *manifest.layers):
        _check(child)
    return manifest


def decode_config(data: bytes) -> ImageConfig:
    """Decode an image config. Raises InvalidArgument."""
    return _convert(load_json(data, "image config"), ImageConfig, "image config")


def _decode(data: bytes, media_type: str, kind: type[DocumentT], limit: int) -> DocumentT:
    document = load_json(data, media_type, limit=limit)
    check_unambiguous(document, media_type)
    _check_count(document, "layers", MAX_LAYERS, media_type)
    _check_count(document, "manifests", MAX_MANIFESTS, media_type)
    return _convert(document, kind, media_type)


def _check_count(document: object, key: str, limit: int, what: str) -> None:
    """Raise InvalidArgument for too long a list, before a record is made of each of its members."""
    members = document.get(key) if isinstance(document, dict) else None
    if isinstance(members, list) and len(members) > limit:
        raise InvalidArgument(f"{what} has {len(members)} {key}, more than {limit}")


def _convert(document: object, kind: type[DocumentT], what: str) -> DocumentT:
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"{what}: {error}") from error


def load_json(data: bytes, what: str, *, limit: int = MAX_DOCUMENT_BYTES) -> object:
    """Decode JSON in UTF-8 (RFC 8259, section 8.1). Fields that are `null` are left out: Go writes it for empty lists.

    Raises InvalidArgument for a document in another encoding, that is too large, too deep, has too many values, has a
    key twice, or a number that JSON does not have.
    """
    if len(data) > limit:
        raise InvalidArgument(f"{what} has {len(data)} bytes, more than {limit}")
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_JSON_VALUES:
        raise InvalidArgument(f"{what} has more than {MAX_JSON_VALUES} values")
    try:
        document = json.loads(str(data, "utf-8"), object_pairs_hook=_object, parse_constant=_refused)
        if b"\\u" in data:
            json.dumps(document, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise InvalidArgument(f"{what} is not UTF-8: {error.reason} at {error.start}") from error
    except RecursionError:
        raise InvalidArgument(f"{what} is nested too deep") from None
    except ValueError as error:
        raise InvalidArgument(f"{what} is not valid JSON: {error}") from error
    if _depth(document) > MAX_JSON_DEPTH:
        raise InvalidArgument(f"{what} is nested deeper than {MAX_JSON_DEPTH}")
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key appears twice")
    return {key: value for key, value in pairs if value is not None}


def _refused(constant: str) -> object:
    raise ValueError(f"{constant} is no value")


def _depth(document: object) -> int:
    level, depth = [document], 0
    while level:
        depth += 1
        level = [child for value in level for child in _children(value)]
    return depth


def _children(value: object) -> Sequence[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else ()


def check_unambiguous(document: object, media_type: str) -> None:
    """Raise InvalidArgument for a document that could be read as another sort than `media_type` says."""
    if not isinstance(document, dict):
        raise InvalidArgument(f"{media_type}: not a JSON object")
    if "fsLayers" in document:
        raise InvalidArgument(f"{media_type}: media-type is v2 but the document has fsLayers of schema 1")
    inner = document.get("mediaType", "")
    if media_type in MANIFEST_TYPES and ("manifests" in document or inner in INDEX_TYPES):
        raise InvalidArgument(f"{media_type}: the media type is of a manifest, the document is an index")
    if media_type in INDEX_TYPES and ("config" in document or "layers" in document or inner in MANIFEST_TYPES):
        raise InvalidArgument(f"{media_type}: the media type is of an index, the document is a manifest")


def _check(child: ChildDescriptor) -> None:
    split_digest(child.digest)
    if child.size < 0:
        raise InvalidArgument(f"descriptor {child.digest}: size {child.size} is negative")


def refuse_schema1(media_type: str) -> None:
    """Raise Unimplemented for Docker's oldest manifests, which nobody converts any more, in containerd's words."""
    if media_type in _SCHEMA1_TYPES:
        raise Unimplemented(
            f'media type "{media_type}" is no longer supported since containerd v2.1, please rebuild the image '
            f'as "{DOCKER_MANIFEST}" or "{OCI_MANIFEST}"'
        )


def is_layer(media_type: str) -> bool:
    """Return True for the media type of a file system layer, also one that is compressed, encrypted or foreign.

    Every type of OCI layers counts, and the types of Docker and EROFS with any `+` suffix (facts/core 14).
    """
    return media_type.startswith(_OCI_LAYERS) or media_type.partition("+")[0] in _OTHER_LAYERS


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """Return the chain id of each layer (OCI image specification, config.md: Layer ChainID)."""
    chain: list[str] = []
    for diff_id in diff_ids:
        split_digest(diff_id)
        joined = f"{chain[-1]} {diff_id}" if chain else ""
        chain.append(f"sha256:{hashlib.sha256(joined.encode()).hexdigest()}" if joined else diff_id)
    return chain


def child_labels(children: Sequence[ChildDescriptor]) -> dict[str, str]:
    """Return the labels by which the blob of a parent keeps its children, numbered for each sort (facts/core 10)."""
    counts: dict[str, int] = {}
    labels: dict[str, str] = {}
    for child in children:
        prefix = _label_prefix(child.media_type)
        if prefix.endswith("config"):
            labels[prefix] = child.digest
            continue
        number = counts.get(prefix, 0)
        counts[prefix] = number + 1
        labels[f"{prefix}{number}"] = child.digest
    return labels


def _label_prefix(media_type: str) -> str:
    base = "containerd.io/gc.ref.content."
    if media_type in MANIFEST_TYPES or media_type in INDEX_TYPES:
        return f"{base}m."
    if is_layer(media_type):
        return f"{base}l."
    return f"{base}config" if media_type in _KNOWN_CONFIGS else base


def ingest_key(target: Descriptor) -> str:
    """Return the ref under which a blob is written (facts/core 14)."""
    name = target.annotations.get(REF_ANNOTATION)
    key = target.digest if name is None else f"{name}@{target.digest}"
    return f"{_kind_of(target.media_type)}-{key}"


def _kind_of(media_type: str) -> str:
    if media_type in MANIFEST_TYPES:
        return "manifest"
    if media_type in INDEX_TYPES:
        return "index"
    if is_layer(media_type):
        return "layer"
    if media_type in _KNOWN_CONFIGS:
        return "config"
    return "attestation" if media_type == IN_TOTO else "unknown"
