"""Name the plugin module that keeps the daemon from starting: it waits while it is imported, or in a hook.

Hooks are called one after the other before there is an event loop, so no deadline can end one. A thread looks on: a
module whose own code has not returned for `TOLD_AFTER_S` is named in the log, once, with the line that it is at. What
is merely importing other modules is left alone, however slow the disk is.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

import msgspec

log = logging.getLogger(__name__)

TOLD_AFTER_S = 1.0
_IMPORTING = "importlib._bootstrap"


class _Load(msgspec.Struct, frozen=True, eq=False):
    """A module that is being loaded: its path, who brings it, and the time on the monotonic clock when it began."""

    module: str
    bringer: str
    began_s: float


class SlowLoads:
    """Looks on while the thread that made it loads modules. Use it in `with`."""

    def __init__(self) -> None:
        self._loader = threading.get_ident()
        self._current: _Load | None = None
        self._wake = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="slow-loads", daemon=True)

    def __repr__(self) -> str:
        return f"<SlowLoads of {self._current.module if self._current else 'nothing'}>"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self._wake.set()
        self._thread.join()

    @contextmanager
    def watch(self, module: str, bringer: str) -> Iterator[None]:
        """Look on while the block loads a module."""
        self._current = _Load(module.partition(":")[0], bringer, time.monotonic())
        self._wake.set()
        try:
            yield
        finally:
            self._current = None

    def _run(self) -> None:
        told: _Load | None = None
        while not self._stopped:
            load = self._current
            if load is None or load is told:
                self._wake.wait()
                self._wake.clear()
                continue
            left_s = load.began_s + TOLD_AFTER_S - time.monotonic()
            if left_s > 0:
                self._wake.wait(left_s)
                self._wake.clear()
            elif self._tell(load):
                told = load
            else:
                self._wake.wait(TOLD_AFTER_S)

    def _tell(self, load: _Load) -> bool:
        """Log where the code of a module waits. Return False if it is importing other modules now."""
        where = waits_at(sys._current_frames().get(self._loader), load.module.partition(".")[0])
        if not where or self._current is not load:
            return False
        seconds = time.monotonic() - load.began_s
        log.warning(
            "plugin module %s of %s keeps the daemon from starting for %.1fs so far, at %s: imports and hooks must "
            "return at once; wait in a task of the plugin",
            load.module,
            load.bringer,
            seconds,
            where,
        )
        return True


def waits_at(frame: FrameType | None, package: str) -> str:
    """Return `file:line in function` of a package's code that runs now, "" if modules are being imported below it."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith(_IMPORTING) or "importlib._bootstrap" in frame.f_code.co_filename:
            return ""
        if name.partition(".")[0] == package:
            return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return ""
