"""When a process that ended is started again."""

from __future__ import annotations

FIRST_S = 1.0
LONGEST_S = 60.0
HEALTHY_S = 60.0
"""A process that ran for this long had a good start: the next pause is the first again."""


class Backoff:
    """Pauses that double, from a second to a minute. Pure."""

    def __init__(self) -> None:
        self._next_s = FIRST_S

    def __repr__(self) -> str:
        return f"<Backoff next {self._next_s:g} s>"

    def after(self, ran_s: float) -> float:
        """Seconds to wait after a run of `ran_s` seconds."""
        pause = FIRST_S if ran_s >= HEALTHY_S else self._next_s
        self._next_s = min(pause * 2, LONGEST_S)
        return pause
