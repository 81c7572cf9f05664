"""The images that tests make of files at hand."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from aiocontainerd.testing.images import (
    APPLETS,
    IMAGE_NAME,
    INDEX_TYPE,
    MANIFEST_TYPE,
    BuiltImage,
    BuiltLayer,
    busybox_layer,
    entry,
    tar_of,
    write_archive,
)  # fmt: skip

SMALL = tar_of([entry("etc", kind=tarfile.DIRTYPE, mode=0o755), entry("etc/motd", b"hello")])


class Archive:
    """An image layout archive as it is on disk; every blob is checked against its name."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(path) as archive:
            members = {m.name: archive.extractfile(m) for m in archive.getmembers() if m.isreg()}
            self.files = {name: file.read() for name, file in members.items() if file is not None}
        for name, data in self.files.items():
            if name.startswith("blobs/"):
                assert name == f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"

    def blob(self, descriptor: dict[str, Any]) -> bytes:
        data = self.files["blobs/" + descriptor["digest"].replace(":", "/")]
        assert len(data) == descriptor["size"]
        return data

    def json(self, descriptor: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.blob(descriptor))
        return found


@pytest.mark.parametrize("compression", ["tar", "gzip", "zstd"])
def test_a_layer_is_stored_compressed_and_named_by_its_tar(compression: str) -> None:
    layer = BuiltLayer(SMALL, compression)
    stored = layer.blob().data
    plain = {"tar": lambda: stored, "gzip": lambda: gzip.decompress(stored)}.get(
        compression, lambda: zstandard.ZstdDecompressor().decompress(stored)
    )()
    assert plain == SMALL
    assert layer.diff_id == f"sha256:{hashlib.sha256(SMALL).hexdigest()}"
    assert layer.media_type.endswith(".tar" if compression == "tar" else f"+{compression}")


def test_an_archive_of_one_image_names_its_manifest(tmp_path: Path) -> None:
    layer = BuiltLayer(SMALL)
    digest = write_archive(tmp_path / "a.tar", "example.com/x:1", [BuiltImage(layers=[layer], command=["cat"])])
    archive = Archive(tmp_path / "a.tar")
    (named,) = json.loads(archive.files["index.json"])["manifests"]
    assert (named["digest"], named["mediaType"]) == (digest, MANIFEST_TYPE)
    assert named["annotations"][IMAGE_NAME] == "example.com/x:1"
    manifest = archive.json(named)
    config = archive.json(manifest["config"])
    assert config["rootfs"]["diff_ids"] == [layer.diff_id]
    assert config["config"]["Cmd"] == ["cat"]
    assert archive.blob(manifest["layers"][0]) == layer.blob().data


def test_several_platforms_become_an_index_that_shares_layers(tmp_path: Path) -> None:
    images = [
        BuiltImage(layers=[BuiltLayer(SMALL)]),
        BuiltImage(layers=[BuiltLayer(SMALL)], architecture="arm", variant="v7"),
    ]
    digest = write_archive(tmp_path / "a.tar", "x:1", images)
    archive = Archive(tmp_path / "a.tar")
    (named,) = json.loads(archive.files["index.json"])["manifests"]
    assert (named["digest"], named["mediaType"]) == (digest, INDEX_TYPE)
    platforms = [m["platform"] for m in archive.json(named)["manifests"]]
    assert platforms == [
        {"architecture": "amd64", "os": "linux"},
        {"architecture": "arm", "os": "linux", "variant": "v7"},
    ]
    assert sum(name.startswith("blobs/") for name in archive.files) == 1 + 2 + 2 + 1


def test_the_same_image_has_the_same_digest(tmp_path: Path) -> None:
    made = {write_archive(tmp_path / f"{n}.tar", "x:1", [BuiltImage(layers=[BuiltLayer(SMALL)])]) for n in range(2)}
    assert len(made) == 1


def test_a_busybox_layer_has_its_applets_and_accounts(tmp_path: Path) -> None:
    (tmp_path / "busybox").write_bytes(b"program")
    with tarfile.open(fileobj=io.BytesIO(busybox_layer(tmp_path / "busybox").tar)) as layer:
        names = {member.name: member for member in layer.getmembers()}
    assert names["bin/busybox"].mode == 0o755
    assert {f"bin/{applet}" for applet in APPLETS} <= set(names)
    assert names["bin/sh"].linkname == "busybox"
    assert names["tmp"].mode == 0o1777
    assert "etc/passwd" in names
