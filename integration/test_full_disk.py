"""A root on a full disk: listing, stopping and deleting work, also after a restart; with room again, all does."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from aiocontainerd.testing.images import BuiltImage, busybox_layer, write_archive
from harness import Ours, Peer, peer

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(180)]

IMAGE = "docker.io/library/busybox:1"
DISK_MIB = 48


class Disk:
    """A small file system at a directory."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory = directory
        self.kind = kind
        self.image = directory.with_name("disk.img")

    def mount(self) -> None:
        self.directory.mkdir()
        if self.kind == "tmpfs":
            command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(self.directory)]
        else:
            with self.image.open("wb") as file:
                file.truncate(DISK_MIB << 20)
            subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(self.image)], check=True)
            command = ["mount", "-o", "loop", str(self.image), str(self.directory)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip(f"{self.kind} cannot be mounted here: {' '.join(command)}")

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.directory)], check=True)

    def fill(self) -> None:
        """Fill the disk to the last byte, block by block at the end."""
        with open(self.directory / "filler", "ab", buffering=0) as filler:
            for size in (1 << 20, 4096, 1):
                with suppress(OSError):
                    while filler.write(bytes(size)):
                        pass

    def empty(self) -> None:
        (self.directory / "filler").unlink()


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, daemon: Peer, tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk", request.param)
    made.mount()
    daemon.root = made.directory / "root"
    try:
        yield made
    finally:
        daemon.clean()
        made.unmount()


@pytest.fixture
def daemon() -> Iterator[Peer]:
    with peer(Ours, start=False) as made:
        yield made


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "busybox.tar"
    write_archive(path, IMAGE, [BuiltImage(layers=[busybox_layer()])])
    return path


def test_a_full_root_can_be_freed_and_recovers_without_a_restart(daemon: Peer, disk: Disk, archive: Path) -> None:
    daemon.start()
    daemon.ctr("images", "import", str(archive))
    daemon.ctr("run", "-d", IMAGE, "b", "sleep", "1000")
    for number in range(30):
        daemon.ctr("snapshots", "prepare", f"s{number}")
    disk.fill()
    refused = daemon.ctr("containers", "create", IMAGE, "new", check=False)
    assert b"no space left" in refused.stderr, refused.stderr
    look_at(daemon)
    free(daemon, range(10))
    daemon.stop()
    disk.fill()
    daemon.start()
    assert "is full: until there is room, only deletions are possible" in daemon.log()
    look_at(daemon)
    free(daemon, range(10, 20))
    disk.fill()
    daemon.ctr("tasks", "kill", "-s", "9", "b")
    daemon.ctr("tasks", "rm", "-f", "b")
    daemon.ctr("containers", "rm", "b")
    free(daemon, range(20, 30))
    daemon.ctr("images", "rm", "--sync", IMAGE)
    blobs = daemon.root / "io.containerd.content.v1.content" / "blobs" / "sha256"
    assert list(blobs.iterdir()) == []
    disk.empty()
    daemon.ctr("images", "import", str(archive))
    daemon.ctr("run", "--rm", IMAGE, "c", "true")
    assert "there is room again" in daemon.log()


def look_at(daemon: Peer) -> None:
    """List what there is, and use the container that runs."""
    assert IMAGE.encode() in daemon.ctr("images", "ls", "-q").stdout
    assert daemon.ctr("containers", "ls", "-q").stdout == b"b\n"
    assert b"RUNNING" in daemon.ctr("tasks", "ls").stdout
    assert b"s29" in daemon.ctr("snapshots", "ls").stdout


def free(daemon: Peer, numbers: range) -> None:
    for number in numbers:
        daemon.ctr("snapshots", "rm", f"s{number}")
