"""Process file descriptors and prctl: one system call each."""

from __future__ import annotations

import os
import signal
import time

import pytest

from aiocontainerd.sys import pidfd, prctl


def child(status: int) -> int:
    pid = os.fork()
    if not pid:
        os._exit(status)
    return pid


def test_a_running_process_has_no_exit_status() -> None:
    handle = pidfd.open_pid(os.getpid())
    try:
        assert pidfd.exit_status(handle) is None
    finally:
        os.close(handle)


def test_the_exit_status_of_a_reaped_process_is_known_or_unknown_but_never_wrong() -> None:
    pid = child(7)
    handle = pidfd.open_pid(pid)
    try:
        os.waitpid(pid, 0)
        assert pidfd.exit_status(handle) in (7, None)
    finally:
        os.close(handle)


def test_a_pid_that_is_gone_cannot_be_opened() -> None:
    pid = child(0)
    os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError):
        pidfd.open_pid(pid)


def test_signals_count_from_128() -> None:
    assert pidfd.wait_status_to_exit_status(signal.SIGKILL) == 137
    assert pidfd.wait_status_to_exit_status(3 << 8) == 3


def test_a_subreaper_gets_its_orphaned_descendants_and_a_name() -> None:
    pid = os.fork()
    if not pid:
        prctl.set_child_subreaper()
        prctl.set_name("test-name-too-long-for-it")
        with open("/proc/self/comm") as comm:
            named = comm.read() == "test-name-too-l\n"
        if not os.fork():
            if not os.fork():
                time.sleep(0.05)
                os._exit(9)
            os._exit(0)
        statuses = sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2))
        os._exit(0 if named and statuses == [0, 9] else 1)
    assert os.waitpid(pid, 0)[1] == 0
