"""Notices that the event loop is blocked, and which line of which plugin blocks it.

A thread looks at the loop's thread once per threshold. A loop that waits for events is left asleep. Of one that runs
something it knows since when (`watchdog_pulse`): it asks for a sign of life, and where none has come by the time the
threshold is over it samples the stack. The innermost frame that belongs to a plugin is named, once a minute for the
same line. A look falls into every block that lasts for the threshold, so that each of them is noticed; where the
thread then wakes too late to see more, what that look saw is named. Code that keeps the interpreter's lock hinders
this thread, too: it is noticed when it lets go of it.
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
import msgspec

from aiocontainerd import durations
from aiocontainerd.guard.health import Block
from aiocontainerd.guard.owners import Owners
from aiocontainerd.guard.watchdog_pulse import Pulse, pulse_of

log = logging.getLogger(__name__)

TOLERANCE_S = 0.02
"""How exactly the threshold is kept: timers, and the millisecond that the pulse is exact to."""
REPEAT_S = 60.0
"""How long the same line is not named again."""
_WAITS_IN = frozenset({"asyncio.runners", "asyncio.base_events", "selectors", "anyio._backends._asyncio"})
"""Modules whose code is innermost where the loop waits for events."""
_STOP_S = 2.0


class Round(msgspec.Struct, frozen=True):
    """What the loop was seen to run: since when, in which round, whose code, and where."""

    began: float
    beat: float
    plugin: str
    where: str


class Answer:
    """The sign of life, given by the loop itself. `beat` is that of the round in which it came."""

    def __init__(self, pulse: Pulse) -> None:
        self.beat = 0.0
        self._pulse = pulse
        self._arrived = threading.Event()

    def give(self) -> None:
        """Say that the loop has come round."""
        self.beat = self._pulse.here()
        self._arrived.set()

    def wait(self, seconds: float) -> bool:
        """Whether it comes in time; at once for a time that is over."""
        return self._arrived.wait(max(0.0, seconds))


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
        self._quiet = -1.0
        """The beat of the round after which the loop had nothing to do, as far as a look can tell."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pulse: Pulse | None = None

    def __repr__(self) -> str:
        return f"<Watchdog of {self.threshold_s:g} s, {self.blocks} blocks>"

    async def start(self) -> None:
        """Begin to watch; a threshold of 0 watches nothing."""
        if self.threshold_s <= 0:
            return
        loop = asyncio.get_running_loop()
        self._pulse = pulse_of(loop)
        watched = (loop, threading.get_ident(), self._pulse)
        self._thread = threading.Thread(target=self._run, args=watched, name="watchdog", daemon=True)
        await anyio.to_thread.run_sync(self._thread.start)

    async def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._thread.join, _STOP_S)
        if self._pulse is not None:
            self._pulse.close()

    def _run(self, loop: asyncio.AbstractEventLoop, thread: int, pulse: Pulse) -> None:
        while not self._stop.wait(self.threshold_s):
            self._look(loop, thread, pulse)

    def _look(self, loop: asyncio.AbstractEventLoop, thread: int, pulse: Pulse) -> None:
        """See whether the loop runs something, and if so for how long."""
        seen = self._seen(loop, thread, pulse)
        if seen is None:
            return
        answer = Answer(pulse)
        try:
            loop.call_soon_threadsafe(answer.give)
        except RuntimeError:  # the loop is closed: the daemon ends
            self._stop.set()
            return
        while seen is not None and not self._ends(answer, seen, pulse, thread, loop):
            seen = self._seen(loop, thread, pulse)
        self._quiet = answer.beat

    def _seen(self, loop: asyncio.AbstractEventLoop, thread: int, pulse: Pulse) -> Round | None:
        """What the loop runs; None where it waits, and has done nothing since its last sign of life."""
        frame = sys._current_frames().get(thread)
        beat = pulse.beat
        waits = frame is None or frame.f_globals.get("__name__") in _WAITS_IN
        if waits and beat == self._quiet:
            return None
        # What is no Python code cannot be told from waiting: it is timed from here.
        began = time.monotonic() if waits else pulse.began(frame)
        return Round(began, beat, *self._owner(loop, frame))

    def _ends(self, answer: Answer, seen: Round, pulse: Pulse, thread: int, loop: asyncio.AbstractEventLoop) -> bool:
        """Wait for the end of a round, and tell of it if that takes too long; False where another one has begun."""
        answered = answer.wait(seen.began + self.threshold_s - time.monotonic())
        ended = answer.beat if answered else pulse.beat
        if ended == seen.beat and not answered:
            now = self._seen(loop, thread, pulse)
            told = now if now is not None and now.beat == seen.beat else seen
            self._tell(told, time.monotonic() - seen.began)
            while not answer.wait(self.threshold_s) and not self._stop.is_set():
                continue
            self._count(told, (answer.beat or time.monotonic()) - seen.began)
            return True
        if ended - seen.began >= self.threshold_s:
            self._tell(seen, ended - seen.began, over=True)
            self._count(seen, ended - seen.began)
        return answered

    def _owner(self, loop: asyncio.AbstractEventLoop, frame: FrameType | None) -> tuple[str, str]:
        """The plugin that runs, or "", and the place."""
        task = asyncio.current_task(loop)
        found = self._owners().of_frame(frame, task.get_name() if task is not None else "")
        return found or ("", _place(frame))

    def _tell(self, seen: Round, seconds: float, *, over: bool = False) -> None:
        """Log a block, unless its line was named lately."""
        now = time.monotonic()
        if now - self._named.get(seen.where, -REPEAT_S) < REPEAT_S:
            return
        self._named[seen.where] = now
        who = f"plugin {seen.plugin}" if seen.plugin else "the daemon itself"
        took = f"{durations.render(round(seconds, 2))}{'' if over else ' so far'}"
        log.warning("%s blocks the event loop at %s (%s)", who, seen.where, took)

    def _count(self, seen: Round, seconds: float) -> None:
        self.blocks += 1
        if seen.plugin:
            self._note(Block(plugin=seen.plugin, where=seen.where, seconds=seconds))


def _place(frame: FrameType | None) -> str:
    if frame is None or frame.f_globals.get("__name__") in _WAITS_IN:
        return "a function that is no Python code"
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
