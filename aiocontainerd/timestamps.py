"""Points in time: integer nanoseconds since 1970 UTC inside, RFC 3339 in texts.

`wire.times` converts them to and from messages.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta

NANOSECONDS = 1_000_000_000
ZERO_NS = -62_135_596_800 * NANOSECONDS
"""Go's zero time. containerd sends it for a time that has not come, and never leaves the field out (facts/core 0)."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)\Z")


def now_ns() -> int:
    """Return the time of the wall clock."""
    return time.time_ns()


def parse_rfc3339(text: str) -> int:
    """Return the nanoseconds of an RFC 3339 time. Raises ValueError naming the text."""
    found = _RFC3339.match(text)
    if not found:
        raise ValueError(f"{text!r} is not an RFC 3339 time")
    date, clock, fraction, zone = found.groups()
    try:
        whole = datetime.fromisoformat(f"{date}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    except ValueError as bad:
        raise ValueError(f"{text!r} is not an RFC 3339 time: {bad}") from bad
    return (whole - _EPOCH) // timedelta(seconds=1) * NANOSECONDS + int((fraction or "").ljust(9, "0"))


def format_rfc3339(ns: int) -> str:
    """Return the time in UTC with as many fraction digits as it needs, as Go's RFC3339Nano prints it.

    Raises OverflowError outside of the years 1 to 9999.
    """
    seconds, nanos = divmod(ns, NANOSECONDS)
    whole = (_EPOCH + timedelta(seconds=seconds)).isoformat(timespec="seconds").removesuffix("+00:00")
    fraction = f".{nanos:09d}".rstrip("0") if nanos else ""
    return f"{whole}{fraction}Z"
