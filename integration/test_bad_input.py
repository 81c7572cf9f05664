"""Bad images, bad requests and clients that vanish: a message that names the thing, and nothing left behind."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from aiocontainerd.testing import images
from aiocontainerd.testing.images import BuiltImage, BuiltLayer, busybox_layer, entry, tar_of, write_archive
from harness import SCRIPTS, Ours, Peer, cgroups_named, docker_registry, peer, push

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(120)]

NAME = "docker.io/library/bad:1"
GOOD = "docker.io/library/busybox:1"


@pytest.fixture
def daemon() -> Iterator[Peer]:
    with peer(Ours) as started:
        yield started


@pytest.fixture
def good(daemon: Peer, tmp_path: Path) -> Peer:
    """Return a daemon that has the busybox image."""
    archive = tmp_path / "good.tar"
    write_archive(archive, GOOD, [BuiltImage(layers=[busybox_layer()])])
    daemon.ctr("images", "import", str(archive))
    return daemon


class Broken(BuiltLayer, frozen=True):
    """A layer that is stored as other bytes than its tar says."""

    stored: bytes = b""

    def blob(self) -> images.Blob:
        return images.Blob(self.stored)


def import_failing(daemon: Peer, tmp_path: Path, layers: Sequence[BuiltLayer]) -> str:
    """Import an image that cannot be unpacked; what ctr said. Nothing must be locked, mounted or half made."""
    archive = tmp_path / "bad.tar"
    write_archive(archive, NAME, [BuiltImage(layers=layers)])
    done = daemon.ctr("images", "import", str(archive), check=False)
    assert done.returncode != 0, done.stdout
    assert_clean(daemon)
    return done.stderr.decode()


def assert_clean(daemon: Peer) -> None:
    """Check that there is no active ingest, no active snapshot and no temporary mount."""
    assert daemon.ctr("content", "active").stdout.decode().split("\n", 1)[1].strip() == ""
    assert "Active" not in daemon.ctr("snapshots", "ls").stdout.decode()
    assert not mounts_of(daemon)


def mounts_of(daemon: Peer) -> list[str]:
    """Mounts below the daemon's directories, as the daemon sees them."""
    lines = Path(f"/proc/{daemon.pid}/mounts").read_text().splitlines()
    return [line for line in lines if str(daemon.directory) in line]


def test_a_truncated_gzip_layer_is_refused_naming_its_digest(daemon: Peer, tmp_path: Path) -> None:
    good = busybox_layer()
    layer = Broken(good.tar, "gzip", stored=good.blob().data[:-5000])
    assert layer.blob().digest in import_failing(daemon, tmp_path, [layer])


def test_a_layer_that_is_no_tar_is_refused_naming_its_digest(daemon: Peer, tmp_path: Path) -> None:
    layer = Broken(b"", "gzip", stored=gzip.compress(b"this is no tar archive" * 1000))
    assert layer.blob().digest in import_failing(daemon, tmp_path, [layer])


def test_a_layer_that_is_not_compressed_as_it_says_is_refused(daemon: Peer, tmp_path: Path) -> None:
    layer = Broken(b"", "zstd", stored=os.urandom(4096))
    assert layer.blob().digest in import_failing(daemon, tmp_path, [layer])


def test_a_layer_with_another_diff_id_is_refused(daemon: Peer, tmp_path: Path) -> None:
    layer = Broken(tar_of([entry("a", b"a")]), "gzip", stored=busybox_layer().blob().data)
    assert "diff" in import_failing(daemon, tmp_path, [layer])


def test_content_that_is_not_what_its_digest_says_is_refused(daemon: Peer) -> None:
    expected = f"sha256:{hashlib.sha256(b'right').hexdigest()}"
    done = daemon.ctr("content", "ingest", "--expected-digest", expected, "ref-1", stdin=b"wrong", check=False)
    assert done.returncode != 0
    got = f"sha256:{hashlib.sha256(b'wrong').hexdigest()}"
    assert f"unexpected commit digest {got}, expected {expected}: failed precondition" in done.stderr.decode()


def test_an_image_for_another_platform_is_not_unpacked(daemon: Peer, tmp_path: Path) -> None:
    archive = tmp_path / "foreign.tar"
    write_archive(archive, "docker.io/library/foreign:1", [BuiltImage(layers=[busybox_layer()], architecture="arm64")])
    with docker_registry(tmp_path) as registry:
        push(archive, registry, "foreign:1")
        done = daemon.ctr("images", "pull", "--plain-http", f"{registry}/foreign:1", check=False)
        daemon.ctr("run", "--rm", f"{registry}/foreign:1", "a", "true", check=False)
    assert b"platform" in done.stderr or done.returncode == 0
    assert_clean(daemon)


