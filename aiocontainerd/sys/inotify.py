"""inotify(7): watch files for changes through a file descriptor. A failure is an OSError that names the path."""

from __future__ import annotations

import ctypes
import os

IN_MODIFY = 0x2

_libc = ctypes.CDLL(None, use_errno=True)


def open_instance() -> int:
    """Return a new inotify descriptor: non-blocking, close-on-exec. The caller reads it until empty, and closes it."""
    return _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")


def add_watch(fd: int, path: str, mask: int) -> int:
    """Watch `path` for the events of `mask`. Returns the watch descriptor."""
    return _checked(_libc.inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint32(mask)), path)


def _checked(result: int, name: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    return result
