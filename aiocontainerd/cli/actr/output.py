"""Print tables, sizes and times: plain columns for programs, drawn tables on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from aiocontainerd import timestamps

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_KILO = 1024
_GAP = 4
MIN_COLUMNS = 80
"""A narrower terminal breaks the lines itself. Columns of no width would show nothing."""


def printable(text: str) -> str:
    """Return a text with `?` for what could steer a terminal: names come from registries and archives."""
    return "".join(character if character.isprintable() else "?" for character in text)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their headers. For programs, columns are at least four spaces apart."""
    texts = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _drawn(headers, texts)
        return
    widths = [max(len(row[column]) for row in [headers, *texts]) + _GAP for column in range(len(headers))]
    for row in [headers, *texts]:
        print("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _drawn(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        drawn.add_column(header, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    console.width = max(console.width, MIN_COLUMNS)
    console.print(drawn)


def size(count: int) -> str:
    """Return a number of bytes in binary units, as `ctr` prints it."""
    value, unit = float(count), 0
    while value >= _KILO and unit < len(_UNITS) - 1:
        value, unit = value / _KILO, unit + 1
    return f"{value:.1f} {_UNITS[unit]}"


def pairs(labels: Mapping[str, str]) -> str:
    """Return labels as `key=value,key=value`, or `-` without labels."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items())) or "-"


def time(ns: int) -> str:
    """Return a point in time as text, or `-` for Go's zero time."""
    return "-" if ns <= timestamps.ZERO_NS else timestamps.format_rfc3339(ns)


def parse_labels(given: Sequence[str]) -> dict[str, str]:
    """Parse `key=value` arguments. `key=` deletes the label, a bare `key` is `true` as with ctr. Raises ValueError."""
    labels: dict[str, str] = {}
    for text in given:
        key, assigned, value = text.partition("=")
        if not key:
            raise ValueError(f'label "{text}" has no key; write it as key=value')
        labels[key] = value if assigned else "true"
    return labels


def parse_annotations(given: Sequence[str]) -> dict[str, str]:
    """Parse `key=value` arguments. Raises ValueError for one without a value."""
    for text in given:
        if "=" not in text:
            raise ValueError(f'annotation "{text}" has no value; write it as key=value')
    return parse_labels(given)
