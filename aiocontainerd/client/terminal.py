"""This program's terminal while a container uses it: raw mode, its size, and signals to pass on."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import termios
import threading
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from aiocontainerd.errors import FailedPrecondition

FORWARDED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH,
)  # fmt: skip
"""Signals that `run` and `exec` pass on to the process; SIGWINCH becomes a resize."""


@contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """Set raw mode for the block, if `descriptor` is a terminal, and restore the mode afterwards."""
    if descriptor < 0 or not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def require(descriptor: int) -> None:
    """Raise FailedPrecondition where `descriptor` is no terminal.

    A process on a terminal of its own never reads the end of another kind of input, and would wait for it for ever.
    """
    if not os.isatty(descriptor):
        raise FailedPrecondition("standard input is not a terminal; leave out --tty, or give the program one")


def size(descriptor: int) -> tuple[int, int] | None:
    """Return columns and rows; None where `descriptor` is no terminal or has no size."""
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(descriptor, termios.TIOCGWINSZ, b"\0" * 8))
    except OSError:
        return None
    return (columns, rows) if rows and columns else None


@contextmanager
def received(numbers: Sequence[signal.Signals]) -> Iterator[asyncio.Queue[signal.Signals]]:
    """Queue the signals that arrive during the block, and restore their handlers afterwards.

    Outside of the main thread the queue stays empty, as only that thread can handle signals.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[signal.Signals] = asyncio.Queue()

    def handle(number: int, _frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, signal.Signals(number))

    ours = numbers if threading.current_thread() is threading.main_thread() else ()
    before = [(number, signal.signal(number, handle)) for number in ours]
    try:
        yield queue
    finally:
        for number, handler in before:
            signal.signal(number, handler)
