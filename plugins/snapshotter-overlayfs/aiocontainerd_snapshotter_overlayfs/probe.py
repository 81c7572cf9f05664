"""Try in temporary directories what the kernel and the file system below a root can do with overlay.

The functions block: they make and undo a mount or two, some milliseconds of work.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from aiocontainerd.errors import ContainerdError
from aiocontainerd.sys.mount import KERNEL, Mount, Mounter, mounted

INDEX_PARAMETER = "/sys/module/overlay/parameters/index"
_WHOLE_RANGE = ["0", "0", "4294967295"]
_USERXATTR_SINCE = (5, 11)
_DT_UNKNOWN = 0
_DIRENT_TYPE_OFFSET = 18
_DIRENT_NAME_OFFSET = 19


class Support(msgspec.Struct, frozen=True, kw_only=True):
    """`missing` says why overlay cannot be used and is empty where it can."""

    missing: str = ""
    index: bool = False
    userxattr: bool = False
    id_mapped: bool = False
    user_namespace: bool = False


def probe(root: str, *, mounter: Mounter = KERNEL) -> Support:
    """Return what overlay can do with directories below `root`, which exists."""
    if not has_d_type(root):
        return Support(missing=f"the file system of {root} does not support d_type (xfs needs ftype=1)")
    missing = _refusal(root, (), mounter)
    nested = in_user_namespace()
    userxattr = nested and kernel_version() >= _USERXATTR_SINCE and not _refusal(root, ("userxattr",), mounter)
    if missing and not userxattr:
        return Support(missing=missing, user_namespace=nested)
    return Support(
        index=os.path.exists(INDEX_PARAMETER),
        userxattr=userxattr,
        id_mapped=not nested and not _refusal(root, ("uidmap=0:1:1", "gidmap=0:1:1"), mounter),
        user_namespace=nested,
    )


def assumed(state: str, *, mounter: Mounter = KERNEL) -> Support:
    """Return what overlay can do below a root that takes no changes now, where it has worked before.

    What depends on the kernel alone is tried below `state`. Nothing there rules overlay out.
    """
    nested = in_user_namespace()
    return Support(
        index=os.path.exists(INDEX_PARAMETER),
        userxattr=nested and kernel_version() >= _USERXATTR_SINCE,
        id_mapped=not nested and not _refusal(state, ("uidmap=0:1:1", "gidmap=0:1:1"), mounter),
        user_namespace=nested,
    )


def in_user_namespace() -> bool:
    """Return whether this process lives in a user namespace below the first one."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return file.read().split() != _WHOLE_RANGE
    except FileNotFoundError:
        return False


def kernel_version() -> tuple[int, int]:
    """Return major and minor number of the running kernel."""
    numbers = re.match(r"(\d+)\.(\d+)", platform.release())
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def _refusal(root: str, options: tuple[str, ...], mounter: Mounter) -> str:
    """Return why an overlay with `options` cannot be mounted below `root`; empty if it can."""
    with _scratch(root) as directory:
        for name in ("lower1", "lower2", "upper", "work", "merged"):
            os.mkdir(os.path.join(directory, name))
        layers = (
            f"lowerdir={directory}/lower2:{directory}/lower1",
            f"upperdir={directory}/upper",
            f"workdir={directory}/work",
        )
        try:
            with mounted([Mount("overlay", "overlay", options=options + layers)], directory, mounter=mounter):
                return ""
        except (OSError, ContainerdError) as error:
            return f"failed to mount overlay below {root}: {_reason(error)}"


def _reason(error: BaseException) -> str:
    """Return what the system said first, without the temporary paths that later words name."""
    while error.__cause__ is not None:
        error = error.__cause__
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


@contextmanager
def _scratch(root: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="overlayfs-check", dir=root) as directory:
        yield directory


def has_d_type(root: str) -> bool:
    """Return whether listing a directory of this file system tells the types of its entries, as overlay needs."""
    with _scratch(root) as directory:
        open(os.path.join(directory, "probe"), "w", encoding="ascii").close()
        return _entry_types(directory).get("probe", _DT_UNKNOWN) != _DT_UNKNOWN


def _entry_types(path: str) -> dict[str, int]:
    """Return name and d_type of each entry by readdir(3). os.scandir hides an unknown type behind a stat."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(libc.opendir(os.fsencode(path)))
    if not stream:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    types: dict[str, int] = {}
    try:
        while entry := libc.readdir(stream):
            name = os.fsdecode(ctypes.string_at(entry + _DIRENT_NAME_OFFSET))
            types[name] = ctypes.c_ubyte.from_address(entry + _DIRENT_TYPE_OFFSET).value
    finally:
        libc.closedir(stream)
    return types
