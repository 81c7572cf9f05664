"""A root on a read-only disk: what can be served is, changes name the cause, and all works again without a restart."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aiocontainerd.testing.images import BuiltImage, busybox_layer, write_archive
from disks import Disk
from harness import SCRIPTS, Ours, Peer, peer

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(240)]

IMAGE = "docker.io/library/busybox:1"
READ_ONLY = b"read-only file system"
WAIT_S = 120.0


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, daemon: Peer, tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk", request.param)
    made.mount()
    daemon.root = made.directory / "root"
    try:
        yield made
    finally:
        if not made.broken:
            made.remount("rw", 0 if daemon.process is None else daemon.pid)
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


def test_a_read_only_root_is_read_and_recovers_by_itself(daemon: Peer, disk: Disk, archive: Path) -> None:
    populate(daemon, archive, "b", "gone")
    # Killed: the databases have logs that are not copied into them.
    daemon.stop(signal.SIGKILL)
    disk.remount("ro")
    before, started = listing(disk.directory), len(daemon.log())
    daemon.start()
    (line,) = [line for line in daemon.log()[started:].splitlines() if "read-only" in line]
    assert f"root directory {daemon.root} is on a read-only file system ({disk.kind}, " in line
    assert f"mount -o remount,rw {disk.directory}" in line
    look_at(daemon)
    refuse_changes(daemon, archive)
    assert {"bolt", "content", "overlayfs"} <= set(read_only_plugins(daemon))
    daemon.ctr("tasks", "kill", "-s", "9", "gone")
    until(lambda: b"STOPPED" in daemon.ctr("tasks", "ls").stdout)
    daemon.ctr("tasks", "rm", "gone")
    stays = re.compile(r"the bundle of task \S+/gone could not be removed: \S+/gone \S+/.gone: read-only file system")
    until(lambda: bool(stays.search(daemon.log())))
    assert b"gone" not in daemon.ctr("tasks", "ls").stdout
    assert READ_ONLY in daemon.ctr("containers", "rm", "gone", check=False).stderr
    assert READ_ONLY in daemon.ctr("tasks", "start", "-d", "gone", check=False).stderr
    assert "[Errno" not in daemon.log()[started:]
    assert listing(disk.directory) == before
    pid = daemon.pid
    disk.remount("rw", pid)
    until(lambda: changes(daemon))
    assert daemon.pid == pid
    assert "can be written again; starting anew" in daemon.log()
    look_at(daemon)
    assert read_only_plugins(daemon) == []
    daemon.ctr("tasks", "start", "-d", "gone")
    daemon.ctr("run", "--rm", IMAGE, "c", "true")
    work = daemon.root / "io.containerd.runtime.v2.task" / daemon.namespace
    until(lambda: sorted(path.name for path in work.iterdir()) == ["b", "gone"])


def populate(daemon: Peer, archive: Path, *containers: str) -> None:
    daemon.start()
    daemon.ctr("images", "import", str(archive))
    for container in containers:
        daemon.ctr("run", "-d", IMAGE, container, "sleep", "1000")
    daemon.ctr("snapshots", "prepare", "s29")
    daemon.ctr("images", "tag", IMAGE, "docker.io/library/passing:1")
    daemon.ctr("images", "rm", "--sync", "docker.io/library/passing:1")  # the import's own blobs are collected


def look_at(daemon: Peer) -> None:
    """List what there is, and use the container that runs."""
    assert IMAGE.encode() in daemon.ctr("images", "ls", "-q").stdout
    assert b"b\n" in daemon.ctr("containers", "ls", "-q").stdout
    assert b"RUNNING" in daemon.ctr("tasks", "ls").stdout
    assert b"s29" in daemon.ctr("snapshots", "ls").stdout
    assert b"/fs" in daemon.ctr("snapshots", "mounts", "/mnt", "s29").stdout
    for digest in daemon.ctr("content", "ls", "-q").stdout.decode().split():
        assert daemon.ctr("content", "get", digest).stdout
    assert daemon.ctr("tasks", "exec", "--exec-id", "e", "b", "echo", "hello").stdout == b"hello\n"
    assert b"UUID" in daemon.ctr("version").stdout


def refuse_changes(daemon: Peer, archive: Path) -> None:
    """Try what changes the root. Each try is refused with the path and the cause."""
    for command in (
        ("containers", "create", IMAGE, "new"), ("containers", "label", "b", "x=y"), ("images", "rm", IMAGE),
        ("images", "import", str(archive)), ("snapshots", "prepare", "s30"), ("snapshots", "rm", "s29"),
        ("namespaces", "create", "x"), ("leases", "create"), ("run", "-d", IMAGE, "new", "true"),
    ):  # fmt: skip
        refused = daemon.ctr(*command, check=False)
        assert READ_ONLY in refused.stderr, (command, refused.stderr)
        assert os.fsencode(daemon.root) in refused.stderr, (command, refused.stderr)


def changes(daemon: Peer) -> bool:
    """Return whether the daemon takes changes."""
    if daemon.ctr("namespaces", "create", "probe", check=False).returncode:
        return False
    daemon.ctr("namespaces", "rm", "probe")
    return True


def read_only_plugins(daemon: Peer) -> list[str]:
    command = [str(SCRIPTS / "actr"), "--address", str(daemon.address), "plugins", "ls"]
    rows = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [row.split()[1] for row in rows if " read-only " in row and "read-only file system" in row]


def listing(directory: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of everything below a directory."""
    found = {}
    for path in directory.rglob("*"):
        status = path.lstat()
        found[str(path)] = (status.st_size, status.st_ctime_ns)
    return found


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.mark.parametrize("disk", ["ext4"], indirect=True)
def test_a_root_that_becomes_read_only_is_read_and_changes_name_the_cause(
    daemon: Peer, disk: Disk, archive: Path
) -> None:
    populate(daemon, archive, "b", "gone")
    disk.break_down()
    look_at(daemon)
    for _ in range(2):
        refuse_changes(daemon, archive)
    until(lambda: {"bolt", "content", "overlayfs"} <= set(read_only_plugins(daemon)))
    daemon.ctr("tasks", "kill", "-s", "9", "gone")
    until(lambda: b"STOPPED" in daemon.ctr("tasks", "ls").stdout)
    daemon.ctr("tasks", "rm", "gone")
    until(lambda: "/gone could not be removed: " in daemon.log())
    assert "[Errno" not in daemon.log()
    assert daemon.log().count("db: read-only file system; until it can be written, changes are refused") == 1


