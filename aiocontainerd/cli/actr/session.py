"""The frame of every command of `actr`: connection, event loop, exit code, and errors on one line."""

from __future__ import annotations

import asyncio
import math
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

import click

from aiocontainerd.cli import ending
from aiocontainerd.cli.actr.output import printable
from aiocontainerd.client.client import Client
from aiocontainerd.errors import ContainerdError, DeadlineExceeded, FailedPrecondition, NotFound, to_status

DIAGNOSIS_S = 5.0
"""How long commands that show the state of the daemon wait for an answer."""
_NOT_TOLD = "its event loop is blocked by code that keeps the interpreter's lock, or it is very busy; see its log"
FAILED = 1
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Session:
    """The global options of one invocation."""

    address: str
    namespace: str
    timeout_s: float
    debug: bool

    def run(
        self, work: Callable[[Client], Awaitable[int | None]], *, hint: str = "", patience_s: float = math.inf
    ) -> NoReturn:
        """Do a command's work and exit with its status. `hint` says what to do where an object isn't found.

        `patience_s` is for a command that the daemon answers at once unless its event loop is blocked. A signal that
        ends programs cancels the work, which then cleans up after itself. So does a reader of the output that has gone.
        """
        received: list[int] = []
        try:
            status = asyncio.run(self._guarded(work, received, min(self.timeout_s, patience_s)))
        except BrokenPipeError:
            raise  # `ending.quiet` makes the exit status of it
        except (KeyboardInterrupt, asyncio.CancelledError):
            self._interrupted(received or [signal.SIGINT])
        except (ContainerdError, OSError, ValueError, TimeoutError) as error:
            if received:
                self._interrupted(received)
            self._fail(self._text_of(error, hint, diagnoses=math.isfinite(patience_s)))
        sys.exit(status or 0)

    async def _guarded(
        self, work: Callable[[Client], Awaitable[int | None]], received: list[int], timeout_s: float
    ) -> int | None:
        with _cancelled_by_signals(received):
            async with Client(self.address, namespace=self.namespace, timeout_s=timeout_s) as client:
                return await work(client)

    def _interrupted(self, received: Sequence[int]) -> NoReturn:
        self._complain("interrupted; what was begun has been undone")
        ending.leave(ending.SIGNALLED + received[0])

    def _text_of(self, error: Exception, hint: str, *, diagnoses: bool) -> str:
        if isinstance(error, ContainerdError):
            return _explained(error, self, hint, diagnoses=diagnoses)
        if isinstance(error, OSError) and error.strerror:
            return ending.text_of(error)
        if isinstance(error, UnicodeEncodeError):
            return f"{error.object!a} is not UTF-8"
        return str(error) or f"no answer within {self.timeout_s:g} s (--timeout allows more)"

    def _fail(self, text: str) -> NoReturn:
        if self.debug:
            traceback.print_exc()
        self._complain(text)
        sys.exit(FAILED)

    def _complain(self, text: str) -> None:
        click.echo(f"actr: {printable(' '.join(text.split()))}", err=True)


@contextmanager
def _cancelled_by_signals(received: list[int]) -> Iterator[None]:
    """Have signals cancel the current task during the block, and note them in `received`.

    A write that waits for the reader of the output would keep the loop from it; such output is dropped.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None, "it runs in a task"

    def cancel(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if ending.is_stuck():
            ending.drop_output()
        loop.call_soon_threadsafe(task.cancel)

    before = [(number, signal.signal(number, cancel)) for number in _ENDING]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _explained(error: ContainerdError, session: Session, hint: str, *, diagnoses: bool = False) -> str:
    """Return a text for people: what happened, and what to do next."""
    text = to_status(error)[1]
    if text.startswith("connection to "):
        return f"cannot reach a daemon at {session.address}: {_reason(error)}; is it running? name its socket with -a"
    if isinstance(error, NotFound) and hint and "USER value" not in text:
        told = "in namespace" in text or text.startswith("namespace ")
        where = "" if told else f" in namespace {session.namespace}"
        return f"{text}{where}; {hint}"
    blocked = _blocked_by(session.address) if isinstance(error, DeadlineExceeded) else ""
    if blocked or (diagnoses and isinstance(error, DeadlineExceeded)):
        return f"the daemon at {session.address} does not answer: {blocked or _NOT_TOLD}"
    if isinstance(error, DeadlineExceeded):
        return f"{text}: no answer within its deadline (--timeout {session.timeout_s:g} allows that many seconds)"
    if isinstance(error, FailedPrecondition) and "must be stopped" in text:
        return f"{text}; kill it first, or use --force"
    return text


def _blocked_by(address: str) -> str:
    """Return who blocks the daemon's event loop, as its watchdog tells it, "" if it tells nothing."""
    from aiocontainerd.guard.watchdog import finding_of  # rarely needed, and its import takes as long as a call

    finding = finding_of(address)
    try:
        return " ".join((finding.read_text() if finding else "").split())
    except OSError:
        return ""


def _reason(error: ContainerdError) -> str:
    cause = error.__cause__
    return (cause.strerror or str(cause)) if isinstance(cause, OSError) else error.message


def session_of(ctx: click.Context) -> Session:
    """Return the session of a command's context."""
    session = ctx.find_object(Session)
    assert session is not None, "the root group makes it"
    return session
