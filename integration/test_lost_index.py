"""An index that is lost, older or damaged deletes nothing, under a running container too."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aiocontainerd.testing.images import BuiltImage, busybox_layer, write_archive
from harness import SCRIPTS, Ours, Peer, peer

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(120)]

IMAGE = "docker.io/library/busybox:1"
PLUGIN = "io.containerd.{}".format
SNAPSHOTTER = PLUGIN("snapshotter.v1.overlayfs")
CONTENT = PLUGIN("content.v1.content")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "busybox.tar"
    write_archive(path, IMAGE, [BuiltImage(layers=[busybox_layer()])])
    return path


@pytest.fixture
def daemon(archive: Path) -> Iterator[Peer]:
    with peer(Ours) as started:
        started.ctr("images", "import", str(archive))
        collect(started)
        yield started


def meta(daemon: Peer) -> Path:
    return daemon.root / PLUGIN("metadata.v1.bolt") / "meta.db"


def records(daemon: Peer) -> Path:
    return daemon.root / SNAPSHOTTER / "metadata.db"


def stored(daemon: Peer) -> set[str]:
    """Return the blobs and the directories of snapshots on disk."""
    blobs = (daemon.root / CONTENT / "blobs" / "sha256").glob("*")
    return {path.name for path in [*blobs, *(daemon.root / SNAPSHOTTER / "snapshots").glob("*")]}


def with_logs(path: Path) -> list[Path]:
    return [path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")]


def lose(path: Path) -> None:
    for file in with_logs(path):
        file.unlink(missing_ok=True)


def empty(path: Path) -> None:
    lose(path)
    path.touch()


def collect(daemon: Peer) -> None:
    """Have one garbage collection begin and end."""
    daemon.ctr("leases", "create", "--id", "collect")
    daemon.ctr("leases", "delete", "--sync", "collect")


LOSSES = pytest.mark.parametrize("damage", [lose, empty], ids=["missing", "empty"])


@LOSSES
@pytest.mark.parametrize("of", [meta, records], ids=["meta.db", "metadata.db"])
def test_a_lost_index_deletes_nothing_under_a_running_container(
    daemon: Peer, damage: Callable[[Path], None], of: Callable[[Peer], Path], tmp_path: Path
) -> None:
    daemon.ctr("run", "-d", IMAGE, "b", "sleep", "1000")
    before = stored(daemon)
    daemon.stop()
    shutil.copy(of(daemon), tmp_path / "right")
    damage(of(daemon))
    daemon.start()
    collect(daemon)
    assert stored(daemon) >= before
    assert f"{of(daemon)} does not know" in daemon.log()
    assert "it is new and the data is not" in daemon.log()
    assert "kept" in daemon.ctr("plugins", "ls", "-d").stdout.decode()
    daemon.stop()
    lose(of(daemon))
    shutil.copy(tmp_path / "right", of(daemon))
    daemon.start()
    collect(daemon)
    assert stored(daemon) >= before
    assert daemon.ctr("tasks", "exec", "--exec-id", "e", "b", "echo", "here").stdout == b"here\n"


def test_an_older_index_deletes_nothing_and_new_garbage_is_collected(daemon: Peer, tmp_path: Path) -> None:
    daemon.stop()
    shutil.copy(meta(daemon), tmp_path / "older")
    daemon.start()
    daemon.ctr("run", "-d", IMAGE, "b", "sleep", "1000")
    before = stored(daemon)
    daemon.stop()
    shutil.copy(meta(daemon), tmp_path / "right")
    shutil.copy(tmp_path / "older", meta(daemon))
    daemon.start()
    print(daemon.log())
    daemon.ctr("snapshots", "prepare", "new")
    made = stored(daemon) - before
    print(made, stored(daemon), before)
    assert made
    daemon.ctr("snapshots", "rm", "new")
    collect(daemon)
    assert stored(daemon) == before
    assert "it is older than the data" in daemon.log()
    daemon.stop()
    shutil.copy(tmp_path / "right", meta(daemon))
    daemon.start()
    assert daemon.ctr("tasks", "exec", "--exec-id", "e", "b", "echo", "here").stdout == b"here\n"


def test_what_a_crash_left_is_still_deleted(daemon: Peer) -> None:
    before = stored(daemon)
    daemon.stop(signal.SIGKILL)
    (daemon.root / SNAPSHOTTER / "snapshots" / "77").mkdir()
    (daemon.root / CONTENT / "blobs" / "sha256" / ("a" * 64)).write_text("x")
    daemon.start()
    collect(daemon)
    assert stored(daemon) == before


def test_what_is_brought_while_no_daemon_runs_is_kept(daemon: Peer) -> None:
    before = stored(daemon)
    daemon.ctr("run", "-d", IMAGE, "b", "sleep", "1000")
    daemon.stop()
    with peer(Ours, start=False) as other:
        shutil.copytree(daemon.root, other.root, symlinks=True)
        other.start()
        other.ctr("content", "ingest", "brought", stdin=b"brought")
        for number in range(9):
            other.ctr("snapshots", "prepare", f"s{number}")
        other.stop()
        done = subprocess.run(["cp", "-an", f"{other.root}/.", daemon.root], capture_output=True, text=True)
        assert not done.stderr, done.stderr
        both = stored(daemon)
        assert len(both) > len(before) + 9
        daemon.start()
        collect(daemon)
        assert stored(daemon) == both
        assert "it came from elsewhere since the daemon was stopped" in daemon.log()
        assert daemon.ctr("tasks", "exec", "--exec-id", "e", "b", "echo", "here").stdout == b"here\n"


def test_a_copy_of_a_root_that_went_on_has_an_index_of_its_own(daemon: Peer) -> None:
    daemon.stop()
    original, copied = daemon.root, daemon.directory / "copied"
    shutil.copytree(original, copied, symlinks=True)
    daemon.root = copied
    daemon.start()
    for number in range(9):
        daemon.ctr("snapshots", "prepare", f"s{number}")
    daemon.stop()
    of_the_copy = meta(daemon)
    daemon.root = original
    daemon.start()
    daemon.ctr("content", "ingest", "here", stdin=b"here")
    before = stored(daemon)
    daemon.stop()
    shutil.copy(of_the_copy, meta(daemon))
    daemon.start()
    collect(daemon)
    assert stored(daemon) == before
    assert "another copy of it has been in use here since" in daemon.log()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "fifo"])
@pytest.mark.parametrize("of", [meta, records], ids=["meta.db", "metadata.db"])
def test_what_is_no_file_is_one_line_and_the_command_in_it_works(
    daemon: Peer, of: Callable[[Peer], Path], make: Callable[[Path], None]
) -> None:
    before = stored(daemon)
    daemon.stop()
    daemon.log_path.unlink()
    lose(of(daemon))
    make(of(daemon))
    daemon.start(wait=of is records)
    if of is meta:
        assert daemon.process is not None
        assert daemon.process.wait(20) == 1
        daemon.process = None
    (named,) = [line for line in daemon.log().splitlines() if str(of(daemon)) in line]
    assert "is damaged: it is a" in named
    assert "[Errno" not in daemon.log()
    command = f"aiocontainerd index restore {of(daemon)}"
    assert command in named
    daemon.stop()
    subprocess.run([SCRIPTS / "aiocontainerd", *command.split()[1:]], check=True)
    daemon.start()
    collect(daemon)
    assert stored(daemon) == before
    daemon.ctr("run", "--rm", IMAGE, "c", "true")


def test_after_restarts_on_a_lost_index_the_right_one_can_still_be_put_back(daemon: Peer) -> None:
    daemon.ctr("run", "-d", IMAGE, "b", "sleep", "1000")
    before = stored(daemon)
    daemon.stop()
    lose(meta(daemon))
    for number in range(4):
        daemon.start()
        daemon.ctr("snapshots", "prepare", f"s{number}")
        daemon.stop()
    command = f"aiocontainerd index restore --former {meta(daemon)}"
    assert f"stop the daemon and run: {command}" in daemon.log()
    subprocess.run([SCRIPTS / "aiocontainerd", *command.split()[1:]], check=True)
    daemon.start()
    collect(daemon)
    assert stored(daemon) >= before
    assert daemon.ctr("tasks", "exec", "--exec-id", "e", "b", "echo", "here").stdout == b"here\n"


def test_a_database_of_a_newer_release_is_one_line(daemon: Peer) -> None:
    daemon.stop()
    daemon.log_path.unlink()
    with sqlite3.connect(meta(daemon)) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(20) == 1
    daemon.process = None
    (line,) = daemon.log().splitlines()
    assert f"{meta(daemon)} has version 99" in line
    with sqlite3.connect(meta(daemon)) as db:
        db.execute("PRAGMA user_version = 3")
    db.close()
    daemon.start()


def test_a_root_that_was_moved_or_copied_works_as_before(daemon: Peer) -> None:
    before = stored(daemon)
    daemon.stop(signal.SIGKILL)
    moved = daemon.directory / "moved"
    shutil.copytree(daemon.root, moved, symlinks=True)
    daemon.root = moved
    (daemon.root / SNAPSHOTTER / "snapshots" / "77").mkdir()
    daemon.start()
    assert "does not know" not in daemon.log()
    collect(daemon)
    assert stored(daemon) == before


@pytest.mark.parametrize("of", [meta, records], ids=["meta.db", "metadata.db"])
def test_a_damaged_database_is_one_line_with_path_cause_and_remedy(daemon: Peer, of: Callable[[Peer], Path]) -> None:
    before = stored(daemon)
    daemon.stop()
    daemon.log_path.unlink()
    with of(daemon).open("r+b") as file:
        file.seek(4096)
        file.write(b"\x5a" * 4096)
    daemon.start(wait=of is records)
    if of is meta:
        assert daemon.process is not None
        assert daemon.process.wait(20) == 1
        daemon.process = None
        assert len(daemon.log().splitlines()) == 1, daemon.log()
    named = [line for line in daemon.log().splitlines() if str(of(daemon)) in line]
    assert len(named) == 1, daemon.log()
    assert "is damaged" in named[0]
    command = f"aiocontainerd index restore {of(daemon)}"
    assert command in named[0]
    daemon.stop()
    done = subprocess.run([SCRIPTS / "aiocontainerd", *command.split()[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    daemon.start()
    collect(daemon)
    assert stored(daemon) == before
    daemon.ctr("run", "--rm", IMAGE, "c", "true")


def test_an_upgrade_keeps_everything_and_goes_on_deleting(daemon: Peer) -> None:
    before = stored(daemon)
    daemon.ctr("snapshots", "prepare", "gone")
    (leftover,) = stored(daemon) - before
    daemon.stop()
    _downgrade(daemon, leftover)
    daemon.start()
    assert "does not know" not in daemon.log()
    collect(daemon)
    assert stored(daemon) == before


def _downgrade(daemon: Peer, leftover: str) -> None:
    """Make the root one of the release before, with what a crash left there."""
    for path, tables in (
        (meta(daemon), ("identity", "owned", "kept", "past", "leftovers")),
        (records(daemon), ("identity", "kept", "past", "leftovers")),
    ):
        with sqlite3.connect(path) as db:
            for table in tables:
                db.execute(f"DROP TABLE {table}")
            db.execute("PRAGMA user_version = 1")
            if path == records(daemon):
                db.execute("DELETE FROM snapshots WHERE id = ?", (int(leftover),))
        db.close()
    for mark in daemon.root.glob("*/*.mark"):
        mark.unlink()
    (daemon.root / CONTENT / "blobs" / "sha256" / ("a" * 64)).write_text("x")


def test_what_a_lost_index_keeps_can_be_linked_by_a_pull_and_let_go(daemon: Peer, archive: Path) -> None:
    before = stored(daemon)
    daemon.stop()
    lose(meta(daemon))
    daemon.start()
    daemon.ctr("images", "import", str(archive))
    daemon.ctr("run", "--rm", IMAGE, "c", "true")
    collect(daemon)
    assert stored(daemon) > before, "the directory of the snapshot is a new one"
    daemon.stop()
    command = [str(SCRIPTS / "aiocontainerd"), f"--config={daemon.config_path}", f"--root={daemon.root}", "index"]
    shown = subprocess.run([*command, "ls"], capture_output=True, text=True, check=True).stdout
    assert f"{meta(daemon)}: ok, keeps 1 objects that no record knows; copies: 20" in shown
    subprocess.run([*command, "release"], check=True)
    daemon.start()
    collect(daemon)
    assert len(stored(daemon)) == len(before)
    daemon.ctr("run", "--rm", IMAGE, "c", "true")


def test_a_running_daemon_is_not_repaired(daemon: Peer) -> None:
    command = [str(SCRIPTS / "aiocontainerd"), "index", "restore", "--empty", str(meta(daemon))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "is in use by another daemon" in done.stderr
    assert meta(daemon).exists()


def test_a_truncated_blob_is_named_when_it_is_read_and_made_anew_by_an_import(daemon: Peer, archive: Path) -> None:
    blobs = daemon.root / CONTENT / "blobs" / "sha256"
    layer = max(blobs.iterdir(), key=lambda path: path.stat().st_size)
    size = layer.stat().st_size
    layer.chmod(0o644)
    with layer.open("r+b") as file:
        file.truncate(size // 2)
    read = daemon.ctr("content", "get", f"sha256:{layer.name}", check=False)
    assert f"content sha256:{layer.name} is damaged: {size // 2} of {size} bytes are there".encode() in read.stderr
    daemon.ctr("images", "import", str(archive))
    assert layer.stat().st_size == size
    daemon.ctr("content", "get", f"sha256:{layer.name}")


def test_a_directory_of_a_snapshot_removed_by_hand_is_named_and_an_import_makes_it_anew(
    daemon: Peer, archive: Path
) -> None:
    shutil.rmtree(daemon.root / SNAPSHOTTER / "snapshots" / "1")
    refused = daemon.ctr("run", "--rm", IMAGE, "c", "true", check=False)
    assert f"has lost its files: {daemon.root / SNAPSHOTTER / 'snapshots' / '1'} is missing".encode() in refused.stderr
    daemon.ctr("images", "rm", "--sync", IMAGE)
    daemon.ctr("images", "import", str(archive))
    daemon.ctr("run", "--rm", IMAGE, "d", "true")
