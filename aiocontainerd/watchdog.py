"""Notices that the event loop is blocked, and which line of which plugin blocks it.

A thread looks at the loop's thread five times a second. A loop that waits for events is left asleep; of one that runs
Python it asks a sign of life, and where none comes within the threshold it samples the stack: the innermost frame that
belongs to a plugin is named, once a minute for the same line. So a block is noticed for certain when it lasts for
the threshold and a fifth of a second more. Code that keeps the interpreter's lock hinders this thread, too: then it
wakes late, and the line that the loop has just got to is named.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import anyio
import anyio.to_thread

from aiocontainerd import durations
from aiocontainerd.attribution import Block, Owners

log = logging.getLogger(__name__)

PERIOD_S = 0.2
REPEAT_S = 60.0
"""How long the same line is not named again."""
_WAITS_IN = frozenset({"asyncio.runners", "asyncio.base_events", "selectors", "anyio._backends._asyncio"})
"""Modules whose code is innermost where the loop waits for events."""
_STOP_S = 2.0


class Watchdog:
    """Watches the running loop of the thread that calls `start`.

    `owners` says whose code is whose; `note` is called, in the watchdog's thread, for every block that a plugin made.
    """

    def __init__(self, threshold_s: float, owners: Callable[[], Owners], note: Callable[[Block], object]) -> None:
        self.threshold_s = threshold_s
        self.blocks = 0
        self._owners = owners
        self._note = note
        self._named: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<Watchdog of {self.threshold_s:g} s, {self.blocks} blocks>"

    async def start(self) -> None:
        """Begin to watch; a threshold of 0 watches nothing."""
        if self.threshold_s <= 0:
            return
        watched = (asyncio.get_running_loop(), threading.get_ident())
        self._thread = threading.Thread(target=self._run, args=watched, name="watchdog", daemon=True)
        await anyio.to_thread.run_sync(self._thread.start)

    async def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._thread.join, _STOP_S)

    def _run(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        before = time.monotonic()
        while not self._stop.wait(PERIOD_S):
            late_s = time.monotonic() - before - PERIOD_S
            frame = sys._current_frames().get(thread)
            if late_s > self.threshold_s:
                self._report(loop, frame, late_s, over=True)
            elif frame is not None and frame.f_globals.get("__name__") not in _WAITS_IN:
                self._ask(loop, thread)
            del frame  # it would keep alive what a call has done with
            before = time.monotonic()

    def _ask(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        """Ask the loop for a sign of life; report a block when none comes in time, and count it when it is over."""
        alive, asked = threading.Event(), time.monotonic()
        try:
            loop.call_soon_threadsafe(alive.set)
        except RuntimeError:  # the loop is closed: the daemon ends
            self._stop.set()
            return
        if alive.wait(self.threshold_s):
            return
        frame = sys._current_frames().get(thread)
        found = self._report(loop, frame, time.monotonic() - asked, over=False)
        del frame
        while not alive.wait(PERIOD_S) and not self._stop.is_set():
            continue
        self._count(found, time.monotonic() - asked)

    def _report(
        self, loop: asyncio.AbstractEventLoop, frame: FrameType | None, seconds: float, *, over: bool
    ) -> tuple[str, str]:
        """Log a block, unless its line was named lately; returns the plugin, or "", and the place."""
        task = asyncio.current_task(loop)
        found = self._owners().of_frame(frame, task.get_name() if task is not None else "")
        plugin, where = found or ("", _place(frame))
        now = time.monotonic()
        if now - self._named.get(where, -REPEAT_S) >= REPEAT_S:
            self._named[where] = now
            who = f"plugin {plugin}" if plugin else "the daemon itself"
            took = f"{durations.render(round(seconds, 1))}{'' if over else ' so far'}"
            log.warning("%s blocks the event loop at %s (%s)", who, where, took)
        if over:
            self._count((plugin, where), seconds)
        return plugin, where

    def _count(self, found: tuple[str, str], seconds: float) -> None:
        self.blocks += 1
        plugin, where = found
        if plugin:
            self._note(Block(plugin=plugin, where=where, seconds=seconds))


def _place(frame: FrameType | None) -> str:
    return "an unknown place" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
