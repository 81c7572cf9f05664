"""Nothing acknowledged is lost and no container is unowned: the daemon ends in several ways while containers run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiocontainerd.testing.images import BuiltImage, busybox_layer, write_archive
from aiocontainerd.testing.processes import ended
from differential import wait_stopped
from harness import Ours, Peer, peer
from outside import wait_for

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(120)]

IMAGE = "docker.io/library/busybox:1"
ENDINGS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "busybox.tar"
    write_archive(path, IMAGE, [BuiltImage(layers=[busybox_layer()])])
    return path


@pytest.fixture
def daemon(archive: Path) -> Iterator[Peer]:
    with peer(Ours) as started:
        started.ctr("images", "import", str(archive))
        yield started


@ENDINGS
def test_a_running_container_survives_the_daemon(daemon: Peer, number: int) -> None:
    daemon.ctr("run", "-d", IMAGE, "b", "sleep", "1000")
    before = daemon.ctr("tasks", "ls").stdout
    daemon.stop(number)
    daemon.start()
    assert daemon.ctr("tasks", "ls").stdout == before
    assert daemon.ctr("tasks", "exec", "--exec-id", "e", "b", "echo", "here").stdout == b"here\n"
    daemon.ctr("tasks", "kill", "-s", "9", "b")
    wait_stopped("b")(daemon)
    daemon.ctr("tasks", "rm", "b")
    daemon.ctr("containers", "rm", "b")


@ENDINGS
def test_an_exit_code_is_collected_that_came_while_the_daemon_was_away(daemon: Peer, number: int) -> None:
    daemon.ctr("run", "-d", IMAGE, "b", "sh", "-c", "trap 'exit 7' TERM; >/ready; while :; do sleep 0.1; done")
    wait_for(lambda: _exec(daemon, "cat", "/ready") == 0, "the container to await its signal")
    init = int(daemon.ctr("tasks", "ls").stdout.decode().split()[4])
    daemon.stop(number)
    os.kill(init, signal.SIGTERM)
    wait_for(lambda: ended(init), "the end of the container")
    daemon.start()
    wait_stopped("b")(daemon)
    removed = daemon.ctr("tasks", "rm", "b", check=False)
    assert b"exit with non-zero exit code 7" in removed.stderr
    daemon.ctr("containers", "rm", "b")


def test_records_images_and_snapshots_survive_kill(daemon: Peer) -> None:
    daemon.ctr("containers", "create", IMAGE, "c")
    commands = (("images", "ls"), ("images", "check"), ("containers", "ls"), ("snapshots", "ls"))
    before = [daemon.ctr(*command).stdout for command in commands]
    daemon.stop(signal.SIGKILL)
    daemon.start()
    assert [daemon.ctr(*command).stdout for command in commands] == before
    daemon.ctr("containers", "rm", "c")


def test_a_killed_shim_ends_its_container_and_says_so(daemon: Peer) -> None:
    daemon.ctr("run", "-d", IMAGE, "b", "sleep", "1000")
    init = int(daemon.ctr("tasks", "ls").stdout.decode().split()[4])
    shim = _parent(init)
    assert "shim" in Path(f"/proc/{shim}/comm").read_text()
    _kill(shim)
    until = time.monotonic() + 20
    while b"RUNNING" in daemon.ctr("tasks", "ls").stdout and time.monotonic() < until:
        time.sleep(0.1)
    assert b"b " not in daemon.ctr("tasks", "ls").stdout
    while not ended(init) and time.monotonic() < until:
        time.sleep(0.01)
    assert ended(init)
    daemon.ctr("containers", "rm", "b")


def _exec(daemon: Peer, *command: str) -> int:
    return daemon.ctr("tasks", "exec", "--exec-id", "e", "b", *command, check=False).returncode


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_stopping_twice_and_hanging_up_do_no_harm(daemon: Peer) -> None:
    daemon.send_signal(signal.SIGHUP)
    daemon.send_signal(signal.SIGUSR1)
    assert daemon.ctr("version").returncode == 0
    assert daemon.stop() == 0
    assert "stacks are in" in daemon.log()
    assert not daemon.address.exists()
