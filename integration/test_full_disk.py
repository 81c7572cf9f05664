"""A root on a full disk: listing, stopping and deleting work, also after a restart; with room again, all does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aiocontainerd.testing.images import BuiltImage, busybox_layer, write_archive
from disks import Disk
from harness import Ours, Peer, peer

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(180)]

IMAGE = "docker.io/library/busybox:1"


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
