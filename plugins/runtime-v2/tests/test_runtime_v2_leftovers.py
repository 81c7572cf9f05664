"""Damaged, half removed and vanished bundles, and containers to which none leads."""

from __future__ import annotations

import json
import logging
import os
import pty
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from aiocontainerd_runtime_v2 import leftovers, manager, strays
from aiocontainerd_runtime_v2.bootstrap import Endpoint
from aiocontainerd_runtime_v2.bundle import Bundle, Layout
from aiocontainerd_runtime_v2.manager import Surroundings
from shim_world import LIMITS, NAMESPACE, OPTIONS, World, sockets, world

from aiocontainerd.testing.processes import ended

__all__ = ["sockets", "world"]
pytestmark = pytest.mark.anyio

Kill = Callable[[str], int]


def _spec(path: str) -> bytes:
    return json.dumps({"linux": {"cgroupsPath": path}}).encode()


@pytest.mark.parametrize(
    ("specs", "path"),
    [
        ([], "/ns/a"),
        ([b""], "/ns/a"),
        ([b"", _spec("/k8s/a")], "/k8s/a"),
        ([_spec("pods-x.slice:cri:a")], "/pods.slice/pods-x.slice/cri-a.scope"),
        ([_spec(":docker:a")], "/system.slice/docker-a.scope"),
        ([_spec("a.slice::b")], "/a.slice/b.scope"),
        ([_spec("")], ""),
        ([_spec("/")], ""),
        ([_spec("/../..")], ""),
        ([b"{}"], ""),
    ],
)
def test_the_cgroup_of_a_container_is_the_one_its_spec_names(specs: list[bytes], path: str) -> None:
    assert leftovers.cgroup_of("ns", "a", *specs) == path


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory that stands for the mount point of the only hierarchy."""
    monkeypatch.setattr("aiocontainerd.sys.cgroup.hierarchies", lambda: [str(tmp_path)])
    return tmp_path


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(["sleep", "1000"])
    yield started
    started.kill()
    started.wait()


def test_processes_of_a_cgroup_and_below_are_killed(
    tree: Path, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    procs = tree / "ns" / "a" / "sub" / "cgroup.procs"
    procs.parent.mkdir(parents=True)
    procs.write_text(f"{process.pid}\n")
    monkeypatch.setattr("time.sleep", lambda _s: procs.write_text(""))
    assert leftovers.kill("/ns/a") == 1
    assert process.wait() == -9
    assert leftovers.kill("/ns/a") == 0


def test_a_cgroup_with_the_daemon_in_it_and_no_cgroup_are_left_alone(
    tree: Path, process: subprocess.Popen[bytes]
) -> None:
    (tree / "ns").mkdir()
    (tree / "ns" / "cgroup.procs").write_text(f"{process.pid}\n{os.getpid()}\n")
    assert leftovers.kill("/ns") == 0
    assert leftovers.kill("") == 0
    assert process.poll() is None


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the cgroups that were killed, each of which had three processes."""
    paths: list[str] = []

    def kill(path: str) -> int:
        paths.append(path)
        return 3

    monkeypatch.setattr(leftovers, "kill", kill)
    return paths


