"""Count the time that a call uses itself: a deadline is for what the plugin itself does.

While a call waits for another plugin its clock stands still. The other plugin's call has a deadline of its own. So the
plugin that hangs is named, and not the first one of those that wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_monotonic = time.monotonic


class Clock:
    """The plugin `uri` at work, for a call of the plugin of `caller`. Time in which it waits for others is *lent*."""

    __slots__ = ("_lent_s", "_since", "_waits", "caller", "uri")

    def __init__(self, uri: str, caller: Clock | None = None) -> None:
        self.uri = uri
        self.caller = caller
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

    def circle(self) -> list[str]:
        """Return the URIs of a call that waits for itself: of this plugin, and of those it called to be called again.

        The list is empty if the plugin is no caller of its own call.
        """
        found, caller = [self.uri], self.caller
        while caller is not None:
            found.append(caller.uri)
            if caller.uri == self.uri:
                return found[::-1]
            caller = caller.caller
        return []

    def stop(self) -> None:
        """Note that a wait for another plugin begins."""
        if not self._waits:
            self._since = _monotonic()
        self._waits += 1

    def go_on(self) -> None:
        """Note that one wait is over."""
        self._waits -= 1
        if not self._waits:
            self._lent_s += _monotonic() - self._since


running: ContextVar[Clock | None] = ContextVar("aiocontainerd-plugin", default=None)
"""The clock of the plugin that the running task works for, of one call or of its whole life. Tasks inherit it."""


@contextmanager
def at_work(who: str) -> Iterator[None]:
    """Note in the block that a plugin, or the package that brings some, is at work."""
    before = running.set(Clock(who))
    try:
        yield
    finally:
        running.reset(before)
