"""Make, list, measure and remove trees of files, off the event loop."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator

import anyio.to_thread

from aiocontainerd.interfaces.snapshotter import Usage

_BLOCK_BYTES = 512
_ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_SMALL_ENTRIES = 64
"""A tree of so many entries is deleted in 1 to 2 ms, about what starting `rm` takes (measured on ext4)."""


async def make_directory(path: str, mode: int) -> None:
    """Make one directory with exactly this mode, owned by this process, without ACLs. Raises OSError naming it.

    The umask has no say, nor has the directory that it is made in: an image's root is not the host's business.
    """
    await anyio.to_thread.run_sync(make_directory_now, path, mode)


def make_directory_now(path: str, mode: int) -> None:
    """Do what `make_directory` does, in the calling thread."""
    os.mkdir(path, mode)
    os.chown(path, os.geteuid(), os.getegid())
    for name in _ACLS:
        try:
            os.removexattr(path, name)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP):
                raise
    os.chmod(path, mode)


async def names_in(directory: str | os.PathLike[str]) -> list[str]:
    """Return the names in a directory."""
    return await anyio.to_thread.run_sync(os.listdir, directory)


async def usage_of_tree(path: str | os.PathLike[str]) -> Usage:
    """Return the disk space and inodes of everything at `path`: allocated blocks, each inode once, with directories.

    A file that disappears while the tree is walked is not counted.
    """
    return await anyio.to_thread.run_sync(measure, os.fspath(path))


def measure(path: str) -> Usage:
    """Do what `usage_of_tree` does, in the calling thread."""
    try:
        top = os.lstat(path)
    except FileNotFoundError:
        return Usage()
    size, inodes = top.st_blocks, 1
    names_left: dict[tuple[int, int], int] = {}
    """Of the inodes with several names whose first one was seen."""
    pending = [path]
    while pending:
        for entry in _entries(pending.pop()):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            elif status.st_nlink > 1 and _was_seen(status, names_left):
                continue
            size += status.st_blocks
            inodes += 1
    return Usage(size * _BLOCK_BYTES, inodes)


def _was_seen(status: os.stat_result, names_left: dict[tuple[int, int], int]) -> bool:
    """Return whether another name of the inode was seen. Forget it with its last name."""
    inode = (status.st_dev, status.st_ino)
    left = names_left.pop(inode, 0)
    remaining = (left or status.st_nlink) - 1
    if remaining:
        names_left[inode] = remaining
    return left > 0


def _entries(directory: str) -> Iterator[os.DirEntry[str]]:
    """Yield the entries one by one: a list of those of a large directory takes a kilobyte for each."""
    try:
        with os.scandir(directory) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return


async def remove_tree(path: str | os.PathLike[str]) -> None:
    """Delete a tree or a file if it exists. Raises OSError naming the path that cannot be deleted."""
    await anyio.to_thread.run_sync(_remove, os.fspath(path))


def _remove(path: str) -> None:
    """Delete a small tree in this thread. Leave a larger one to `rm`, which keeps no lock from the event loop."""
    try:
        if _is_small(path):
            shutil.rmtree(path)
        else:
            _remove_by_program(path)
    except FileNotFoundError:
        if os.path.lexists(path):
            raise
    except NotADirectoryError:
        os.unlink(path)


def _is_small(path: str) -> bool:
    """Return whether deleting the tree takes less than starting a program does. Raises what `os.scandir` raises."""
    pending, entries = [path], 0
    while pending:
        with os.scandir(pending.pop()) as found:
            for entry in found:
                entries += 1
                if entries > _SMALL_ENTRIES:
                    return False
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
    return True


def _remove_by_program(path: str) -> None:
    done = subprocess.run(["rm", "-rf", "--one-file-system", "--", path], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{path} cannot be removed: {done.stderr.strip()}")
