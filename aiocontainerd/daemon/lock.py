"""One daemon for each root directory: an advisory lock, which the kernel drops when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_NAME = "aiocontainerd.lock"


class RootLockedError(Exception):
    """Raised when another daemon uses this root directory."""


@contextmanager
def hold(root: Path) -> Iterator[None]:
    """Hold the lock of `root` during the block. Raises RootLockedError, which names the root and the holder's pid."""
    path = root / LOCK_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise RootLockedError(
                f"root {root} is in use by another daemon (pid {holder}); "
                "stop it, or give this one its own --root and --state"
            ) from None
        _name_holder(descriptor)
        yield
    finally:
        os.close(descriptor)


def _name_holder(descriptor: int) -> None:
    """Write who holds the lock. On a full disk nobody can read that, and the lock holds all the same."""
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
