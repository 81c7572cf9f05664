"""Count the steps of a plugin: the calls by which Python changes a file, a directory or a database.

At a chosen step the process kills itself, or the thread hangs. Calls about names in directories are counted by audit
events, which see all callers. Calls without an audit event (write, fsync, SQL) are counted by profiling. All that C
code does within one call is one step.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from aiocontainerd.index import mark

HANG_S = 20.0
"""The longest that a hang lasts if nobody ends it."""

_AUDITED = frozenset(
    f"os.{name}"
    for name in (
        "chmod", "chown", "link", "mkdir", "remove", "removexattr", "rename", "rmdir", "setxattr", "symlink",
        "truncate", "utime",
    )
)  # fmt: skip
_PROFILED = frozenset(
    {
        "copy_file_range", "fallocate", "fdatasync", "fsync", "ioctl", "mkfifo", "mknod", "pwrite", "pwritev",
        "sendfile", "sync", "write", "writev", "posix_fallocate", "ftruncate",
    }
)  # fmt: skip
_SQL = frozenset({"commit", "execute", "executemany", "executescript", "rollback"})
_MARK = mark.__file__
_CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Steps:
    """Counts steps once it is armed. At step `at` it makes its `fault`: `kill`, `hang` or nothing.

    A hang stops the thread that makes the step. It never stops the event loop's thread, which a plugin must keep away
    from disks, nor a call of SQLite, which a plugin cannot interrupt, nor the mark that ends a commit.
    """

    def __init__(self, fault: str, at: int) -> None:
        self._fault = fault
        self._at = at
        self._armed = False
        self._loop_thread = threading.get_ident()
        self._released = threading.Event()
        self.count = 0
        self.where = ""
        self.hung = threading.Event()

    def install(self) -> None:
        """Watch this thread and all that start later, to the end of the process."""
        sys.addaudithook(self._audit)
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def arm(self) -> None:
        """Count from here on."""
        self._armed = True

    def disarm(self) -> None:
        """Count no more, and end a hang."""
        self._armed = False
        self._released.set()

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if self._armed and (event in _AUDITED or (event == "open" and _writes(args))):
            self._step(f"{event} {args[0]!r}")

    def _profile(self, frame: FrameType, event: str, function: Any) -> None:
        if not self._armed or event != "c_call":
            return
        name = function.__name__
        of_commit = name in _SQL or frame.f_code.co_filename == _MARK
        if of_commit and self._fault == "hang":
            return
        if name in _PROFILED and getattr(function, "__module__", None) in ("posix", "fcntl"):
            self._step(name)
        elif name in _SQL:
            self._step(f"sqlite {name}")

    def _step(self, where: str) -> None:
        if self._fault == "hang" and threading.get_ident() == self._loop_thread:
            return
        self.count += 1
        if self.count != self._at:
            return
        self.where = where
        if self._fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._fault == "hang":
            self.hung.set()
            self._released.wait(HANG_S)


def _writes(args: tuple[Any, ...]) -> bool:
    """Return whether an `open` event, of path, mode and flags, may change something."""
    flags = args[2]
    return isinstance(flags, int) and bool(flags & _CHANGES)
