"""Tell which media types are layers, and whether they may be compressed (facts/core 8)."""

from __future__ import annotations

from aiocontainerd.errors import Unknown

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = f"{OCI_LAYER}+gzip"
OCI_LAYER_ZSTD = f"{OCI_LAYER}+zstd"
_OCI_LAYERS = "application/vnd.oci.image.layer."
_DOCKER_LAYERS = frozenset(
    f"application/vnd.docker.image.rootfs{kind}.diff.tar{suffix}"
    for kind in ("", ".foreign")
    for suffix in ("", ".gzip", ".zstd")
)
_COMPRESSED = frozenset({"gzip", "zstd"})
_ENCRYPTED = "encrypted"


def is_sniffed(media_type: str) -> bool:
    """Return whether the first bytes tell a layer's compression; False for a plain tar.

    Docker's types don't always say that a layer is compressed. Every type of OCI layers is one, whatever its name, and
    its suffix says whether it is compressed. Raise Unknown for a type that is no layer, and for an encrypted one.
    """
    base, *suffixes = media_type.split("+")
    if base in _DOCKER_LAYERS and not suffixes:
        return True
    if (base in _DOCKER_LAYERS or base.startswith(_OCI_LAYERS)) and _ENCRYPTED not in suffixes:
        return bool(_COMPRESSED.intersection(suffixes))
    raise Unknown(f"failed to get stream processor for {media_type}: no processor for media-type")
