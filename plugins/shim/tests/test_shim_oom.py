"""Kills for want of memory are told with the container's id."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiocontainerd_shim.cgroups.cgroup import Cgroup
from aiocontainerd_shim.cgroups.oom import OomWatch

from aiocontainerd.sys.cgroup import CgroupPaths, add_process, enable_controllers, write_text

pytestmark = pytest.mark.anyio

MEMORY_V1 = Path("/sys/fs/cgroup/memory")
UNIFIED = Path("/sys/fs/cgroup")
HUNGRY = "input(); data = bytearray(b'x') * (64 << 20)"


@pytest.fixture
def no_leaks() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


class Seen(list[str]):
    """The ids that were told."""

    def __init__(self) -> None:
        super().__init__()
        self._told = asyncio.Event()

    def tell(self, container_id: str) -> None:
        self.append(container_id)
        self._told.set()

    async def first(self) -> None:
        async with asyncio.timeout(10):
            await self._told.wait()


async def test_version_2_tells_when_the_count_of_kills_rises(tmp_path: Path, no_leaks: None) -> None:
    events = tmp_path / "memory.events"
    events.write_text("oom 1\noom_kill 1\n")
    seen = Seen()
    watch = OomWatch("c1", Cgroup(CgroupPaths(unified=str(tmp_path))), seen.tell)
    watch.start()
    with events.open("r+") as file:
        file.write("oom 2\n")
        file.flush()
        await asyncio.sleep(0.05)
        assert seen == []
        file.write("oom_kill 2\n")
    await seen.first()
    assert seen == ["c1"]
    watch.close()
    watch.close()
    events.write_text("oom 3\noom_kill 3\n")
    await asyncio.sleep(0.05)
    assert seen == ["c1"]


async def test_version_2_tells_a_kill_once_to_who_looks_before_the_notice(tmp_path: Path, no_leaks: None) -> None:
    events = tmp_path / "memory.events"
    events.write_text("oom_kill 0\n")
    seen = Seen()
    watch = OomWatch("c1", Cgroup(CgroupPaths(unified=str(tmp_path))), seen.tell)
    watch.start()
    watch.look(killed=True)
    assert seen == []
    write_text(str(events), "oom_kill 1\n")
    watch.look(killed=True)
    assert seen == ["c1"]
    await asyncio.sleep(0.05)
    assert seen == ["c1"]
    watch.close()
    watch.look(killed=True)
    assert seen == ["c1"]


@pytest.mark.parametrize(("above", "killed"), [(5, True), (4, True), (5, False)])
async def test_version_2_tells_a_kill_in_a_cgroup_that_went_with_it(
    tmp_path: Path, no_leaks: None, above: int, killed: bool
) -> None:
    """Count in the cgroup above, since a service manager removes an empty cgroup with all that is in it."""
    (tmp_path / "memory.events").write_text("oom_kill 3\n")
    scope = tmp_path / "unit.scope" / "container"
    scope.mkdir(parents=True)
    for directory in (scope, scope.parent):
        (directory / "memory.events").write_text("oom_kill 0\n")
    seen = Seen()
    watch = OomWatch("c1", Cgroup(CgroupPaths(unified=str(scope))), seen.tell)
    watch.start()
    (tmp_path / "memory.events").write_text("oom_kill 4\n")
    watch.look(killed=True)
    assert seen == []  # a neighbour's: the own count is there and says so
    (tmp_path / "memory.events").write_text(f"oom_kill {above}\n")
    for directory in (scope, scope.parent):
        (directory / "memory.events").unlink()
        directory.rmdir()
    await asyncio.sleep(0.05)
    for _ in range(2):
        watch.look(killed=killed)
    assert seen == (["c1"] if killed and above > 4 else [])
    watch.close()


async def test_a_cgroup_without_memory_controller_is_refused(tmp_path: Path, no_leaks: None) -> None:
    for paths in (CgroupPaths(unified=str(tmp_path)), CgroupPaths(controllers={"memory": str(tmp_path)})):
        watch = OomWatch("c1", Cgroup(paths), Seen().tell)
        with pytest.raises(FileNotFoundError, match=str(tmp_path)):
            watch.start()
        watch.close()


async def starve_in(directory: Path) -> None:
    """Have a process killed for want of memory in a cgroup."""
    hungry = await asyncio.create_subprocess_exec(sys.executable, "-c", HUNGRY, stdin=asyncio.subprocess.PIPE)
    add_process(str(directory), hungry.pid)
    await hungry.communicate(b"\n")
    assert hungry.returncode == -9


@pytest.fixture
def unified_cgroup() -> Iterator[Path]:
    path = UNIFIED / f"aiocontainerd-test-{os.getpid()}"
    if not (UNIFIED / "cgroup.controllers").exists():
        pytest.skip("needs a host of version 2 alone")
    enable_controllers(str(path))
    path.mkdir()
    yield path
    if path.exists():
        path.rmdir()


@pytest.mark.root
async def test_version_2_tells_of_a_kill_and_not_of_the_removal(unified_cgroup: Path, no_leaks: None) -> None:
    write_text(str(unified_cgroup / "memory.max"), str(8 << 20))
    seen = Seen()
    watch = OomWatch("c1", Cgroup(CgroupPaths(unified=str(unified_cgroup))), seen.tell)
    watch.start()
    await starve_in(unified_cgroup)
    await seen.first()
    assert seen == ["c1"]
    unified_cgroup.rmdir()
    await asyncio.sleep(0.05)
    assert seen == ["c1"]
    watch.close()


@pytest.fixture
def memory_cgroup() -> Iterator[Path]:
    if not (MEMORY_V1 / "cgroup.event_control").exists():
        pytest.skip("needs a version 1 memory controller")
    path = MEMORY_V1 / f"aiocontainerd-test-{os.getpid()}"
    path.mkdir()
    yield path
    if path.exists():
        path.rmdir()


@pytest.mark.root
async def test_version_1_tells_of_a_kill_and_not_of_the_removal(memory_cgroup: Path, no_leaks: None) -> None:
    write_text(str(memory_cgroup / "memory.limit_in_bytes"), str(8 << 20))
    seen = Seen()
    watch = OomWatch("c1", Cgroup(CgroupPaths(controllers={"memory": str(memory_cgroup)})), seen.tell)
    watch.start()
    await starve_in(memory_cgroup)
    await seen.first()
    assert set(seen) == {"c1"}
    told = len(seen)
    memory_cgroup.rmdir()
    await asyncio.sleep(0.05)
    assert len(seen) == told
    watch.close()
