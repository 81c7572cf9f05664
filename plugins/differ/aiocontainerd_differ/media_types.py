"""Tell which media types are layers, and whether they may be compressed (facts/core 8)."""

from __future__ import annotations

from aiocontainerd.errors import Unknown

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = f"{OCI_LAYER}+gzip"
OCI_LAYER_ZSTD = f"{OCI_LAYER}+zstd"
_OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER = "application/vnd.docker.image.rootfs.diff.tar"
_DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"

_PLAIN = frozenset((OCI_LAYER, _OCI_FOREIGN))
_SNIFFED = frozenset(
    [_DOCKER, _DOCKER_FOREIGN]
    + [f"{base}.{suffix}" for base in (_DOCKER, _DOCKER_FOREIGN) for suffix in ("gzip", "zstd")]
    + [f"{base}+{suffix}" for base in (OCI_LAYER, _OCI_FOREIGN) for suffix in ("gzip", "zstd")]
)


def is_sniffed(media_type: str) -> bool:
    """Return whether the first bytes tell a layer's compression; False for a plain tar.

    Docker's types don't always say that a layer is compressed. Raise Unknown for a type that is no layer.
    """
    if media_type in _PLAIN:
        return False
    if media_type in _SNIFFED:
        return True
    raise Unknown(f"failed to get stream processor for {media_type}: no processor for media-type")
