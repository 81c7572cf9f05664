from __future__ import annotations

import os
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
