"""How much memory each plugin in the daemon has come to keep since the daemon serves, where the config asks for it.

Every allocation is noted by `tracemalloc` with the stack it was made on; it is of the plugin whose code is innermost
there, so that what a library allocates for a plugin counts as the plugin's. What was there before is not counted, and
what was freed is not either: what is left is growth.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from aiocontainerd.guard.owners import Owners

DEPTH = 16
"""Frames of each stack, innermost first, that are looked through for a plugin's code."""
SHOWN = 3
"""How many lines are told."""


class Growth(msgspec.Struct, frozen=True):
    """Bytes that a plugin keeps, and the lines that keep most of them, the largest first.

    Plugins of one package share their code: the bytes are of all of them, `shared_with` names the others.
    """

    size: int
    lines: list[tuple[str, int]]
    shared_with: list[str]


@contextmanager
def measuring(wanted: bool) -> Iterator[None]:
    """While the block runs, note allocations, if that is wanted."""
    if not wanted:
        yield
        return
    import tracemalloc

    tracemalloc.start(DEPTH)
    try:
        yield
    finally:
        tracemalloc.stop()


def growth_of(uri: str, owners: Owners) -> Growth | None:
    """What a plugin has come to keep; None where nothing is measured.

    For a million allocations it takes some five seconds, a quarter of one with the interpreter's lock held.
    """
    import tracemalloc

    if not tracemalloc.is_tracing():
        return None
    statistics = tracemalloc.take_snapshot().statistics("traceback")
    modules = {file: name for name, module in list(sys.modules.items()) if (file := getattr(module, "__file__", None))}
    whose: dict[str, tuple[str, ...]] = {}
    lines: Counter[str] = Counter()
    others: set[str] = set()
    for statistic in statistics:
        for frame in reversed(statistic.traceback):  # the innermost is the last one
            uris = whose.get(frame.filename)
            if uris is None:
                uris = whose[frame.filename] = owners.of_module(modules.get(frame.filename, ""))
            if uris:
                if uri in uris:
                    lines[f"{frame.filename}:{frame.lineno}"] += statistic.size
                    others.update(uris)
                break
    return Growth(lines.total(), lines.most_common(SHOWN), sorted(others - {uri}))
