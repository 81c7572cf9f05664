"""Cgroup files as they read, and changes of files."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from aiocontainerd.sys import cgroup, inotify


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("42\n", 42), ("max\n", cgroup.UNLIMITED), ("-1", 0), ("words", 0), ("", 0)]
)
def test_single_numbers(tmp_path: Path, text: str, value: int) -> None:
    (tmp_path / "file").write_text(text)
    assert cgroup.read_int(str(tmp_path / "file")) == value


def test_file_that_is_not_offered_is_empty(tmp_path: Path) -> None:
    path = str(tmp_path / "missing")
    assert cgroup.read_text(path) is None
    assert cgroup.read_int(path) == 0
    assert cgroup.read_flat(path) == {}
    assert cgroup.read_nested(path) == {}


@pytest.mark.parametrize("size", [0, 1023, 1024, 70_000, 1 << 16])
def test_a_file_is_read_whole(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_text("x" * size)
    assert cgroup.read_text(str(tmp_path / "file")) == "x" * size


def test_a_file_that_the_kernel_gives_in_pieces_is_read_whole() -> None:
    # at most a page of such a list at a time
    read = cgroup.read_text("/proc/kallsyms")
    assert read is not None
    assert len(read.splitlines()) == len(Path("/proc/kallsyms").read_text().splitlines())


def test_bytes_that_are_no_text_are_kept(tmp_path: Path) -> None:
    (tmp_path / "stat").write_bytes(b"42 (\xff) S")
    assert cgroup.read_text(str(tmp_path / "stat")) == "42 (\udcff) S"


def test_flat_and_nested_files(tmp_path: Path) -> None:
    (tmp_path / "flat").write_text("low 0\nmax 3\nodd line here\n")
    assert cgroup.read_flat(str(tmp_path / "flat")) == {"low": 0, "max": 3}
    (tmp_path / "nested").write_text("8:0 rbytes=1 wbytes=max\n7:0\n")
    assert cgroup.read_nested(str(tmp_path / "nested")) == {"8:0": {"rbytes": "1", "wbytes": "max"}, "7:0": {}}


def test_process_is_added_by_its_pid(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").touch()
    cgroup.add_process(str(tmp_path), 42)
    assert (tmp_path / "cgroup.procs").read_text() == "42"
    with pytest.raises(FileNotFoundError, match="gone"):
        cgroup.add_process(str(tmp_path / "gone"), 42)


def test_this_process_is_somewhere() -> None:
    paths = cgroup.locate(os.getpid())
    assert paths.exists()
    assert paths.is_unified != bool(paths.controllers)


def test_a_changed_file_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    fd = inotify.open_instance()
    try:
        assert not os.get_inheritable(fd)
        watch = inotify.add_watch(fd, str(file), inotify.IN_MODIFY)
        with pytest.raises(BlockingIOError):
            os.read(fd, 4096)
        file.write_text("changed")
        assert struct.unpack_from("iIII", os.read(fd, 4096))[:2] == (watch, inotify.IN_MODIFY)
        with pytest.raises(FileNotFoundError, match="gone"):
            inotify.add_watch(fd, str(tmp_path / "gone"), inotify.IN_MODIFY)
    finally:
        os.close(fd)


def test_a_caller_that_gives_the_mounts_saves_reading_them(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = cgroup.mounts()
    expected = cgroup.locate(os.getpid())
    monkeypatch.setattr("aiocontainerd.sys.mountinfo.read", lambda *_: pytest.fail("the mounts were read"))
    assert cgroup.locate(os.getpid(), mounts=trees) == expected
