"""A root on a full disk: listing, stopping and deleting work, also after a restart; with room again, all does.

A root on a read-only disk is refused and not touched; containers run on, and a start on a writable one has them again.
"""

from __future__ import annotations

import os
import signal
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
        self.broken = False
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

    def break_down(self) -> None:
        """Let the kernel find damage, so that it makes the disk read-only under its users. It stays so."""
        subprocess.run(["mount", "-o", "remount,errors=remount-ro", str(self.directory)], check=True)
        source = subprocess.run(
            ["findmnt", "-no", "SOURCE", str(self.directory)], check=True, capture_output=True, text=True
        ).stdout.strip()
        trigger = Path("/sys/fs/ext4") / Path(source).name / "trigger_fs_error"
        if not os.access(trigger, os.W_OK):
            pytest.skip("this kernel cannot be told to find damage in ext4")
        self.broken = True
        trigger.write_text("1")

    def remount(self, mode: str) -> None:
        """Make the disk read-only, `ro`, or writable, `rw`."""
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.directory)], check=True)

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
        if not made.broken:
            made.remount("rw")
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


def test_a_read_only_root_is_refused_and_its_containers_run_on(daemon: Peer, disk: Disk, archive: Path) -> None:
    daemon.start()
    daemon.ctr("images", "import", str(archive))
    daemon.ctr("run", "-d", IMAGE, "b", "sleep", "1000")
    daemon.ctr("snapshots", "prepare", "s29")
    # Killed: the database has a log that is not copied into it.
    daemon.stop(signal.SIGKILL)
    disk.remount("ro")
    before = daemon.log()
    with pytest.raises(AssertionError, match="the daemon ended with status 1"):
        daemon.start()
    (line,) = daemon.log().removeprefix(before).splitlines()
    assert f"root directory {daemon.root} cannot be used: Read-only file system ({disk.kind}, " in line
    assert line.endswith(f"Containers run on. Start again after: mount -o remount,rw {disk.directory}")
    disk.remount("rw")
    daemon.start()
    look_at(daemon)
    assert daemon.ctr("tasks", "exec", "--exec-id", "e", "b", "echo", "hello").stdout == b"hello\n"


@pytest.mark.parametrize("disk", ["ext4"], indirect=True)
def test_a_root_that_becomes_read_only_is_still_read_and_changes_name_the_cause(
    daemon: Peer, disk: Disk, archive: Path
) -> None:
    daemon.start()
    daemon.ctr("images", "import", str(archive))
    daemon.ctr("snapshots", "prepare", "s29")
    disk.break_down()
    for change in (("containers", "create", IMAGE, "new"), ("images", "rm", IMAGE), ("snapshots", "rm", "s29")):
        refused = daemon.ctr(*change, check=False)
        assert b"db: read-only file system" in refused.stderr, refused.stderr
    assert IMAGE.encode() in daemon.ctr("images", "ls", "-q").stdout
    assert b"s29" in daemon.ctr("snapshots", "ls").stdout
    assert daemon.log().count("db: read-only file system; until it can be written, changes are refused") == 1


def look_at(daemon: Peer) -> None:
    """List what there is, and use the container that runs."""
    assert IMAGE.encode() in daemon.ctr("images", "ls", "-q").stdout
    assert daemon.ctr("containers", "ls", "-q").stdout == b"b\n"
    assert b"RUNNING" in daemon.ctr("tasks", "ls").stdout
    assert b"s29" in daemon.ctr("snapshots", "ls").stdout


def free(daemon: Peer, numbers: range) -> None:
    for number in numbers:
        daemon.ctr("snapshots", "rm", f"s{number}")
