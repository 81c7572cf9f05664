"""Notice that the event loop is blocked, and name the line of the plugin that blocks it.

A timer of the loop gives a sign of life twice per threshold. A thread looks for it: if it is late by the threshold, the
thread samples the stack of the loop's thread, and logs the innermost frame that belongs to a plugin, once a minute for
the same line. When the next sign of life comes, the block is counted with the time by which it was late.

While a block lasts, `finding` has a line about it, from a second on: a client that gets no answer reads it there.

So a block of one and a half thresholds is always noticed, one that is shorter than the threshold never. Code that keeps
the interpreter's lock stops the thread, too: it is noticed when it lets go of the lock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import anyio
import anyio.to_thread
import msgspec

from aiocontainerd import durations
from aiocontainerd.guard.health import Block
from aiocontainerd.guard.owners import Owners, is_core, maker_of

log = logging.getLogger(__name__)

REPEAT_S = 60.0
"""How long the same line is not named again."""
_WAITS_IN = frozenset({"asyncio.runners", "asyncio.base_events", "selectors", "anyio._backends._asyncio"})
"""Modules whose code is innermost while the loop waits for events, or runs a function that is no Python code."""
TOLD_AFTER_S = 1.0
"""How long a block lasts before it is written to the file of findings."""
_SOONEST_S = 0.001
_STOP_S = 2.0


def finding_of(address: str) -> Path | None:
    """Return the file in which a daemon at a socket tells who blocks its event loop; None for `host:port`."""
    path = address.removeprefix("unix://").removeprefix("unix:")
    return Path(f"{path}.blocked") if path.startswith("/") else None


class Place(msgspec.Struct, frozen=True):
    """What the loop's thread was seen to run: the URI of the plugin, "" for the daemon, and `file:line`."""

    plugin: str
    where: str


class Heartbeat:
    """Signs of life that a loop gives every `interval_s`. Made, started and stopped in the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, interval_s: float) -> None:
        self.due = time.monotonic()
        """When the next sign of life is to come."""
        self.late_s = 0.0
        """By how much the last one was late."""
        self._loop = loop
        self._interval_s = interval_s
        self._came = threading.Event()
        self._timer: asyncio.TimerHandle | None = None

    def beat(self) -> None:
        """Give a sign of life, and the next one after the interval."""
        now = time.monotonic()
        self.late_s = now - self.due
        self.due = now + self._interval_s
        self._came.set()
        self._timer = self._loop.call_later(self._interval_s, self.beat)

    def stop(self) -> None:
        """Give no more signs of life."""
        if self._timer is not None:
            self._timer.cancel()

    def wait(self, seconds: float) -> None:
        """Wait in another thread for the next sign of life, but no longer than that."""
        self._came.clear()
        self._came.wait(seconds)


class Watchdog:
    """Watches the running loop of the thread that calls `start`.

    `owners` says which code belongs to which plugin. `note` is called, in the watchdog's thread, for every block that a
    plugin made. `finding` is the file that has a line about a block for as long as it lasts.
    """

    def __init__(
        self,
        threshold_s: float,
        owners: Callable[[], Owners],
        note: Callable[[Block], object],
        finding: Path | None = None,
    ) -> None:
        self.threshold_s = threshold_s
        self.blocks = 0
        self._owners = owners
        self._note = note
        self._finding = finding
        self._told = False
        self._named: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._heartbeat: Heartbeat | None = None

    def __repr__(self) -> str:
        return f"<Watchdog of {self.threshold_s:g} s, {self.blocks} blocks>"

    async def start(self) -> None:
        """Begin to watch; a threshold of 0 watches nothing."""
        if self.threshold_s <= 0:
            return
        loop = asyncio.get_running_loop()
        self._heartbeat = Heartbeat(loop, self.threshold_s / 2)
        self._heartbeat.beat()
        watched = (loop, threading.get_ident(), self._heartbeat)
        self._thread = threading.Thread(target=self._run, args=watched, name="watchdog", daemon=True)
        await anyio.to_thread.run_sync(self._untell)
        await anyio.to_thread.run_sync(self._thread.start)

    async def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if self._thread is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._thread.join, _STOP_S)

    def _run(self, loop: asyncio.AbstractEventLoop, thread: int, heartbeat: Heartbeat) -> None:
        while not self._stop.wait(max(heartbeat.due + self.threshold_s - time.monotonic(), _SOONEST_S)):
            due = heartbeat.due
            late_s = time.monotonic() - due
            if late_s >= self.threshold_s:
                place = self._place(loop, sys._current_frames().get(thread))
                self._log(place, late_s)
                self._wait_for_beat(heartbeat, due, place)
                self._count(place, max(late_s, heartbeat.late_s))

    def _wait_for_beat(self, heartbeat: Heartbeat, due: float, place: Place) -> None:
        """Wait until the loop runs again: until the sign of life that was due at `due` has come."""
        while heartbeat.due == due and not self._stop.is_set():
            heartbeat.wait(self.threshold_s / 4)
            if not self._told and heartbeat.due == due and time.monotonic() - due >= TOLD_AFTER_S:
                self._tell(place)
        if self._told:
            self._untell()

    def _tell(self, place: Place) -> None:
        """Write the line about a block that lasts."""
        self._told = True
        if self._finding is None:
            return
        try:
            descriptor = os.open(self._finding, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            with open(descriptor, "w") as file:
                file.write(f"{_who(place)} blocks the event loop at {place.where}\n")
        except OSError as error:
            log.warning("who blocks the event loop cannot be told in %s: %s", self._finding, error.strerror)

    def _untell(self) -> None:
        self._told = False
        if self._finding is not None:
            with suppress(OSError):
                self._finding.unlink()

    def _count(self, place: Place, seconds: float) -> None:
        self.blocks += 1
        if place.plugin:
            self._note(Block(plugin=place.plugin, where=place.where, seconds=seconds))

    def _place(self, loop: asyncio.AbstractEventLoop, frame: FrameType | None) -> Place:
        task = asyncio.current_task(loop)
        found = self._owners().of_frame(frame, task.get_name() if task is not None else "")
        if found is not None:
            return Place(*found)
        maker = maker_of(task) or "" if task is not None else ""
        if frame is None or frame.f_globals.get("__name__") in _WAITS_IN:
            return Place(maker, "a function that is no Python code")
        if is_core(frame.f_globals.get("__name__", "")):
            maker = ""
        return Place(maker, f"{frame.f_code.co_filename}:{frame.f_lineno}")

    def _log(self, place: Place, seconds: float) -> None:
        """Log a block, unless its line was named within the last minute."""
        now = time.monotonic()
        if now - self._named.get(place.where, -REPEAT_S) < REPEAT_S:
            return
        self._named[place.where] = now
        so_far = durations.render(round(seconds, 2))
        log.warning("%s blocks the event loop at %s (%s so far)", _who(place), place.where, so_far)


def _who(place: Place) -> str:
    return f"plugin {place.plugin}" if place.plugin else "the daemon itself"
