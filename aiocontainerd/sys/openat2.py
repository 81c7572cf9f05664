"""openat2(2): open a path that stays inside a directory, wherever its symbolic links point."""

from __future__ import annotations

import ctypes
import os

_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_in_root(root: str, path: str, flags: int = os.O_RDONLY) -> int:
    """Open `path` with `root` as its `/`, also for absolute links and `..`. Raises OSError naming both."""
    libc = ctypes.CDLL(None, use_errno=True)
    how = _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = path.lstrip("/").encode() or b"."
        opened = libc.syscall(_OPENAT2, directory, name, ctypes.byref(how), ctypes.sizeof(how))
    finally:
        os.close(directory)
    if opened < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), f"{path} in {root}")
    return int(opened)
