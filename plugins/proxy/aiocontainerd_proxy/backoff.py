"""Count the pauses between tries to connect, or to start a process. Pure."""

from __future__ import annotations

from collections.abc import Callable

FIRST_S = 1.0


class Backoff:
    """Pauses that begin with a second and double up to `longest_s()`."""

    def __init__(self, longest_s: Callable[[], float]) -> None:
        self._longest_s = longest_s
        self._next_s = FIRST_S

    def __repr__(self) -> str:
        return f"<Backoff next {self.next_s:g} s>"

    @property
    def next_s(self) -> float:
        """Return the pause that `take` returns next."""
        return min(self._next_s, self._longest_s())

    def take(self) -> float:
        """Return the next pause in seconds, and double the one after it."""
        pause_s = self.next_s
        self._next_s = pause_s * 2
        return pause_s

    def reset(self) -> None:
        """Begin with a second again."""
        self._next_s = FIRST_S
