"""Process file descriptors: a handle that keeps meaning one process, also after its pid is used again.

`exit_status` reads the exit code of a process through its pidfd. The process need not be a child of the caller. Linux
6.15 and newer keep the exit code for whoever holds the pidfd.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_INFO = struct.Struct("=QQ11Ii")
"""struct pidfd_info as first published: mask, cgroup id, eleven pids and credentials, exit code."""
_INFO_EXIT = 1 << 3
_EXIT_CODE = 13
_GET_INFO = (3 << 30) | (_INFO.size << 16) | (0xFF << 8) | 11


def open_pid(pid: int) -> int:
    """Return a close-on-exec pidfd of `pid`. Raises ProcessLookupError when the process does not exist."""
    return os.pidfd_open(pid)


def exit_status(pidfd: int) -> int | None:
    """Return the exit code of a reaped process, or 128 plus its signal.

    Returns None while the process runs or when the kernel cannot tell.
    """
    request = bytearray(_INFO.pack(_INFO_EXIT, *([0] * 13)))
    try:
        fcntl.ioctl(pidfd, _GET_INFO, request)
    except OSError as refused:
        if refused.errno in (errno.ENOTTY, errno.EINVAL, errno.ESRCH, errno.EREMOTE):
            return None
        raise
    fields = _INFO.unpack(request)
    return wait_status_to_exit_status(fields[_EXIT_CODE]) if fields[0] & _INFO_EXIT else None


def wait_status_to_exit_status(status: int) -> int:
    """Return the exit code in a wait(2) status, or 128 plus the number of the signal that ended the process."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
