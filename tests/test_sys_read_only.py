"""Read-only file systems are told from others, and nothing is left of the trial."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from aiocontainerd.sys import read_only
from aiocontainerd.testing.disks import MemoryDisk


@pytest.mark.root
def test_a_read_only_file_system_is_told_until_it_is_writable(disk: MemoryDisk) -> None:
    assert not read_only.is_read_only(disk.directory)
    disk.remount("ro")
    assert read_only.has_flag(disk.directory)
    assert read_only.is_read_only(disk.directory)
    disk.remount("rw")
    assert not read_only.has_flag(disk.directory)
    assert not read_only.is_read_only(disk.directory)
    assert disk.names() == []


def test_a_file_system_that_is_damaged_has_no_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: object, *_args: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "open", refused)
    assert not read_only.has_flag(tmp_path)
    assert read_only.is_read_only(tmp_path)


def test_a_directory_that_is_missing_or_full_is_not_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not read_only.is_read_only(tmp_path / "none")
    assert not read_only.has_flag(tmp_path / "none")

    def refused(path: object, *_args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(os, "open", refused)
    assert not read_only.is_read_only(tmp_path)


def test_databases_wait_until_one_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "a" / "meta.db", tmp_path / "b" / "metadata.db"
    for path in (second, first):
        read_only.wait_for(path)
    try:
        assert read_only.waiting() == [first, second]
        monkeypatch.setattr(read_only, "is_read_only", lambda directory: directory.name == "a")
        assert read_only.some_can_be_written()
        read_only.give_up(second)
        assert not read_only.some_can_be_written()
    finally:
        for path in (first, second):
            read_only.give_up(path)
    assert read_only.waiting() == []
