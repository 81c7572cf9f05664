"""Decide when to collect, from counters and durations (facts/core 10). Pure."""

from __future__ import annotations

import msgspec

FIRST_INTERVAL_S = 1.0
MIN_AVERAGE_S = 0.005
MAX_PAUSE_THRESHOLD = 0.5


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """`pause` is the part of the time that collecting may take; of `deletions`, 0 never collects at once."""

    pause: float
    deletions: int
    mutations: int
    delay_s: float = 0.0


class Changes(msgspec.Struct):
    """What happened since the last collection."""

    mutations: int = 0
    deletions: int = 0

    def note(self, deletion: bool) -> None:
        """Count one committed change."""
        self.mutations += 1
        self.deletions += deletion

    def add(self, other: Changes) -> None:
        """Count the changes of another time, too."""
        self.mutations += other.mutations
        self.deletions += other.deletions


def clamped_pause(threshold: float) -> float:
    """Return the pause threshold, at least 0 and at most 0.5. With 0 the interval stays the first one."""
    return min(max(threshold, 0.0), MAX_PAUSE_THRESHOLD)


def interval_s(average_s: float, pause_threshold: float) -> float:
    """Return the seconds between timer runs. Collections of `average_s` then take no more than their part."""
    if pause_threshold <= 0:
        return FIRST_INTERVAL_S
    average_s = max(average_s, MIN_AVERAGE_S)
    return average_s / pause_threshold - average_s


def is_due(changes: Changes, thresholds: Thresholds) -> bool:
    """Return whether the timer is to collect."""
    return changes.deletions > 0 or changes.mutations >= max(thresholds.mutations, 1)


def is_urgent(changes: Changes, thresholds: Thresholds) -> bool:
    """Return whether to collect without waiting for the timer."""
    return 0 < thresholds.deletions <= changes.deletions
