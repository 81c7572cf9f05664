"""Keep the records that were read last in memory, and forget each one when a mutation changes it.

Listing 30 images with `ctr` takes a third longer without (docs/bench.md). `watch_changes` sets SQL triggers that tell
the writer which records a mutation changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlite3

Name = tuple[str, str, str]
"""A resource: namespace, type, key. The labels of a namespace are (namespace, "namespaces", "")."""

NAMESPACES = "namespaces"
CACHE_BYTES = 4 << 20
"""Default limit for all records together, by the estimates of those who read them."""

_NOTE = "SELECT note_change({0}.namespace, {0}.type, {0}.key);"
_NOTE_LABELS = f"SELECT note_change({{0}}.namespace, '{NAMESPACES}', '');"
_WATCHED = (
    ("resources", "INSERT", _NOTE.format("new")),
    ("resources", "UPDATE", _NOTE.format("old") + _NOTE.format("new")),
    ("resources", "DELETE", _NOTE.format("old")),
    ("namespace_labels", "INSERT", _NOTE_LABELS.format("new")),
    ("namespace_labels", "UPDATE", _NOTE_LABELS.format("old") + _NOTE_LABELS.format("new")),
    ("namespace_labels", "DELETE", _NOTE_LABELS.format("old")),
)


class RecordCache:
    """The records that were read last. None stands for a record that does not exist. Use it on the event loop only."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._records: dict[Name, tuple[Any, int]] = {}

    def __repr__(self) -> str:
        return f"<RecordCache {len(self._records)} records, about {self._bytes} bytes>"

    def __len__(self) -> int:
        return len(self._records)

    def get(self, name: Name) -> tuple[Any, int] | None:
        """Return the record and its size, None if the cache does not have it."""
        found = self._records.pop(name, None)
        if found is not None:
            self._records[name] = found
        return found

    def put(self, name: Name, record: Any, size_bytes: int) -> None:
        """Keep a record. Forget the longest unused ones if the cache becomes too large."""
        self.discard(name)
        self._records[name] = (record, size_bytes)
        self._bytes += size_bytes
        while self._bytes > self._max_bytes:
            self.discard(next(iter(self._records)))

    def discard(self, name: Name) -> None:
        """Forget a record; do nothing if the cache does not have it."""
        found = self._records.pop(name, None)
        if found is not None:
            self._bytes -= found[1]

    def discard_all(self, names: Iterable[Name]) -> None:
        """Forget several records."""
        for name in names:
            self.discard(name)


def watch_changes(connection: sqlite3.Connection, changed: Callable[[str, str, str], None]) -> None:
    """Call `changed(*name)` in the writer for every resource that a statement inserts, changes or deletes.

    A trigger also sees rows that no caller names: those deleted with their namespace, and those a collection sweeps.
    """
    connection.create_function("note_change", 3, changed)
    for table, event, statements in _WATCHED:
        connection.execute(
            f"CREATE TEMP TRIGGER cached_{table}_{event} AFTER {event} ON main.{table} BEGIN {statements} END"
        )