async def test_a_container_whose_bundle_is_all_empty_files_is_ended_and_told(
    world: World, killed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with world.run() as runtime:
        await (await runtime.create("a", OPTIONS)).start()
    for file in world.bundle("a").iterdir():
        if file.is_file():
            file.write_bytes(b"")
    world.records["a"], world.specs["a"] = OPTIONS.runtime, _spec("/k8s/a")
    async with world.run() as runtime:
        assert await runtime.list() == []
    assert world.launcher.actions == ["start a", "delete a"]
    assert killed == ["/k8s/a"]
    assert "testing/a has no usable bundle, and its container still ran: 3 of its processes were killed" in caplog.text
    assert not world.bundle("a").exists()


async def test_a_container_whose_bundle_is_gone_is_ended_and_cleaned_up_after(
    world: World, killed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with world.run() as runtime:
        await (await runtime.create("a", OPTIONS)).start()
    await anyio.to_thread.run_sync(shutil.rmtree, world.layout.state)
    world.records["a"], world.specs["a"] = OPTIONS.runtime, _spec("/k8s/a")
    async with world.run() as runtime:
        await runtime.list()
    assert killed == ["/k8s/a"]
    assert "a has no usable bundle" in caplog.text
    assert world.launcher.actions == ["start a", "delete a"]
    assert not world.layout.bundle(NAMESPACE, "a").work.exists()
    assert not world.bundle("a").exists()


@contextmanager
def _working_in(directory: Path) -> Iterator[None]:
    """Run a process that stands for a shim."""
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=directory, stdin=subprocess.PIPE) as shim:
        yield
        shim.kill()


async def test_a_container_of_another_directory_of_state_is_left_alone(
    world: World, killed: list[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    async with world.run() as runtime:
        await (await runtime.create("a", OPTIONS)).start()
    elsewhere = tmp_path / "elsewhere"
    shutil.move(world.layout.state, elsewhere)
    with _working_in(elsewhere / NAMESPACE / "a"):
        async with world.run():
            pass
    assert killed == []
    assert f"its bundle is {elsewhere}/{NAMESPACE}/a, in another directory of state" in caplog.text
    assert world.layout.bundle(NAMESPACE, "a").work.exists()


def test_a_shim_whose_bundle_is_gone_is_found_by_its_directory(tmp_path: Path) -> None:
    bundle = Bundle("n", "a", tmp_path / "a", tmp_path / "work")
    bundle.path.mkdir()
    shim = subprocess.Popen(
        [sys.executable, "-c", "input()"], cwd=bundle.path, stdin=subprocess.PIPE, start_new_session=True
    )
    with shim:
        bundle.path.rename(tmp_path / ".a")
        assert strays.processes_in(bundle) == [shim.pid]
        (tmp_path / ".a").rmdir()
        assert strays.processes_in(bundle) == [shim.pid]
        strays.kill(bundle)
        assert shim.wait() == -9
    assert ended(shim.pid)


def test_a_shell_in_a_bundle_is_no_shim(tmp_path: Path) -> None:
    bundle = Bundle("n", "a", tmp_path, tmp_path / "work")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execlp("sh", "sh", "-c", "echo here; read line")
    try:
        assert os.read(terminal, 4) == b"here"
        assert strays.processes_in(bundle) == []
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("/nowhere"), os.mkfifo])
async def test_what_is_in_the_place_of_a_bundle_is_removed_and_the_container_starts_again(
    world: World, killed: list[str], caplog: pytest.LogCaptureFixture, make: Callable[[Path], None]
) -> None:
    async with world.run() as runtime:
        await (await runtime.create("a", OPTIONS)).start()
    await anyio.to_thread.run_sync(shutil.rmtree, world.bundle("a"))
    make(world.bundle("a"))
    world.records["a"], world.specs["a"] = OPTIONS.runtime, _spec("/k8s/a")
    async with world.run() as runtime:
        assert await runtime.list() == []
        assert killed == ["/k8s/a"]
        assert not [record for record in caplog.records if record.exc_info]
        await runtime.create("a", OPTIONS)


def test_what_is_left_of_a_removal_is_swept_but_never_below_a_mount(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    mounted = tmp_path / "state" / "ns" / ".busy"
    layout = Layout(tmp_path / "state", tmp_path / "root", mounted=lambda path: [path] if path == str(mounted) else [])
    kept = layout.create("ns", "kept", None)
    for left in (mounted, tmp_path / "state" / "ns" / ".old", tmp_path / "root" / "ns" / ".old"):
        (left / "rootfs").mkdir(parents=True)
        (left / "rootfs" / "file").touch()
    (tmp_path / "state" / ".traces").mkdir()
    layout.sweep()
    assert sorted(path.name for path in (tmp_path / "state" / "ns").iterdir()) == [".busy", "kept"]
    assert sorted(path.name for path in (tmp_path / "root" / "ns").iterdir()) == ["kept"]
    assert (mounted / "rootfs" / "file").exists()
    assert (tmp_path / "state" / ".traces").exists()
    assert f"{mounted} is left of a bundle and stays" in caplog.text
    assert kept.path.is_dir()


async def test_a_bundle_that_names_the_right_address_costs_no_look_at_processes_and_no_connection(
    tmp_path: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Bundle] = []
    monkeypatch.setattr(strays, "processes_in", lambda bundle: looked.append(bundle) or [1])  # type: ignore[func-returns-value]
    around = Surroundings(grpc_address="/g", ttrpc_address="/t", publish_binary="/bin/true", socket_dir=str(sockets))
    bundle = Bundle("n", "a", tmp_path, tmp_path / "work")
    own = manager._own_socket(bundle, around)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(own)
        listener.listen()
        listener.setblocking(False)
        found = manager.ShimManager(around, LIMITS).own_endpoint
        assert await found(bundle, Endpoint(version=3, address=f"unix://{own}", protocol="ttrpc")) is None
        assert looked == []
        with pytest.raises(BlockingIOError):
            listener.accept()
        other = await found(bundle, Endpoint(version=3, address="unix:///elsewhere", protocol="ttrpc"))
        assert other is not None
        assert (other.address, looked) == (f"unix://{own}", [bundle])
