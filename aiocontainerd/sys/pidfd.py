"""Process file descriptors: a handle on a process that no recycled pid can take over.

`exit_status` reads the exit code of any process through its pidfd, also of one that isn't a child of the caller; the
kernel keeps it for whoever holds the pidfd (Linux 6.15 and newer).
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
    """A pidfd of `pid`, closed on exec. Raises ProcessLookupError where there is no such process."""
    return os.pidfd_open(pid)


def exit_status(pidfd: int) -> int | None:
    """Exit code, or 128 plus the signal, of a process that has been reaped; None where it runs or cannot be told."""
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
    """The exit code of a wait(2) status, or 128 plus the number of the signal that ended the process."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
