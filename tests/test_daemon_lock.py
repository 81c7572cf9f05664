"""One daemon a root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aiocontainerd.daemon.lock import LOCK_NAME, RootLockedError, hold
from aiocontainerd.testing.disks import MemoryDisk

HOLD = (
    "import sys; from pathlib import Path\nfrom aiocontainerd.daemon.lock import hold\nwith hold(Path(sys.argv[1])):\n"
)


def test_a_second_holder_is_told_who_has_the_root_and_what_to_do(tmp_path: Path) -> None:
    with hold(tmp_path), pytest.raises(RootLockedError) as failed, hold(tmp_path):
        raise AssertionError("two holders")
    assert str(failed.value) == (
        f"root {tmp_path} is in use by another daemon (pid {os.getpid()}); "
        "stop it, or give this one its own --root and --state"
    )


def test_a_refused_second_holder_does_not_take_the_lock_away(tmp_path: Path) -> None:
    with hold(tmp_path):
        for _ in range(2):
            with pytest.raises(RootLockedError), hold(tmp_path):
                pass
        assert (tmp_path / LOCK_NAME).read_text() == f"{os.getpid()}\n"


def test_a_released_root_can_be_held_again(tmp_path: Path) -> None:
    for _ in range(2):
        with hold(tmp_path):
            pass


def test_the_lock_file_of_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", f"{HOLD}    import os, signal; os.kill(os.getpid(), signal.SIGKILL)", str(tmp_path)],
        check=False,
    )
    assert killed.returncode == -9
    assert (tmp_path / LOCK_NAME).read_text().strip().isdigit()
    with hold(tmp_path):
        assert (tmp_path / LOCK_NAME).read_text() == f"{os.getpid()}\n"


def test_a_child_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    code = "print(flush=True); input()"
    pipe = subprocess.PIPE
    with hold(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, close_fds=False)
        assert child.stdout is not None
        child.stdout.readline()
    try:
        with hold(tmp_path):
            pass
    finally:
        child.communicate(b"\n")


@pytest.mark.root
@pytest.mark.parametrize("has_file", [True, False])
def test_the_lock_holds_on_a_read_only_file_system_and_names_its_true_holder(disk: MemoryDisk, has_file: bool) -> None:
    if has_file:
        (disk.directory / LOCK_NAME).write_text("1\n")
    disk.remount("ro")
    with (
        hold(disk.directory),
        pytest.raises(RootLockedError, match=rf"in use by another daemon \(pid {os.getpid()}\)"),
        hold(disk.directory),
    ):
        raise AssertionError("two holders")
    with hold(disk.directory):
        pass


def test_a_lock_file_of_rubbish_is_somebody_unknown_or_named(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_bytes(b"\xff\xfe" * 40)
    with hold(tmp_path):
        assert (tmp_path / LOCK_NAME).read_text() == f"{os.getpid()}\n"