ESCAPES = {
    "dotdot": [entry("../../../../../../../../{canary}", b"changed")],
    "absolute": [entry("{canary}", b"changed")],
    "through-symlink": [
        entry("out", kind=tarfile.SYMTYPE, link="{parent}"),
        entry("out/canary", b"changed"),
    ],
    "hardlink": [
        entry("link", kind=tarfile.LNKTYPE, link="../../../../../../../..{canary}"),
        entry("link", b"changed"),
    ],
    "hardlink-through-symlink": [
        entry("out", kind=tarfile.SYMTYPE, link="{parent}"),
        entry("link", kind=tarfile.LNKTYPE, link="out/canary"),
        entry("link", b"changed"),
    ],
    "whiteout-through-symlink": [
        entry("out", kind=tarfile.SYMTYPE, link="{parent}"),
        entry("out/.wh.canary", b""),
    ],
    "opaque-through-symlink": [
        entry("out", kind=tarfile.SYMTYPE, link="{parent}"),
        entry("out/.wh..wh..opq", b""),
    ],
    "whiteout-dotdot": [entry(".wh...", b"")],
}


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
@pytest.mark.parametrize("attack", ESCAPES, ids=list(ESCAPES))
def test_no_layer_entry_touches_anything_outside_the_root(
    daemon: Peer, tmp_path: Path, attack: str, snapshotter: str
) -> None:
    canary = tmp_path / "canary"
    canary.write_text("untouched")
    layers = [busybox_layer(), BuiltLayer(tar_of(_aimed(ESCAPES[attack], canary)))]
    archive = tmp_path / "bad.tar"
    write_archive(archive, NAME, [BuiltImage(layers=layers)])
    before = sorted(p.name for p in tmp_path.iterdir())
    daemon.ctr("images", "import", "--snapshotter", snapshotter, str(archive), check=False)
    assert canary.read_text() == "untouched"
    assert canary.stat().st_nlink == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert_clean(daemon)


