"""Progress of `actr images pull`: bars on a terminal, a line for each finished object elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from aiocontainerd.cli.actr.output import printable
from aiocontainerd.distribution.pull import Progress

_FINAL = frozenset({"done", "exists", "extracted", "resolved"})


@contextmanager
def progress(stream: IO[str]) -> Iterator[Progress]:
    """Give a function that shows progress, for the length of a pull."""
    if not stream.isatty():
        yield _lines(stream)
        return
    from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    name_column = TextColumn("{task.description}", markup=False)
    columns = (name_column, BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, TextColumn("{task.fields[status]}")) as bars:
        known: dict[str, TaskID] = {}

        def tell(name: str, status: str, done: int, total: int) -> None:
            if name not in known:
                known[name] = bars.add_task(printable(name[:40]), status=status, total=total or None)
            bars.update(known[name], completed=done, total=total or None, status=status)

        yield tell


def _lines(stream: IO[str]) -> Progress:
    def tell(name: str, status: str, _done: int, _total: int) -> None:
        if status in _FINAL:
            print(f"{printable(name)}: {status}", file=stream, flush=True)

    return tell
