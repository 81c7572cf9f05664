"""Mount and unmount lists of mounts, as snapshotters return them (facts/core 7, 8).

`mount_plan` decides what to do without touching anything. A `Mounter` is the one door to the kernel; `FakeMounter`
replaces it in tests that run without root. The functions here block. A program with an event loop uses `temp_mount`
and `in_thread`.
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from aiocontainerd.errors import os_text
from aiocontainerd.sys.mount_calls import MNT_DETACH, syncfs
from aiocontainerd.sys.mount_plan import Mount, MountStep, plan, read_only, target_of, without_volatile
from aiocontainerd.sys.mounter import FakeMounter, KernelMounter, Mounter
from aiocontainerd.sys.mountinfo import MountInfo

__all__ = [
    "KERNEL",
    "MNT_DETACH",
    "FakeMounter",
    "KernelMounter",
    "Mount",
    "MountInfo",
    "MountStep",
    "Mounter",
    "in_thread",
    "mount_all",
    "mounted",
    "mounts_under",
    "plan",
    "read_only",
    "syncfs",
    "target_of",
    "temp_mount",
    "unmount",
    "unmount_all",
    "unmount_recursive",
    "without_volatile",
]  # fmt: skip

KERNEL: Mounter = KernelMounter()

_BUSY_TRIES = 20
_BUSY_PAUSE_S = 0.05

T = TypeVar("T")


def mount_all(mounts: Sequence[Mount], target: str, *, mounter: Mounter = KERNEL) -> None:
    """Mount `mounts` in order on `target`. When one of them fails, those before it are unmounted again.

    Raises OSError naming the path, InvalidArgument for options or targets that cannot work.
    """
    done: list[str] = []
    try:
        for mount in mounts:
            (step,) = plan([mount], target)
            mounter.mount(step)
            done.append(step.target)
    except BaseException:
        for path in reversed(done):
            _unmount_top(path, MNT_DETACH, mounter)
        raise


def unmount(target: str, flags: int = 0, *, mounter: Mounter = KERNEL) -> None:
    """Unmount everything stacked at `target`. Do nothing when `target` is missing or no mount point.

    A mount that stays busy for a second is detached: it leaves `target` at once and ends with its last user.
    """
    while _unmount_top(target, flags, mounter):
        pass


def unmount_all(mounts: Sequence[Mount], target: str, flags: int = 0, *, mounter: Mounter = KERNEL) -> None:
    """Undo `mount_all(mounts, target)` in reverse order. Mounts that are gone already are skipped."""
    for mount in reversed(mounts):
        unmount(target_of(mount, target), flags, mounter=mounter)
    unmount(target, flags, mounter=mounter)


def unmount_recursive(path: str, flags: int = 0, *, mounter: Mounter = KERNEL) -> None:
    """Unmount everything at `path` and below it, deepest first. Continue after a failure and raise the last one."""
    failure: OSError | None = None
    for info in reversed(mounter.mounts_under(path)):
        try:
            _unmount_top(info.mount_point, flags, mounter)
        except OSError as error:
            failure = error
    if failure is not None:
        raise failure


def _unmount_top(target: str, flags: int, mounter: Mounter) -> bool:
    """Unmount the topmost mount at `target`. Return False when nothing is mounted there."""
    for _ in range(_BUSY_TRIES):
        try:
            mounter.unmount(target, flags)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                return False
            if error.errno != errno.EBUSY:
                raise
            time.sleep(_BUSY_PAUSE_S)
        else:
            return True
    mounter.unmount(target, flags | MNT_DETACH)
    return True


def mounts_under(path: str, *, mounter: Mounter = KERNEL) -> list[MountInfo]:
    """Return the mounts at `path` and below it, parents first. The last mount of a mount point is the one on top."""
    return mounter.mounts_under(path)


@contextmanager
def mounted(
    mounts: Sequence[Mount], temp_root: str, *, readonly: bool = False, mounter: Mounter = KERNEL
) -> Iterator[str]:
    """Mount `mounts` on a new directory below `temp_root`, yield its path, and unmount everything after the block.

    Overlay's option `volatile` is left out. With `readonly` the trees cannot be written.
    """
    directory, taken = _mount_temporarily(mounts, temp_root, readonly, mounter)
    try:
        yield directory
    finally:
        _unmount_temporary(taken, directory, mounter)


@asynccontextmanager
async def temp_mount(
    mounts: Sequence[Mount], temp_root: str | os.PathLike[str], *, readonly: bool = False, mounter: Mounter = KERNEL
) -> AsyncIterator[str]:
    """Do what `mounted` does, with mounting and unmounting in a thread. A cancelled block unmounts too."""
    import anyio

    with anyio.CancelScope(shield=True):  # a mount takes little time, and nobody would undo half of one
        directory, taken = await in_thread(_mount_temporarily, mounts, os.fspath(temp_root), readonly, mounter)
    try:
        yield directory
    finally:
        with anyio.CancelScope(shield=True):
            await in_thread(_unmount_temporary, taken, directory, mounter)


async def in_thread(function: Callable[..., T], *args: object) -> T:
    """Run a blocking function of this module in a thread: `await in_thread(mount_all, mounts, target)`.

    A cancelled caller waits until the function has ended, and so knows what is mounted.
    """
    import anyio.to_thread

    return await anyio.to_thread.run_sync(function, *args)


def _mount_temporarily(
    mounts: Sequence[Mount], temp_root: str, readonly: bool, mounter: Mounter
) -> tuple[str, list[Mount]]:
    taken = without_volatile(read_only(mounts) if readonly else mounts)
    os.makedirs(temp_root, mode=0o700, exist_ok=True)
    directory = tempfile.mkdtemp(prefix="containerd-mount", dir=temp_root)
    try:
        mount_all(taken, directory, mounter=mounter)
    except BaseException as error:
        os.rmdir(directory)
        if isinstance(error, OSError):
            raise OSError(error.errno, f"failed to mount {directory}: {os_text(error)}") from error
        raise
    return directory, taken


def _unmount_temporary(mounts: list[Mount], directory: str, mounter: Mounter) -> None:
    """Unmount and remove the directory. rmdir fails if something is still mounted, so no file of a mount is deleted."""
    unmount_all(mounts, directory, mounter=mounter)
    os.rmdir(directory)