def test_a_read_only_root_without_records_is_refused(daemon: Peer, disk: Disk) -> None:
    (daemon.root / "io.containerd.metadata.v1.bolt").mkdir(parents=True)
    disk.remount("ro")
    with pytest.raises(AssertionError, match="the daemon ended with status 1"):
        daemon.start()
    (line,) = daemon.log().splitlines()
    assert f"root directory {daemon.root} cannot be used: Read-only file system ({disk.kind}, " in line
    assert line.endswith(f"Containers run on. Start again after: mount -o remount,rw {disk.directory}")
    daemon.process = None


@pytest.mark.parametrize("disk", ["ext4"], indirect=True)
@pytest.mark.parametrize("plugin", ["content.v1.content", "snapshotter.v1.overlayfs/snapshots", "runtime.v2.task"])
def test_the_directory_of_one_plugin_becomes_read_only(daemon: Peer, disk: Disk, archive: Path, plugin: str) -> None:
    populate(daemon, archive, "b", "gone")
    directory = daemon.root / f"io.containerd.{plugin}"
    mount(daemon, "mount", "--bind", str(directory), str(directory))
    mount(daemon, "mount", "-o", "remount,bind,ro", str(directory))
    look_at(daemon)
    command = {
        "content.v1.content": ("content", "ingest", "--expected-size", "3", "r"),
        "snapshotter.v1.overlayfs/snapshots": ("snapshots", "prepare", "s30"),
        "runtime.v2.task": ("run", "--rm", IMAGE, "new", "true"),
    }[plugin]
    for _ in range(7):  # so many failures in a row would open a breaker
        refused = daemon.ctr(*command, check=False, stdin=b"abc")
        assert READ_ONLY in refused.stderr, refused.stderr
        assert os.fsencode(directory) in refused.stderr, refused.stderr
    until(lambda: plugin.rpartition(".")[2].partition("/")[0] in read_only_plugins(daemon))
    daemon.ctr("tasks", "kill", "-s", "9", "gone")
    until(lambda: b"STOPPED" in daemon.ctr("tasks", "ls").stdout)
    daemon.ctr("tasks", "rm", "gone")
    assert b"gone" not in daemon.ctr("tasks", "ls").stdout
    mount(daemon, "umount", str(directory))
    daemon.ctr(*command, stdin=b"abc")
    until(lambda: read_only_plugins(daemon) == [])
    daemon.ctr("tasks", "start", "-d", "gone")
    assert "[Errno" not in daemon.log()
    assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("disk", ["ext4"], indirect=True)
