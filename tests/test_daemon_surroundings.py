"""Directories, old mounts, cgroups."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from aiocontainerd.config import Config
from aiocontainerd.daemon import surroundings
from aiocontainerd.daemon.errors import StartError
from aiocontainerd.testing.disks import MemoryDisk


def test_old_temporary_mounts_are_removed_and_what_stays_is_no_obstacle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tmpmounts" / "a").mkdir(parents=True)
    surroundings.drop_old_mounts(tmp_path)
    assert list((tmp_path / "tmpmounts").iterdir()) == []
    (tmp_path / "tmpmounts" / "b" / "full").mkdir(parents=True)
    surroundings.drop_old_mounts(tmp_path)
    assert "an old temporary mount stays" in caplog.text
    surroundings.drop_old_mounts(tmp_path / "nothing")


@pytest.mark.root
def test_a_mount_that_a_killed_daemon_left_is_unmounted(tmp_path: Path) -> None:
    left = tmp_path / "tmpmounts" / "a"
    left.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(left)], check=True)
    surroundings.drop_old_mounts(tmp_path)
    assert not left.exists()


@pytest.mark.root
def test_the_daemon_joins_its_cgroup_in_every_hierarchy_that_counts() -> None:
    name = f"aiocontainerd-test-{os.getpid()}"
    try:
        directories = list(surroundings.cgroup_directories(f"/{name}/inner"))
    except OSError as error:
        pytest.skip(f"cgroups cannot be made here: {error}")
    join = f"from aiocontainerd.daemon import surroundings; surroundings.join_cgroup('/{name}/inner')"
    code = f"{join}; print(open('/proc/self/cgroup').read())"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.count(f"/{name}/inner\n") == len(directories)
    finally:
        for directory in directories:
            directory.rmdir()
            directory.parent.rmdir()


def test_a_cgroup_that_cannot_be_joined_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("aiocontainerd.sys.cgroup.ROOT", str(tmp_path / "none"))
    with pytest.raises(StartError, match=r"cannot join cgroup /x \(cgroup\.path\): /\S+: no such file or directory$"):
        surroundings.join_cgroup("/x")


def test_a_version_1_cpuset_inherits_from_its_parent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("aiocontainerd.sys.cgroup.ROOT", str(tmp_path))
    for directory in ("cpuset", "cpuset/a", "memory", "systemd", "unified"):
        (tmp_path / directory).mkdir()
    for name, value in (("cpuset.cpus", "0-1"), ("cpuset.mems", "0")):
        (tmp_path / "cpuset" / name).write_text(f"{value}\n")
        (tmp_path / "cpuset" / "a" / name).write_text("\n")
    (tmp_path / "cpu").symlink_to("memory")
    found = {str(directory.relative_to(tmp_path)) for directory in surroundings.cgroup_directories("/a")}
    assert found == {"cpuset/a", "memory/a"}
    assert (tmp_path / "cpuset" / "a" / "cpuset.cpus").read_text() == "0-1\n"


def records(root: Path) -> Path:
    path = root / "io.containerd.metadata.v1.bolt" / "meta.db"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"SQLite format 3\0")
    return path


def config_of(root: Path, state: Path) -> Config:
    return Config({"root": str(root), "state": str(state)}, {})


@pytest.mark.root
def test_a_read_only_root_with_records_is_used_and_the_warning_has_the_remedy(
    disk: MemoryDisk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = disk.directory / "root"
    records(root)
    disk.remount("ro")
    with surroundings.directories(config_of(root, tmp_path / "state")) as (used, _state, _temp):
        assert used == root
    assert caplog.messages == [
        f"root directory {root} is on a read-only file system (tmpfs, tmpfs): until it can be written, only reading, "
        f"and stopping of tasks, work. The daemon goes on by itself after: mount -o remount,rw {disk.directory}"
    ]
    surroundings.drop_old_mounts(root)
    assert len(caplog.messages) == 1


@pytest.mark.root
@pytest.mark.parametrize("content", [None, b""])
def test_a_read_only_root_without_records_and_a_read_only_state_are_refused(
    disk: MemoryDisk, tmp_path: Path, content: bytes | None
) -> None:
    root = disk.directory / "root"
    path = records(root)
    disk.remount("ro")
    words = r"state directory \S+/s cannot be used: Read-only file system \(tmpfs, tmpfs\)\. Containers run on"
    with (
        pytest.raises(StartError, match=words),
        surroundings.directories(config_of(tmp_path / "root", disk.directory / "s")),
    ):
        pass
    disk.remount("rw")
    path.unlink() if content is None else path.write_bytes(content)
    disk.remount("ro")
    with (
        pytest.raises(StartError, match=rf"{root} cannot be used: Read-only file system \(tmpfs, tmpfs\)\. Containers"),
        surroundings.directories(config_of(root, tmp_path / "state")),
    ):
        pass


def test_without_any_directory_for_temporary_files_they_are_in_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setenv("TMPDIR", "before")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with surroundings.directories(config_of(tmp_path / "root", tmp_path / "state")) as (_root, state, temp):
        assert temp == state / "tmp"
        assert (os.environ["TMPDIR"], tempfile.tempdir) == (str(temp), str(temp))
