"""Counters of a front end's calls, for the metrics plugin to read. Numbers only, no exposition format."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the latency buckets, seconds; one more bucket has no bound."""
LONGEST_TEXT = 1000
"""Characters of an error that are kept."""


class Histogram:
    """Latencies of one method."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one call."""
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds


class Metrics:
    """Counters of a front end by path (`/package.Service/Method`), and by path and status code."""

    def __init__(self) -> None:
        self.started: Counter[str] = Counter()
        self.handled: Counter[tuple[str, int]] = Counter()
        self.received: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.latency: dict[str, Histogram] = {}
        self.last_errors: dict[str, tuple[str, float]] = {}
        """Text and time of the last error of a path, seconds since the epoch."""

    def __repr__(self) -> str:
        return f"<Metrics {self.started.total()} started, {self.handled.total()} handled>"

    def failed(self, path: str, text: str) -> None:
        """Note the text with which a call failed."""
        self.last_errors[path] = (text[:LONGEST_TEXT], time.time())

    def finished(self, path: str, code: int, seconds: float) -> None:
        """Count the end of a call."""
        self.handled[path, code] += 1
        self.latency.setdefault(path, Histogram()).observe(seconds)
