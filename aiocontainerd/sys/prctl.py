"""prctl(2): attributes that a process sets on itself. A failure is an OSError that names the operation."""

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
    """Become the parent of orphaned descendants, in place of init."""
    _prctl("PR_SET_CHILD_SUBREAPER", PR_SET_CHILD_SUBREAPER, 1)


def set_name(name: str) -> None:
    """Name the calling thread. The kernel keeps the first 15 bytes. Writing to /proc runs less code than ctypes."""
    fd = os.open("/proc/thread-self/comm", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, name.encode())
    finally:
        os.close(fd)


def set_parent_death_signal(signum: int) -> None:
    """Ask the kernel to send this process `signum` when its parent thread dies."""
    _prctl("PR_SET_PDEATHSIG", PR_SET_PDEATHSIG, signum)


def create_core_scheduling_group() -> None:
    """Give this process group a core scheduling cookie of its own."""
    _prctl("PR_SCHED_CORE", PR_SCHED_CORE, PR_SCHED_CORE_CREATE, 0, PR_SCHED_CORE_SCOPE_PROCESS_GROUP)


def _prctl(name: str, option: int, *args: int) -> None:
    if _libc.prctl(option, *(*args, 0, 0, 0, 0)[:4]) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {name}: {os.strerror(number)}")
