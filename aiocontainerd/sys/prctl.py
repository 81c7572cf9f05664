"""What a process says to the kernel about itself. A failed prctl(2) is an OSError that names the operation."""

from __future__ import annotations

import ctypes
import os

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_SCHED_CORE = 62
PR_SCHED_CORE_CREATE = 1
PR_SCHED_CORE_SCOPE_PROCESS_GROUP = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)


def set_child_subreaper() -> None:
    """Have orphaned descendants re-parented to this process instead of to init."""
    _prctl("PR_SET_CHILD_SUBREAPER", PR_SET_CHILD_SUBREAPER, 1)


def set_name(name: str) -> None:
    """Name the calling thread; the kernel keeps the first 15 bytes. A write to /proc executes less than ctypes."""
    fd = os.open("/proc/thread-self/comm", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, name.encode())
    finally:
        os.close(fd)


def set_parent_death_signal(signum: int) -> None:
    """Get `signum` when the parent thread dies."""
    _prctl("PR_SET_PDEATHSIG", PR_SET_PDEATHSIG, signum)


def create_core_scheduling_group() -> None:
    """Give this process group a core scheduling cookie of its own."""
    _prctl("PR_SCHED_CORE", PR_SCHED_CORE, PR_SCHED_CORE_CREATE, 0, PR_SCHED_CORE_SCOPE_PROCESS_GROUP)


def _prctl(name: str, option: int, *args: int) -> None:
    if _libc.prctl(option, *(*args, 0, 0, 0, 0)[:4]) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {name}: {os.strerror(number)}")
