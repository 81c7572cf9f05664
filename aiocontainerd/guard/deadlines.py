"""Deadlines of calls: one timer for all that have the same limit."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from aiocontainerd.guard.clock import Clock

_SOONEST_S = 0.01

_monotonic = time.monotonic


class Timed(Protocol):
    """A call as its deadline sees it."""

    loop: asyncio.AbstractEventLoop
    started: float
    clock: Clock
    done: bool
    cancelled: bool

    def expire(self) -> None:
        """End it: its time is up."""
        ...


class Deadlines:
    """The deadlines of all calls with one limit: in the order of their beginning, so that one timer is enough.

    The timer runs only while there are calls, and is not set again by a call that ends: a quick call costs two
    changes of a dictionary.
    """

    __slots__ = ("_timer", "limit_s", "pending")

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.pending: dict[Timed, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Deadlines of {self.limit_s:g} s, {len(self.pending)} pending>"

    def add(self, call: Timed) -> None:
        """Watch a call that begins now."""
        self.pending[call] = None
        if self._timer is None:
            self._timer = call.loop.call_later(self.limit_s, self._due)

    def _due(self) -> None:
        self._timer = None
        oldest = _monotonic() - self.limit_s
        for call in list(self.pending):
            if call.started > oldest:
                self._timer = call.loop.call_later(call.started - oldest, self._due)
                return
            del self.pending[call]
            self._check(call)

    def _check(self, call: Timed) -> None:
        """Expire a call that has used up its time; one that lent it to others has the rest of it."""
        if call.done or call.cancelled:
            return
        left_s = self.limit_s - (_monotonic() - call.started - call.clock.lent_s)
        if left_s > 0:
            call.loop.call_later(max(left_s, _SOONEST_S), self._check, call)
        else:
            call.expire()
