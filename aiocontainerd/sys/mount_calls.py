"""The system calls of mounting, one a function (mount(2), umount2(2), open_tree(2), mount_setattr(2), move_mount(2)).

Every failure is an OSError that names the path. ctypes releases the interpreter lock during a call, so a slow call
delays its own thread only.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import NoReturn

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_SILENT = 0x8000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MNT_FORCE = 0x1
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
AT_FDCWD = -100
AT_RECURSIVE = 0x8000
AT_EMPTY_PATH = 0x1000
MOVE_MOUNT_F_EMPTY_PATH = 0x4

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOSYMFOLLOW = 0x200000
MOUNT_ATTR_IDMAP = 0x100000

CLONE_FS = 0x200

# Calls that are newer than Linux 5.1 have the same number on every architecture.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.syscall.restype = ctypes.c_long


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _fail(path: str) -> NoReturn:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), path)


def mount(source: str, target: str, fs_type: str, flags: int, data: str = "") -> None:
    """Call mount(2). An empty type or data is passed as NULL."""
    if any("\0" in text for text in (source, target, fs_type, data)):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), target)
    arguments = (os.fsencode(source), os.fsencode(target), fs_type.encode() or None, flags, os.fsencode(data) or None)
    if _libc.mount(*arguments) != 0:
        _fail(target)


def umount(target: str, flags: int = 0) -> None:
    """Call umount2(2), without following a symbolic link in the last component."""
    if _libc.umount2(os.fsencode(target), flags | UMOUNT_NOFOLLOW) != 0:
        _fail(target)


def open_tree(path: str, flags: int) -> int:
    """Return a descriptor of the mount at `path`, or of a detached copy with OPEN_TREE_CLONE. The caller closes it."""
    descriptor: int = _libc.syscall(_SYS_OPEN_TREE, AT_FDCWD, os.fsencode(path), flags | OPEN_TREE_CLOEXEC)
    if descriptor < 0:
        _fail(path)
    return descriptor


def mount_setattr(tree: int, attributes: int, *, recursive: bool, userns: int = -1, path: str = "") -> None:
    """Call mount_setattr(2) on a descriptor that `open_tree` returned. `path` serves only for the error."""
    change = _MountAttr(attr_set=attributes, userns_fd=max(userns, 0))
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    size = ctypes.c_size_t(ctypes.sizeof(change))
    if _libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", flags, ctypes.byref(change), size) != 0:
        _fail(path)


def move_mount(tree: int, target: str) -> None:
    """Attach the detached mount behind the descriptor `tree` at `target` (move_mount(2))."""
    arguments = (tree, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH)
    if _libc.syscall(_SYS_MOVE_MOUNT, *arguments) != 0:
        _fail(target)


def syncfs(path: str) -> None:
    """Write out everything of the file system that holds `path` (syncfs(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        if _libc.syncfs(descriptor) != 0:
            _fail(path)
    finally:
        os.close(descriptor)


def unshare_fs() -> None:
    """Give the calling thread a working directory of its own (unshare(2) with CLONE_FS)."""
    if _libc.unshare(CLONE_FS) != 0:
        _fail("working directory")
