"""Whose doing it is: the plugin that the running code works for, and the time that its call has used of its own.

A call's deadline is for what the plugin itself does. While it waits for another plugin its clock stands still: that one
has a deadline of its own, so that the one which hangs is named, and not the first of those who wait for it.
"""

from __future__ import annotations

import time
from contextvars import ContextVar

_monotonic = time.monotonic


class Clock:
    """A plugin at work: `uri`, and the time during which it waited for others, which is *lent* to them."""

    __slots__ = ("_lent_s", "_since", "_waits", "uri")

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._waits = 0
        self._lent_s = self._since = 0.0

    def __repr__(self) -> str:
        return f"<Clock of {self.uri}, {self._waits} waits, {self.lent_s:.3f} s lent>"

    @property
    def waits(self) -> bool:
        """Whether it waits for another plugin now."""
        return self._waits > 0

    @property
    def lent_s(self) -> float:
        """Seconds in which it waited for at least one other plugin."""
        return self._lent_s + (_monotonic() - self._since if self._waits else 0.0)

    def stop(self) -> None:
        """It begins to wait."""
        if not self._waits:
            self._since = _monotonic()
        self._waits += 1

    def go_on(self) -> None:
        """One wait is over."""
        self._waits -= 1
        if not self._waits:
            self._lent_s += _monotonic() - self._since


running: ContextVar[Clock | None] = ContextVar("aiocontainerd-plugin", default=None)
"""The clock of the call, or of the life, of the plugin that the running task works for; tasks inherit it."""
