"""Count durations in a histogram, and read quantiles from it."""

from __future__ import annotations

from collections.abc import Iterable

_STEPS = 4
_BUCKETS = 36 * _STEPS


class Latencies:
    """A histogram of durations: four buckets for each power of two microseconds, up to some nine hours."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * _BUCKETS
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.sum_s += seconds
        quarters = int(seconds * 4e6) + 4
        octave = quarters.bit_length() - 3
        at = octave * _STEPS + (quarters >> octave) - 4
        self.counts[at if at < _BUCKETS else -1] += 1

    @staticmethod
    def bound_s(bucket: int) -> float:
        """Return the upper bound of a bucket in seconds."""
        octave, step = divmod(bucket, _STEPS)
        return (((step + 5) << octave) - 4) / 4e6

    @classmethod
    def sum_of(cls, parts: Iterable[Latencies]) -> Latencies:
        """Return one histogram that counts what several counted."""
        whole = cls()
        for part in parts:
            whole.sum_s += part.sum_s
            whole.counts = [a + b for a, b in zip(whole.counts, part.counts, strict=True)]
        return whole

    @property
    def count(self) -> int:
        """Number of durations counted."""
        return sum(self.counts)

    def quantile_s(self, share: float) -> float:
        """Return the duration that `share` (0 to 1) of all did not exceed, to a fifth; 0.0 if none was counted."""
        wanted = share * self.count
        seen = 0
        for bucket, count in enumerate(self.counts):
            seen += count
            if count and seen >= wanted:
                return self.bound_s(bucket)
        return 0.0
