"""One daemon for each root directory: an advisory lock, which the kernel drops when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_NAME = "aiocontainerd.lock"


class RootLockedError(Exception):
    """Raised when another daemon uses this root directory."""


@contextmanager
def hold(root: Path) -> Iterator[None]:
    """Hold the lock of `root` during the block. Raises RootLockedError, which names the root and the holder's pid."""
    descriptor, is_writable = _opened(root / LOCK_NAME)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RootLockedError(
                f"root {root} is in use by another daemon (pid {_holder(descriptor)}); "
                "stop it, or give this one its own --root and --state"
            ) from None
        if is_writable:
            _name_holder(descriptor)
        yield
    finally:
        os.close(descriptor)


def _opened(path: Path) -> tuple[int, bool]:
    """Return a descriptor to lock, and whether the file can be written.

    On a read-only file system a lock holds as well. Without a file it is that of the directory.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), True
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False
    except FileNotFoundError:
        return os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), False


def _holder(descriptor: int) -> str:
    """Return the pid of the process with the lock: by the kernel's list, else as the file says."""
    status = os.fstat(descriptor)
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with open("/proc/locks", encoding="ascii") as locks:
        for fields in map(str.split, locks):
            if fields[1] == "FLOCK" and fields[5] == wanted and int(fields[4]) > 0:
                return fields[4]
    if stat.S_ISDIR(status.st_mode):
        return "unknown"
    return os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"


def _name_holder(descriptor: int) -> None:
    """Write who holds the lock. On a full disk nobody can read that, and the lock holds all the same."""
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
