"""Names of log levels and formats, as config keys and flags spell them (facts/core 16)."""

from __future__ import annotations

import logging

TRACE = 5
LEVELS = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
}
FORMATS = ("text", "json")


def number_of(level: str) -> int:
    """Return the number of a level by its name in any case, that of info for "". Raises ValueError if it is unknown."""
    number = LEVELS.get(level.lower() or "info")
    if number is None:
        raise ValueError(f'unknown log level "{level}"; use one of {", ".join(LEVELS)}')
    return number


def check_format(form: str) -> None:
    """Raise ValueError for an unknown format; "" means text."""
    if form and form not in FORMATS:
        raise ValueError(f'unknown log format "{form}"; use one of {", ".join(FORMATS)}')