def _aimed(entries: Sequence[tuple[tarfile.TarInfo, bytes]], canary: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Return the entries with the canary's path filled in."""
    aimed = []
    for info, data in entries:
        copy = tarfile.TarInfo(info.name.format(canary=canary, parent=canary.parent))
        copy.type, copy.mode, copy.size = info.type, info.mode, info.size
        copy.linkname = info.linkname.format(canary=canary, parent=canary.parent)
        aimed.append((copy, data))
    return aimed


def test_a_command_that_is_not_in_the_image_is_named_and_leaves_nothing(good: Peer) -> None:
    done = good.ctr("run", GOOD, "c", "no-such-command", check=False)
    assert done.returncode == 1
    assert b"no-such-command" in done.stderr
    assert good.ctr("tasks", "ls", "-q").stdout == b""
    bundles = good.state / "io.containerd.runtime.v2.task" / good.namespace
    assert not bundles.exists() or not list(bundles.iterdir())
    assert not mounts_of(good)
    good.ctr("containers", "rm", "c")


def test_a_container_name_can_be_used_once(good: Peer) -> None:
    good.ctr("containers", "create", GOOD, "twice")
    again = good.ctr("containers", "create", "--snapshotter", "native", GOOD, "twice", check=False)
    assert b"already exists" in again.stderr
    good.ctr("containers", "rm", "twice")


class NoRuntime(Ours):
    """Our daemon on a host without any OCI runtime."""

    def environment(self) -> dict[str, str]:
        programs = self.directory / "bin"
        programs.mkdir(exist_ok=True)
        for name in ("sh", "mount", "umount", "cp", "cat", "unshare"):
            (programs / name).unlink(missing_ok=True)
            (programs / name).symlink_to(f"/usr/bin/{name}")
        return {**os.environ, "PATH": f"{programs}:{SCRIPTS}"}


def test_without_an_oci_runtime_a_run_says_what_to_install(tmp_path: Path) -> None:
    with peer(NoRuntime) as daemon:
        archive = tmp_path / "good.tar"
        write_archive(archive, GOOD, [BuiltImage(layers=[busybox_layer()])])
        daemon.ctr("images", "import", str(archive))
        done = daemon.ctr("run", "--rm", GOOD, "a", "true", check=False)
        assert done.returncode == 1
        text = done.stderr.decode()
        assert "crun" in text
        assert "runc" in text
        assert "install" in text
        assert not mounts_of(daemon)


def start_ctr(daemon: Peer, *args: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        daemon.ctr_command(*args), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def until(condition: object, limit_s: float = 20.0, pause_s: float = 0.05) -> None:
    """Wait until a callable is true."""
    assert callable(condition)
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(pause_s)


def test_a_client_killed_in_the_middle_of_a_pull_locks_nothing(daemon: Peer, tmp_path: Path) -> None:
    blob = os.urandom(48 << 20)
    layers = [busybox_layer(), BuiltLayer(tar_of([entry("large", blob)]), "tar")]
    archive = tmp_path / "large.tar"
    write_archive(archive, "docker.io/library/large:1", [BuiltImage(layers=layers)])
    with docker_registry(tmp_path) as registry:
        push(archive, registry, "large:1")
        reference = f"{registry}/large:1"
        for delay_s in (0.05, 0.15, 0.3):
            client = start_ctr(daemon, "images", "pull", "--plain-http", reference)
            time.sleep(delay_s)
            client.send_signal(signal.SIGKILL)
            client.wait()
        daemon.ctr("images", "pull", "--plain-http", reference)
    until(lambda: not mounts_of(daemon))
    assert daemon.ctr("run", "--rm", reference, "a", "echo", "hi").stdout == b"hi\n"


def test_a_client_killed_in_the_middle_of_a_run_leaves_a_task_that_can_be_removed(good: Peer) -> None:
    client = start_ctr(good, "run", GOOD, "r", "sleep", "1000")
    until(lambda: b"RUNNING" in good.ctr("tasks", "ls").stdout)
    client.send_signal(signal.SIGKILL)
    client.wait()
    assert b"RUNNING" in good.ctr("tasks", "ls").stdout
    good.ctr("tasks", "rm", "-f", "r", check=False)
    until(lambda: b"RUNNING" not in good.ctr("tasks", "ls").stdout)
    good.ctr("containers", "rm", "r")
    assert not mounts_of(good)


def test_a_client_killed_while_its_container_is_created_leaves_nothing(good: Peer) -> None:
    bundles = good.state / "io.containerd.runtime.v2.task" / good.namespace
    for number, delay_s in enumerate((0.0, 0.02, 0.04, 0.06)):
        name = f"r{number}"
        client = start_ctr(good, "run", "-d", GOOD, name, "sleep", "1000")
        until((bundles / name).exists, pause_s=0.001)
        time.sleep(delay_s)
        client.send_signal(signal.SIGKILL)
        client.wait()
        until(lambda name=name: removed(good, name))
    until(lambda: not mounts_of(good) and not cgroups_below(good.namespace))


def cgroups_below(name: str) -> list[Path]:
    """Cgroups of containers whose namespace is `name`."""
    return [path for top in cgroups_named(name) for path in top.iterdir() if path.is_dir()]


def removed(daemon: Peer, name: str) -> bool:
    """Remove a container and the task it may have; whether it is gone."""
    daemon.ctr("tasks", "rm", "-f", name, check=False)
    return daemon.ctr("containers", "rm", name, check=False).returncode == 0


def test_a_paused_container_can_be_killed(good: Peer) -> None:
    good.ctr("run", "-d", GOOD, "p", "sleep", "1000")
    good.ctr("tasks", "pause", "p")
    good.ctr("tasks", "rm", "-f", "p")
    good.ctr("containers", "rm", "p")


@pytest.mark.skipif(shutil.which("crun") is None, reason="needs crun")
def test_a_container_that_was_removed_behind_its_shim_can_be_removed(good: Peer) -> None:
    good.ctr("run", "-d", GOOD, "r", "sleep", "1000")
    subprocess.run(["crun", "--root", f"/run/containerd/runc/{good.namespace}", "delete", "-f", "r"], check=True)
    until(lambda: b"STOPPED" in good.ctr("tasks", "ls").stdout)
    good.ctr("tasks", "rm", "r")
    good.ctr("containers", "rm", "r")


def test_a_client_killed_in_the_middle_of_an_exec_leaves_the_task_usable(good: Peer) -> None:
    good.ctr("run", "-d", GOOD, "b", "sleep", "1000")
    client = start_ctr(good, "tasks", "exec", "--exec-id", "e", "b", "sleep", "500")
    until(lambda: good.ctr("tasks", "ps", "b").stdout.count(b"\n") > 2)
    client.send_signal(signal.SIGKILL)
    client.wait()
    assert good.ctr("tasks", "exec", "--exec-id", "f", "b", "echo", "still here").stdout == b"still here\n"
    good.ctr("tasks", "kill", "-s", "9", "--exec-id", "e", "b")
    good.ctr("tasks", "kill", "-s", "9", "b")
    until(lambda: b"STOPPED" in good.ctr("tasks", "ls").stdout)
    good.ctr("tasks", "rm", "b")
    good.ctr("containers", "rm", "b")
