"""Points in time: integer nanoseconds since 1970 UTC inside, `google.protobuf.Timestamp` and RFC 3339 outside."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiocontainerd import api

NANOSECONDS = 1_000_000_000
ZERO_NS = -62_135_596_800 * NANOSECONDS
"""Go's zero time: containerd sends it for a time that has not come, never an absent field (facts/core 0)."""

_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)\Z")


def now_ns() -> int:
    """The wall clock."""
    return time.time_ns()


def to_wire(ns: int) -> api.protobuf.Timestamp:
    """The message of a point in time."""
    from aiocontainerd import api

    seconds, nanos = divmod(ns, NANOSECONDS)
    return api.protobuf.Timestamp(seconds=seconds, nanos=nanos)


def from_wire(value: api.protobuf.Timestamp | None) -> int:
    """The point in time of a message; an absent field is Go's zero time."""
    return ZERO_NS if value is None else value.seconds * NANOSECONDS + value.nanos


def parse_rfc3339(text: str) -> int:
    """Nanoseconds of an RFC 3339 time. Raises ValueError naming the text."""
    found = _RFC3339.match(text)
    if not found:
        raise ValueError(f"{text!r} is not an RFC 3339 time")
    date, clock, fraction, zone = found.groups()
    whole = datetime.fromisoformat(f"{date}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    return int(whole.timestamp()) * NANOSECONDS + int((fraction or "").ljust(9, "0"))


def format_rfc3339(ns: int) -> str:
    """The time in UTC with as many fraction digits as it needs, as Go's RFC3339Nano prints it."""
    seconds, nanos = divmod(ns, NANOSECONDS)
    whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{nanos:09d}".rstrip("0") if nanos else ""
    return f"{whole}{fraction}Z"
