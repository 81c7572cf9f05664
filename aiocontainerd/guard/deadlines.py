"""Keep the deadlines of calls, with one timer for all calls that have the same limit.

When the time of a call is up, `Call.expire` cuts it off. `limit_s` says how long the limit of a deadline class is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from aiocontainerd.guard.clock import Clock
from aiocontainerd.interfaces.rules import TASK
from aiocontainerd.interfaces.shim import STEP_TIMEOUTS

TASK_MARGIN_S = 30.0
"""How much longer class *task* is, at the least, than the steps of a shim together."""
_SOONEST_S = 0.01

_monotonic = time.monotonic


class Timed(Protocol):
    """A call, as far as its deadline needs to know it."""

    loop: asyncio.AbstractEventLoop
    started: float
    clock: Clock
    done: bool
    cancelled: bool

    def expire(self) -> None:
        """End the call, since its time is up."""
        ...


class Deadlines:
    """The deadlines of all calls with one limit.

    Calls are kept in the order they began, so that one timer is enough. A call that ends does not touch the timer: a
    quick call costs two changes of a dictionary.
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
        """Expire a call that has used up its time; look again later at one that lent a part of it to other plugins."""
        if call.done or call.cancelled:
            return
        left_s = self.limit_s - (_monotonic() - call.started - call.clock.lent_s)
        if left_s > 0:
            call.loop.call_later(max(left_s, _SOONEST_S), self._check, call)
        else:
            call.expire()


def limit_s(timeout_s: Callable[[str], float], timeout: str, uri: str) -> float:
    """Return the seconds that calls of a class have for one plugin; 0 is no deadline.

    Class *task* is never shorter than the sum of the `shim.*` limits plus 30 s. If one of them is `0s`, it has no
    deadline.
    """
    seconds = timeout_s(f"{timeout}.{uri}") if timeout else 0.0
    if timeout != TASK or not seconds:
        return seconds
    within = [timeout_s(key) for key in STEP_TIMEOUTS]
    return max(seconds, sum(within) + TASK_MARGIN_S) if all(within) else 0.0