def test_a_snapshotter_starts_on_a_read_only_disk_of_its_own(daemon: Peer, disk: Disk, archive: Path) -> None:
    daemon.root = daemon.directory / "root"
    layers = disk.directory / "layers"
    table = f'[plugins."io.containerd.snapshotter.v1.overlayfs"]\nroot_path = "{layers}"\n'
    daemon.config_path.write_text(daemon.default_config() + table)
    populate(daemon, archive, "b")
    daemon.stop(signal.SIGKILL)
    disk.remount("ro")
    before = listing(disk.directory)
    daemon.start()
    look_at(daemon)
    assert read_only_plugins(daemon) == ["overlayfs"]
    refused = daemon.ctr("snapshots", "prepare", "s30", check=False)
    assert READ_ONLY in refused.stderr
    assert os.fsencode(layers) in refused.stderr
    daemon.ctr("images", "tag", IMAGE, "docker.io/library/other:1")
    daemon.ctr("images", "rm", "--sync", "docker.io/library/other:1")
    assert listing(disk.directory) == before
    pid = daemon.pid
    disk.remount("rw", pid)
    until(lambda: daemon.ctr("snapshots", "prepare", "s30", check=False).returncode == 0)
    assert daemon.pid == pid
    look_at(daemon)


@pytest.mark.parametrize("disk", ["ext4"], indirect=True)
@pytest.mark.parametrize("whole", [True, False])
def test_a_plugin_in_a_process_of_its_own_starts_on_a_read_only_disk(
    daemon: Peer, disk: Disk, archive: Path, whole: bool
) -> None:
    native = "io.containerd.snapshotter.v1.native"
    isolation = f'[plugin_isolation]\n"{native}" = "process"\n'
    if not whole:
        daemon.root = daemon.directory / "root"
        isolation += f'[plugins."{native}"]\nroot_path = "{disk.directory}/layers"\n'
    daemon.config_path.write_text(daemon.default_config() + isolation)
    populate(daemon, archive, "b")
    daemon.ctr("snapshots", "--snapshotter", "native", "prepare", "n1")
    daemon.stop(signal.SIGKILL)
    disk.remount("ro")
    before = listing(disk.directory)
    daemon.start()
    until(lambda: b"n1" in daemon.ctr("snapshots", "--snapshotter", "native", "ls", check=False).stdout)
    assert b"bind" in daemon.ctr("snapshots", "--snapshotter", "native", "mounts", "/mnt", "n1").stdout
    prepare = ("snapshots", "--snapshotter", "native", "prepare", "n2")
    refused = daemon.ctr(*prepare, check=False)
    assert READ_ONLY in refused.stderr
    assert os.fsencode(disk.directory) in refused.stderr
    assert listing(disk.directory) == before
    disk.remount("rw", daemon.pid)
    until(lambda: daemon.ctr(*prepare, check=False).returncode == 0)
    look_at(daemon)


def mount(daemon: Peer, *command: str) -> None:
    subprocess.run(["nsenter", "-t", str(daemon.pid), "-m", *command], check=True)
