"""Keep what plugins share with the daemon as it was: they run in one process.

A plugin that changes the working directory, the umask, a signal handler, the log or a standard stream harms all others.
After its module is loaded, and after it has started, such changes are undone, and told with the plugin's name.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any, Self

import msgspec

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD, signal.SIGPIPE)
_STANDARD = {0: "standard input", 1: "standard output", 2: "standard error"}
_DAEMONS = "aiocontainerd"


class _Now(msgspec.Struct, frozen=True):
    """What is shared, as it is at one moment."""

    directory: str
    umask: int
    handlers: dict[signal.Signals, Any]
    streams: tuple[Any, Any]
    log: tuple[Any, ...]
    fatal_warnings: int
    files: dict[int, tuple[int, int]]


class Kept:
    """What plugins share with the daemon, as it is when this is made. `close` gives its descriptors back."""

    def __init__(self) -> None:
        self._copies: dict[int, int] = {}
        for descriptor in _STANDARD:
            with suppress(OSError):
                self._copies[descriptor] = os.dup(descriptor)
        self._before = _now()

    def __repr__(self) -> str:
        return f"<Kept {self._before.directory} umask={self._before.umask:03o}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the copies of the standard streams."""
        for copy in self._copies.values():
            os.close(copy)
        self._copies.clear()

    def undo(self, who: str) -> None:
        """Undo what was changed since this was made, and log it as the doing of `who`."""
        before, now = self._before, _now()
        if before == now:
            return
        changed = [words for words, undo in self._changes(before, now) if _undone(undo)]
        if changed:
            log.warning(
                "%s changed %s of the daemon's process, which it shares with all plugins: undone",
                who,
                " and ".join(changed),
            )

    def _changes(self, before: _Now, now: _Now) -> Iterator[tuple[str, Callable[[], object]]]:
        if now.files != before.files:
            for descriptor, copy in self._copies.items():
                if now.files.get(descriptor) != before.files[descriptor]:
                    yield _STANDARD[descriptor], partial(os.dup2, copy, descriptor)
        if now.directory != before.directory:
            yield f"the working directory (to {now.directory})", partial(os.chdir, before.directory)
        if now.umask != before.umask:
            yield f"the umask (to {now.umask:03o})", partial(os.umask, before.umask)
        for number, handler in before.handlers.items():
            if now.handlers[number] != handler:
                yield f"the handler of {number.name}", partial(_handle, number, handler)
        if now.streams != before.streams:
            yield "sys.stdout or sys.stderr", partial(_set_streams, before.streams)
        if now.fatal_warnings > before.fatal_warnings:
            yield "the filters of warnings (to errors)", partial(_allow_warnings, before.fatal_warnings)
        if now.log != before.log:
            yield "the root logger", partial(_set_log, before.log)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether SIGINT came: else a KeyboardInterrupt is one that a plugin raised."""
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        if callable(before):
            before(number, frame)

    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)


def _now() -> _Now:
    return _Now(
        directory=_directory(),
        umask=_umask(),
        handlers={number: signal.getsignal(number) for number in _SIGNALS},
        streams=(sys.stdout, sys.stderr),
        log=_log(),
        fatal_warnings=len(_fatal_warnings()),
        files={descriptor: found for descriptor in _STANDARD if (found := _file(descriptor))},
    )


def _directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


def _umask() -> int:
    """Return the umask from /proc: asking the kernel for it means setting it, which other threads would notice."""
    with open("/proc/self/status") as status:
        found = next((line for line in status if line.startswith("Umask:")), "Umask: 022")
    return int(found.split()[1], 8)


def _file(descriptor: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _log() -> tuple[Any, ...]:
    root = logging.getLogger()
    silenced = tuple(sorted(name for name, one in _loggers() if one.disabled))
    return tuple(root.handlers), root.level, logging.root.manager.disable, silenced


def _loggers() -> list[tuple[str, logging.Logger]]:
    known = list(logging.root.manager.loggerDict.items())
    return [(name, one) for name, one in known if name.startswith(_DAEMONS) and isinstance(one, logging.Logger)]


def _set_log(before: tuple[Any, ...]) -> None:
    handlers, level, disabled, silenced = before
    root = logging.getLogger()
    root.handlers = list(handlers)
    root.setLevel(level)
    logging.disable(disabled)
    for name, logger in _loggers():
        logger.disabled = name in silenced


def _set_streams(before: tuple[Any, Any]) -> None:
    sys.stdout, sys.stderr = before


def _fatal_warnings() -> list[Any]:
    """Return the filters that make all warnings of the base class an error. The last one that was set comes first."""
    return [one for one in warnings.filters if one[0] == "error" and one[1] is None and one[2] is Warning]


def _allow_warnings(count: int) -> None:
    for one in _fatal_warnings()[: -count or None]:
        warnings.filters.remove(one)  # type: ignore[attr-defined] # typeshed has a Sequence, it is a list
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _handle(number: signal.Signals, handler: Any) -> None:
    if handler is not None:
        signal.signal(number, handler)


def _undone(undo: Callable[[], object]) -> bool:
    """Undo a change. Return False if that is not possible, as for signals in a thread."""
    try:
        undo()
    except (OSError, ValueError) as error:
        log.warning("a change of the process cannot be undone: %s", error)
        return False
    return True
