from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path

import pytest

from aiocontainerd.interfaces.snapshotter import Usage
from aiocontainerd.snapshots.disk import make_directory, measure, remove_tree, usage_of_tree

pytestmark = pytest.mark.anyio


def test_blocks_are_counted_and_a_hard_linked_file_once(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "dir").mkdir(parents=True)
    (tree / "file").write_bytes(b"x" * 10_000)
    os.link(tree / "file", tree / "dir" / "again")
    expected = sum(os.lstat(path).st_blocks for path in (tree, tree / "dir", tree / "file")) * 512
    assert measure(str(tree)) == Usage(expected, 3)


def test_each_inode_of_many_names_counts_once(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}").touch()
        for other in range(number % 4):
            os.link(tmp_path / f"{number}", tmp_path / f"{number}-{other}")
    os.link(tmp_path / "0", tmp_path.parent / f"{tmp_path.name}-elsewhere")
    assert measure(str(tmp_path)).inodes == 21


def test_memory_does_not_grow_with_the_files_of_a_directory(tmp_path: Path) -> None:
    for number in range(5000):
        (tmp_path / f"{number:0100}").touch()
    tracemalloc.start()
    try:
        assert measure(str(tmp_path)).inodes == 5001
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5000 * 40


def test_a_hole_takes_no_space(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert measure(str(tmp_path)).size < 1 << 20


def test_links_are_not_followed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "link").symlink_to("/usr")
    assert measure(str(tree)).inodes == 2


async def test_a_missing_tree_takes_no_space_and_is_removed_already(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert await usage_of_tree(missing) == Usage()
    await remove_tree(missing)


async def test_removal_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")
    await remove_tree(tmp_path / "tree")
    assert (tmp_path / "kept" / "file").exists()
    assert not (tmp_path / "tree").exists()


async def test_a_file_is_removed_too(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    await remove_tree(tmp_path / "file")
    assert os.listdir(tmp_path) == []


async def test_a_directory_is_made_with_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        await make_directory(str(tmp_path / "dir"), 0o711)
    finally:
        os.umask(before)
    assert (tmp_path / "dir").stat().st_mode & 0o7777 == 0o711


@pytest.mark.root
async def test_a_directory_inherits_nothing(tmp_path: Path) -> None:
    entries = ((1, 7, 0xFFFFFFFF), (2, 7, 1000), (4, 5, 0xFFFFFFFF), (0x10, 7, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *item) for item in entries)
    os.chown(tmp_path, 0, 77)
    tmp_path.chmod(0o2775)
    try:
        os.setxattr(tmp_path, "system.posix_acl_default", acl)
    except OSError as error:
        pytest.skip(f"the file system of {tmp_path} has no ACLs: {error.strerror}")
    await make_directory(str(tmp_path / "made"), 0o755)
    status = (tmp_path / "made").stat()
    assert (oct(status.st_mode), status.st_gid) == ("0o40755", os.getegid())
    assert os.listxattr(tmp_path / "made") == []


async def test_a_large_tree_is_deleted_outside_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "large").mkdir()
    for number in range(200):
        (tmp_path / "large" / str(number)).touch()
    monkeypatch.setattr(os, "unlink", None)
    await remove_tree(tmp_path / "large")
    assert os.listdir(tmp_path) == []


async def test_a_large_tree_that_cannot_be_deleted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, programs = tmp_path / "tree", tmp_path / "bin"
    tree.mkdir()
    for number in range(200):
        (tree / str(number)).touch()
    programs.mkdir()
    (programs / "rm").write_text("#!/bin/sh\necho Read-only file system >&2\nexit 1\n")
    (programs / "rm").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(OSError, match=r"tree cannot be removed: Read-only file system"):
        await remove_tree(tree)


async def test_a_tree_of_any_depth_is_removed(tmp_path: Path) -> None:
    top = tmp_path / "deep"
    top.mkdir()
    directory = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(2_000):
        os.mkdir("d", dir_fd=directory)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
        os.close(directory)
        directory = below
    os.close(directory)
    await remove_tree(top)
    assert not top.exists()
