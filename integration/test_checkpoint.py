"""Checkpoints with CRIU: containers that go on where they were, and what is said where CRIU cannot work.

`AIOCONTAINERD_TEST_CRIU` names the directory of another criu than the installed one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aiocontainerd.testing.images import BuiltImage, busybox_layer, write_archive
from harness import Debians, Ours, Peer, peer

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(120)]

IMAGE = "docker.io/library/busybox:1"
CRIU = os.environ.get("AIOCONTAINERD_TEST_CRIU", "")
COUNTING = "i=0; while true; do i=$((i+1)); echo $i > /count; echo told $i; sleep 0.05; done"
WITHOUT = "application/vnd.containerd.container.checkpoint."
CRIU_TAR = "application/vnd.containerd.container.criu.checkpoint.criu.tar"


class OursWithRunc(Ours):
    """Our daemon with the only OCI runtime of Debian that was built with CRIU."""

    def default_config(self) -> str:
        return super().default_config() + 'oci_runtime = "runc"\n'

    def environment(self) -> dict[str, str]:
        return with_criu(super().environment())


class DebiansWithCriu(Debians):
    """Debian's containerd with the same criu."""

    def environment(self) -> dict[str, str]:
        return with_criu(super().environment())


def with_criu(environment: dict[str, str]) -> dict[str, str]:
    return {**environment, "PATH": f"{CRIU}:{environment['PATH']}"} if CRIU else environment


def cannot() -> str:
    """Return the reason why CRIU cannot work here, in its own words, or "" when it can."""
    path = f"{CRIU}:/usr/sbin:/usr/bin:/sbin:/bin"
    if shutil.which("criu", path=path) is None:
        return "criu is not installed (Debian's package criu)"
    checked = subprocess.run(["criu", "check"], capture_output=True, text=True, env={**os.environ, "PATH": path})
    if checked.returncode == 0:
        return ""
    errors = re.findall(r"Error \([^)]*\): (.+)", checked.stdout + checked.stderr)
    return f"criu check: {errors[0] if errors else checked.stderr.strip()}"


@pytest.fixture(scope="module")
def working() -> None:
    reason = cannot()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "busybox.tar"
    write_archive(path, IMAGE, [BuiltImage(layers=[busybox_layer()])])
    return path


@pytest.fixture
def daemon(archive: Path) -> Iterator[Peer]:
    with peer(OursWithRunc) as started:
        started.ctr("images", "import", str(archive))
        yield started


def until(condition: Callable[[], bool], what: str, limit_s: float = 10.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"waited {limit_s:g} s for {what}"
        time.sleep(0.05)


def count(daemon: Peer, container: str) -> int:
    """Return the number that a counting container has reached."""
    told = daemon.ctr("tasks", "exec", "--exec-id", f"e{time.time_ns()}", container, "cat", "/count").stdout
    return int(told or b"0")


def counting(daemon: Peer, *flags: str) -> None:
    daemon.ctr("run", "-d", *flags, IMAGE, "c", "sh", "-c", COUNTING)
    until(lambda: count(daemon, "c") > 3, "the container to count")


def goes_on(daemon: Peer, container: str) -> None:
    before = count(daemon, container)
    until(lambda: count(daemon, container) > before, "the container to count on")


def remove(daemon: Peer, container: str = "c") -> None:
    daemon.ctr("tasks", "rm", "-f", container)
    daemon.ctr("containers", "rm", container)


def manifests(daemon: Peer, name: str) -> list[str]:
    """Media types of what a checkpoint's index holds."""
    for line in daemon.ctr("images", "ls").stdout.decode().splitlines():
        if line.startswith(name):
            index = json.loads(daemon.ctr("content", "get", line.split()[2]).stdout)
            return [one["mediaType"] for one in index["manifests"]]
    raise AssertionError(f"no image {name}")


@pytest.mark.usefixtures("working")
def test_a_task_checkpoint_holds_what_containerds_does(daemon: Peer, archive: Path) -> None:
    found = []
    with peer(DebiansWithCriu) as debians:
        debians.ctr("images", "import", str(archive))
        for one in (daemon, debians):
            counting(one)
            named = one.ctr("tasks", "checkpoint", "c").stdout.decode().strip()
            found.append(manifests(one, named))
            goes_on(one, "c")
    assert found[0] == found[1]
    assert found[0][:2] == [CRIU_TAR, f"{WITHOUT}config.v1+proto"]


@pytest.mark.usefixtures("working")
def test_a_container_goes_on_where_its_checkpoint_was(daemon: Peer) -> None:
    counting(daemon)
    daemon.ctr("containers", "checkpoint", "--rw", "--task", "--image", "c", "checkpoint:1")
    at = count(daemon, "c")
    remove(daemon)
    for container in ("again", "twice"):
        restored = daemon.ctr("containers", "restore", "--rw", "--live", container, "checkpoint:1")
        first = int(restored.stdout.split()[1])
        assert 1 < first <= at + 1, restored
        goes_on(daemon, container)
        remove(daemon, container)


@pytest.mark.usefixtures("working")
def test_a_container_without_streams_goes_on_too(daemon: Peer) -> None:
    counting(daemon, "--null-io")
    daemon.ctr("containers", "checkpoint", "--rw", "--task", "--image", "c", "checkpoint:1")
    remove(daemon)
    daemon.ctr("containers", "restore", "--rw", "--live", "again", "checkpoint:1")
    goes_on(daemon, "again")


@pytest.mark.usefixtures("working")
def test_images_of_a_checkpoint_can_be_kept_in_a_directory_and_the_container_ended(
    daemon: Peer, tmp_path: Path
) -> None:
    counting(daemon)
    directory = tmp_path / "images"
    directory.mkdir()
    assert daemon.ctr("tasks", "checkpoint", "--exit", "--image-path", str(directory), "c").stdout == b""
    assert (directory / "inventory.img").exists()
    until(lambda: b"STOPPED" in daemon.ctr("tasks", "ls").stdout, "the end of the container")


def refusal(daemon: Peer) -> str:
    daemon.ctr("run", "-d", IMAGE, "c", "sleep", "100")
    refused = daemon.ctr("tasks", "checkpoint", "c", check=False)
    assert refused.returncode == 1
    assert b"RUNNING" in daemon.ctr("tasks", "ls").stdout
    return refused.stderr.decode()


def test_where_criu_cannot_work_its_reason_is_told(daemon: Peer) -> None:
    reason = cannot()
    if not reason:
        pytest.skip("criu works here")
    told = refusal(daemon)
    assert reason.removeprefix("criu check: ") in told or "CRIU is not installed" in told
    assert "ctr: runc did not terminate successfully: exit status 1: " in told
    assert "criu-dump.log" in told


def test_an_oci_runtime_without_criu_is_told(archive: Path) -> None:
    if (
        shutil.which("crun") is None
        or "+CRIU" in subprocess.run(["crun", "--version"], capture_output=True, text=True).stdout
    ):
        pytest.skip("needs a crun that was built without CRIU")
    with peer(Ours) as started:
        started.ctr("images", "import", str(archive))
        assert "this OCI runtime was built without CRIU" in refusal(started)
