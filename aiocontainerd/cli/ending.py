"""How programs end that somebody else ends: by a signal, or by closing what reads their output.

The exit status is that of a shell for the signal: 143 for SIGTERM, 130 for SIGINT, 141 for a reader that has gone.
"""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import click

SIGNALLED = 128
STDOUT, STDERR = 1, 2


@contextmanager
def quiet() -> Iterator[None]:
    """Run the block and write out what it printed.

    Exit with 141 where nobody reads it, with 130 at an interrupt, with 1 and a line on stderr where a file fails.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # or else the interpreter's last steps complain about a reader that has gone
    except BrokenPipeError:
        drop_output()
        sys.exit(SIGNALLED + signal.SIGPIPE)
    except KeyboardInterrupt:
        sys.exit(SIGNALLED + signal.SIGINT)
    except OSError as error:
        drop_output()
        sys.exit(f"output: {text_of(error)}")


def text_of(error: OSError) -> str:
    """Return what went wrong, with the file that it went wrong with, without the number of the error."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def open_streams() -> None:
    """Open the standard streams that are closed on /dev/null: else the next file or socket takes the place of one.

    Write UTF-8 whatever the environment says, as Go does.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or os.fdopen(STDOUT, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(STDERR, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def use_utf8() -> None:
    """Start this program anew where the locale has another encoding than UTF-8.

    The interpreter has read the arguments by then, and opens files by it. Daemons and registries know UTF-8 only.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 - the same program


class Program(click.Group):
    """The root group of a program. It ends quietly."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the command line, which may print the help."""
        with quiet():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        with quiet():
            return super().invoke(ctx)


def drop_output() -> None:
    """Let all output go nowhere from now on, also that of a write that is waiting for its reader."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, STDOUT)
    os.close(nowhere)


def is_stuck() -> bool:
    """Return whether a write to standard output would wait for its reader."""
    try:
        return not select.select([], [STDOUT], [], 0)[1]
    except OSError:  # it is closed
        return False


def leave(status: int) -> NoReturn:
    """Exit, without waiting for a thread that still waits for input or for the reader of the output."""
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def exits_at_sigterm() -> None:
    """Have SIGTERM raise SystemExit, so that a terminal or a file that is in use is left in order."""

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(SIGNALLED + number)

    signal.signal(signal.SIGTERM, leave)
