"""Loop devices (loop(4)): use a file as a block device. A device frees itself when its last user is gone."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

LOOP_CTL_GET_FREE = 0x4C82
LOOP_CONFIGURE = 0x4C0A
LO_FLAGS_READ_ONLY = 0x1
LO_FLAGS_AUTOCLEAR = 0x4
LO_FLAGS_DIRECT_IO = 0x10
_TRIES = 100


class _LoopInfo(ctypes.Structure):
    _fields_ = (
        ("device", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("rdevice", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("sizelimit", ctypes.c_uint64),
        ("number", ctypes.c_uint32),
        ("encrypt_type", ctypes.c_uint32),
        ("encrypt_key_size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("file_name", ctypes.c_char * 64),
        ("crypt_name", ctypes.c_char * 64),
        ("encrypt_key", ctypes.c_uint8 * 32),
        ("init", ctypes.c_uint64 * 2),
    )


class _LoopConfig(ctypes.Structure):
    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _LoopInfo),
        ("reserved", ctypes.c_uint64 * 8),
    )


@contextmanager
def attached(path: str, *, read_only: bool, direct_io: bool = False) -> Iterator[str]:
    """Attach the file `path` to a loop device and yield the device's name. A mount made in the block keeps the device.

    Raises OSError naming the file, or the device that refused the file.
    """
    backing = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    try:
        device, name = _configured(backing, path, read_only=read_only, direct_io=direct_io)
    finally:
        os.close(backing)
    try:
        yield name
    finally:
        os.close(device)


def _configured(backing: int, path: str, *, read_only: bool, direct_io: bool) -> tuple[int, str]:
    for _ in range(_TRIES):
        name = _free_device()
        device = os.open(name, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(device, LOOP_CONFIGURE, _config(backing, path, read_only=read_only, direct_io=direct_io))
        except OSError as error:
            os.close(device)
            if error.errno != errno.EBUSY:  # EBUSY: somebody else took the free device first
                raise OSError(error.errno, error.strerror, name) from error
        else:
            return device, name
    raise OSError(errno.EBUSY, "every free loop device was taken by somebody else", path)


def _free_device() -> str:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        return f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
    finally:
        os.close(control)


def _config(backing: int, path: str, *, read_only: bool, direct_io: bool) -> _LoopConfig:
    flags = LO_FLAGS_AUTOCLEAR
    flags |= LO_FLAGS_READ_ONLY if read_only else 0
    flags |= LO_FLAGS_DIRECT_IO if direct_io else 0
    info = _LoopInfo(flags=flags, file_name=os.fsencode(path)[:63])
    return _LoopConfig(fd=backing, info=info)
