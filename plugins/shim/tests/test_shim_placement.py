"""Processes are moved into a cgroup of their own, which goes with the last of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiocontainerd_shim.cgroups import placement

from aiocontainerd.sys import mountinfo

pytestmark = pytest.mark.root

NAME = f"aiocontainerd-test-{os.getpid()}"


@pytest.fixture
def sleepers() -> Iterator[list[int]]:
    """Two processes, which end with the test; then there are no cgroups of it."""
    processes = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    yield [process.pid for process in processes]
    for process in processes:
        process.kill()
        process.wait()
    for directory in directories():
        directory.rmdir()


def directories() -> list[Path]:
    """Return the cgroups of the test, in every hierarchy."""
    mounts = (mount for mount in mountinfo.read() if mount.fs_type in ("cgroup", "cgroup2"))
    return [path for mount in mounts if (path := Path(mount.mount_point) / NAME).is_dir()]


def cgroups_of(pid: int) -> set[str]:
    return {line.split(":", 2)[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()}


def test_the_last_that_leaves_takes_the_cgroup_along(sleepers: list[int]) -> None:
    for pid in sleepers:
        placement.join(f"/{NAME}", pid)
    if not directories() or f"/{NAME}" not in cgroups_of(sleepers[0]):
        pytest.skip("no hierarchy here takes a new cgroup")
    first, second = sleepers
    placement.leave(f"/{NAME}", first)
    assert f"/{NAME}" not in cgroups_of(first)
    assert f"/{NAME}" in cgroups_of(second)
    placement.leave(f"/{NAME}", second)
    assert f"/{NAME}" not in cgroups_of(second)
    assert directories() == []


def test_a_cgroup_is_preferred_by_its_weight_where_it_has_one(sleepers: list[int]) -> None:
    placement.join(f"/{NAME}", sleepers[0])
    placement.prefer(f"/{NAME}")
    found = {
        name: {int((path / name).read_text()) for path in directories() if (path / name).exists()}
        for name in ("cpu.shares", "cpu.weight")
    }
    assert (found["cpu.shares"] <= {8192}, found["cpu.weight"] <= {800}) == (True, True)
    for pid in sleepers:
        placement.leave(f"/{NAME}", pid)


def test_leaving_where_one_never_was_changes_nothing(sleepers: list[int]) -> None:
    before = cgroups_of(sleepers[0])
    placement.leave(f"/{NAME}", sleepers[0])
    assert cgroups_of(sleepers[0]) == before
    assert directories() == []
