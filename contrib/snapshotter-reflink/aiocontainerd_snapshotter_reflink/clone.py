"""Copy trees so that files share their blocks until one side is written. Blocks: run it in a thread."""

from __future__ import annotations

import os
import shutil
import stat
from fcntl import ioctl

from anyio import from_thread

FICLONE = 0x40049409
"""ioctl_ficlone(2): a file takes over the blocks of another; fails where the file system cannot share them."""


def clone_tree(source: str, target: str) -> None:
    """Make `target` a copy of the directory `source`: owners, modes, times, attributes, hard links, devices, holes.

    It ends with the call it works for where that is cancelled. Raise OSError naming the path.
    """
    first_copies: dict[tuple[int, int], str] = {}
    directories = [(source, target)]
    for old, new in directories:  # grows on the way, parents first
        os.mkdir(new, 0o700)
        for entry in list(os.scandir(old)):
            from_thread.check_cancelled()
            pair = entry.path, os.path.join(new, entry.name)
            directories.append(pair) if entry.is_dir(follow_symlinks=False) else clone_entry(*pair, first_copies)
    for old, new in reversed(directories):  # a directory's times change with its entries, so they are set last
        keep_status(os.lstat(old), old, new)


def clone_entry(source: str, target: str, first_copies: dict[tuple[int, int], str]) -> None:
    """Make what is no directory; `first_copies` has the path of the first copy by the inode's device and number."""
    status = os.lstat(source)
    first = first_copies.setdefault((status.st_dev, status.st_ino), target) if status.st_nlink > 1 else target
    if first != target:
        return os.link(first, target, follow_symlinks=False)
    if stat.S_ISREG(status.st_mode):
        clone_file(source, target)
    elif stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), target)
    else:
        os.mknod(target, status.st_mode, status.st_rdev)
    return keep_status(status, source, target)


def clone_file(source: str, target: str) -> None:
    """Share the blocks of a file. If the file system cannot, copy those that are not all zeros."""
    with open(source, "rb") as old, open(target, "xb") as new:
        try:
            ioctl(new, FICLONE, old.fileno())
        except OSError:
            while block := old.read(1 << 16):
                from_thread.check_cancelled()
                new.seek(len(block), os.SEEK_CUR) if block.count(0) == len(block) else new.write(block)
            new.truncate()


def keep_status(status: os.stat_result, source: str, target: str) -> None:
    """Copy owner, mode, attributes and times. The owner comes first: it removes set-user-ID and capabilities."""
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    shutil.copystat(source, target, follow_symlinks=False)
