"""Small OCI images made from files at hand, as an image layout archive; no registry and no build tool needed.

`python -m aiocontainerd.testing.images busybox.tar` writes an image of this host's static busybox, which
`actr images import` takes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from aiocontainerd.oci import platform as platforms

LAYER_TYPES = {
    "tar": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
BUSYBOX = "docker.io/library/busybox:local"
REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = "io.containerd.image.name"

APPLETS = (
    "cat", "chmod", "chown", "cp", "date", "dd", "echo", "env", "false", "grep", "head", "hostname", "id", "kill", "ln",
    "ls", "mkdir", "mknod", "mount", "mv", "ps", "pwd", "rm", "sh", "sleep", "stat", "stty", "sync", "tail", "touch",
    "true", "tty", "wc", "yes",
)  # fmt: skip


class Blob(msgspec.Struct, frozen=True):
    """Bytes with their descriptor's digest."""

    data: bytes

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"

    def descriptor(self, media_type: str, **more: Any) -> dict[str, Any]:
        """Return the JSON descriptor of this blob."""
        return {"mediaType": media_type, "digest": self.digest, "size": len(self.data), **more}


class BuiltLayer(msgspec.Struct, frozen=True):
    """A layer: the uncompressed tar and how it is compressed (`tar`, `gzip`, `zstd`)."""

    tar: bytes
    compression: str = "gzip"

    @property
    def diff_id(self) -> str:
        return f"sha256:{hashlib.sha256(self.tar).hexdigest()}"

    @property
    def media_type(self) -> str:
        return LAYER_TYPES[self.compression]

    def blob(self) -> Blob:
        """Return the layer as it is stored."""
        return Blob(_COMPRESSORS[self.compression](self.tar))


def _zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


_COMPRESSORS: Mapping[str, Callable[[bytes], bytes]] = {
    "tar": lambda data: data,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": _zstd,
}


def tar_of(entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """Return a tar stream of the entries as they are."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return out.getvalue()


def entry(
    name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    """One tar entry owned by root, at time 0."""
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname = kind, mode, link
    info.size = len(data) if kind == tarfile.REGTYPE else 0
    return info, data


def busybox_layer(busybox: Path | None = None, *, compression: str = "gzip") -> BuiltLayer:
    """Return a root file system of a static busybox, its applets, and the files that programs expect of /etc."""
    program = busybox or Path(shutil.which("busybox") or "/bin/busybox")
    directories = ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var")
    entries = [entry(name, kind=tarfile.DIRTYPE, mode=0o1777 if name == "tmp" else 0o755) for name in directories]
    entries.append(entry("bin/busybox", program.read_bytes(), mode=0o755))
    entries += [entry(f"bin/{applet}", kind=tarfile.SYMTYPE, link="busybox") for applet in APPLETS]
    entries.append(entry("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"))
    entries.append(entry("etc/group", b"root:x:0:\nnogroup:x:65534:\n"))
    return BuiltLayer(tar_of(entries), compression)


class BuiltImage(msgspec.Struct, frozen=True, kw_only=True):
    """One image for one platform. `settings` are further fields of its config, such as `{"User": "app"}`."""

    layers: Sequence[BuiltLayer]
    command: Sequence[str] = ("sh",)
    env: Sequence[str] = ("PATH=/bin",)
    architecture: str = "amd64"
    os: str = "linux"
    variant: str = ""
    settings: Mapping[str, Any] = {}
    config_type: str = CONFIG_TYPE

    def config(self) -> Blob:
        """Return the image configuration (OCI image specification, config.md)."""
        platform = {"architecture": self.architecture, "os": self.os}
        if self.variant:
            platform["variant"] = self.variant
        return _json(
            {
                **platform,
                "config": {"Env": list(self.env), "Cmd": list(self.command), **self.settings},
                "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in self.layers]},
            }
        )

    def blobs(self) -> tuple[Blob, list[Blob]]:
        """Return the manifest, and every blob of the image with the manifest last."""
        layers = [(layer.blob(), layer.media_type) for layer in self.layers]
        config = self.config()
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": config.descriptor(self.config_type),
                "layers": [blob.descriptor(media_type) for blob, media_type in layers],
            }
        )
        return manifest, [*(blob for blob, _ in layers), config, manifest]

    @property
    def platform(self) -> dict[str, str]:
        """The platform as an index tells it."""
        platform = {"architecture": self.architecture, "os": self.os}
        return {**platform, "variant": self.variant} if self.variant else platform


def write_archive(path: Path, name: str, images: Sequence[BuiltImage]) -> str:
    """Write an OCI layout archive that names one image, an index where there are several platforms.

    Returns the digest of the image's target.
    """
    blobs: list[Blob] = []
    manifests: list[dict[str, Any]] = []
    for image in images:
        manifest, own = image.blobs()
        blobs += own
        manifests.append(manifest.descriptor(MANIFEST_TYPE, platform=image.platform))
    if len(manifests) == 1:
        target = manifests[0]
    else:
        index = _json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests})
        blobs.append(index)
        target = index.descriptor(INDEX_TYPE)
    tag = name.rpartition(":")[2]
    named = {**target, "annotations": {IMAGE_NAME: name, REF_NAME: tag}}
    root = _json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [named]})
    entries = [entry("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'), entry("index.json", root.data)]
    unique = {blob.digest: blob for blob in blobs}
    entries += [entry(f"blobs/sha256/{digest.partition(':')[2]}", blob.data) for digest, blob in unique.items()]
    path.write_bytes(tar_of(entries))
    return str(target["digest"])


def write_busybox(path: Path, name: str = BUSYBOX) -> str:
    """Write an archive of one image: this host's static busybox. Return the digest of the image's target."""
    host = platforms.default()
    image = BuiltImage(layers=[busybox_layer()], architecture=host.architecture, variant=host.variant)
    return write_archive(path, name, [image])


def main(argv: Sequence[str] | None = None) -> None:
    """Write an image of busybox and print its name."""
    parser = argparse.ArgumentParser(description="Write an image of this host's static busybox, without a network.")
    parser.add_argument("archive", type=Path, help="file to write")
    parser.add_argument("name", nargs="?", default=BUSYBOX, help="name of the image [default: %(default)s]")
    asked = parser.parse_args(argv)
    try:
        write_busybox(asked.archive, asked.name)
    except OSError as error:
        parser.exit(1, f"{error.filename}: {error.strerror}; Debian's package busybox-static brings a busybox\n")
    sys.stdout.write(f"{asked.name}\n")


def _json(value: Any) -> Blob:
    return Blob(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


if __name__ == "__main__":
    main()
