"""Layers as real tools write them, through `ctr` to a container that reads their files."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiocontainerd.testing.images import Blob, BuiltImage, BuiltLayer, busybox_layer, write_archive
from harness import Ours, Peer, peer

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(120)]

BLOCK = 4096
COMMANDS = {
    "gnu": "tar --format=gnu -S -c files",
    "pax-0.0": "tar --format=pax -S --sparse-version=0.0 -c files",
    "pax-0.1": "tar --format=pax -S --sparse-version=0.1 -c files",
    "pax-1.0": "tar --format=pax -S --sparse-version=1.0 -c files",
    "bsdtar": "bsdtar --format=pax -cf - files",
}


class CutLayer(BuiltLayer, frozen=True):
    """A layer that lost its last bytes on the way to whoever described it."""

    def blob(self) -> Blob:
        return Blob(super().blob().data[:-3])


@pytest.fixture(scope="module")
def ours() -> Iterator[Peer]:
    with peer(Ours) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a directory with a file of many holes, one that is all hole, and one of none."""
    made = tmp_path_factory.mktemp("layer") / "files"
    made.mkdir()
    with (made / "many").open("wb") as file:
        for number in range(30):
            file.seek((2 * number + 1) * BLOCK)
            file.write(bytes([number + 1]) * BLOCK)
        file.truncate(100 * BLOCK)
    with (made / "hole").open("wb") as file:
        file.truncate(7 * BLOCK)
    (made / "whole").write_bytes(b"whole" * 1000)
    return made


def imported(daemon: Peer, name: str, layer: BuiltLayer) -> str:
    """Import an image of busybox and a layer; return its name."""
    archive = daemon.directory / f"{name}.tar"
    write_archive(archive, f"docker.io/library/{name}:1", [BuiltImage(layers=[busybox_layer(), layer])])
    daemon.ctr("images", "import", "--no-unpack", str(archive))
    return f"docker.io/library/{name}:1"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("compression", ["tar", "gzip", "zstd"])
def test_files_with_holes_arrive_whole(ours: Peer, files: Path, command: str, compression: str) -> None:
    tar = subprocess.run(COMMANDS[command].split(), cwd=files.parent, capture_output=True, check=True).stdout
    name = f"{command}-{compression}"
    image = imported(ours, name, BuiltLayer(tar, compression))
    for path in files.iterdir():
        read = ours.ctr("run", "--rm", image, f"{name}-{path.name}", "cat", f"/files/{path.name}").stdout
        assert hashlib.sha256(read).digest() == hashlib.sha256(path.read_bytes()).digest(), path.name


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_layer_that_is_cut_is_named(ours: Peer, files: Path, compression: str) -> None:
    tar = subprocess.run(["tar", "-c", "files"], cwd=files.parent, capture_output=True, check=True).stdout
    layer = CutLayer(tar, compression)
    image = imported(ours, f"cut-{compression}", layer)
    refused = ours.ctr("run", "--rm", image, "cut", "true", check=False)
    assert refused.returncode != 0
    assert f"failed to apply layer {layer.blob().digest}: {compression} stream ends early" in refused.stderr.decode()
