"""Directories, old mounts, cgroups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aiocontainerd.daemon import surroundings
from aiocontainerd.daemon.errors import StartError


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
