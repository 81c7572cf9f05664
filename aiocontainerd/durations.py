"""Go durations, as config files and labels hold them: `1m30s`, `500ms`, `-1.5h`, `0`."""

from __future__ import annotations

import re

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_MINUTE_S, _HOUR_S = 60, 3600


def parse(text: str) -> float:
    """Return a Go duration in seconds. Raises ValueError naming the text."""
    sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    total, at = 0.0, 0
    while at < len(rest):
        part = _PART.match(rest, at)
        if part is None:
            break
        total += float(part[1]) * _UNITS_S[part[2]]
        at = part.end()
    if not rest or at != len(rest):
        raise ValueError(f'time: invalid duration "{text}" (write it as 500ms, 2s or 1m30s)')
    return sign * total


def render(seconds: float) -> str:
    """Return the duration as Go prints it: `1m0s`, `2s`, `100ms`, `0s`."""
    if seconds < 0:
        return "-" + render(-seconds)
    if seconds < 1:
        return _below_one_second(seconds)
    whole, text = int(seconds), f"{round(seconds % _MINUTE_S, 9):g}s"
    if whole >= _HOUR_S:
        return f"{whole // _HOUR_S}h{whole % _HOUR_S // _MINUTE_S}m{text}"
    return f"{whole // _MINUTE_S}m{text}" if whole >= _MINUTE_S else text


def _below_one_second(seconds: float) -> str:
    for unit, scale in (("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)):
        if seconds >= scale:
            return f"{round(seconds / scale, 6):g}{unit}"
    return "0s"
