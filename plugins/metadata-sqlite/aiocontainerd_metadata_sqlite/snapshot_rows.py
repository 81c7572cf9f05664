"""Read and write the rows of snapshots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any as Anything

import msgspec

from aiocontainerd.interfaces.snapshotter import Kind
from aiocontainerd_metadata_sqlite import references, resources
from aiocontainerd_metadata_sqlite.references import Edge
from aiocontainerd_metadata_sqlite.resources import Connection

_SELECT = (
    "SELECT r.id, r.key, s.backend_key, s.sequence, s.kind, s.parent, r.created_ns, r.updated_ns"
    " FROM resources r JOIN snapshots s ON s.id = r.id WHERE r.namespace = ? AND r.type = ?"
)


class Row(msgspec.Struct, frozen=True):
    """A snapshot's record with its name in the backend."""

    id: int
    key: str
    backend_key: str
    sequence: int
    kind: Kind
    parent: str
    created_ns: int
    updated_ns: int
    labels: Mapping[str, str]


def load(db: Connection, namespace: str, resource_type: str, key: str) -> Row | None:
    """Return the row of a snapshot, None if there is none."""
    row = db.execute(f"{_SELECT} AND r.key = ?", (namespace, resource_type, key)).fetchone()
    return None if row is None else _row(row, resources.labels_of(db, row[0]))


def load_all(db: Connection, namespace: str, resource_type: str) -> list[Row]:
    """Return all rows of a namespace and snapshotter, sorted by key."""
    labels = resources.labels_of_all(db, namespace, resource_type)
    rows = db.execute(f"{_SELECT} ORDER BY r.key", (namespace, resource_type)).fetchall()
    return [_row(row, labels.get(row[0], {})) for row in rows]


def insert(db: Connection, row: Row, namespace: str, resource_type: str, now_ns: int) -> None:
    """Insert a row; set its id and times."""
    resource = resources.add(
        db,
        namespace,
        resource_type,
        row.key,
        created_ns=now_ns,
        updated_ns=now_ns,
        labels=row.labels,
        built_in=_edges(row, resource_type),
    )
    db.execute(
        "INSERT INTO snapshots (id, snapshotter, backend_key, sequence, kind, parent) VALUES (?, ?, ?, ?, ?, ?)",
        (
            resource,
            resource_type.removeprefix(references.SNAPSHOTS),
            row.backend_key,
            row.sequence,
            int(row.kind),
            row.parent,
        ),
    )


def relabel(
    db: Connection, row: Row, namespace: str, resource_type: str, labels: Mapping[str, str], now_ns: int
) -> Row:
    """Replace the labels of a row."""
    resources.change(
        db,
        row.id,
        namespace,
        resource_type,
        updated_ns=now_ns,
        labels=labels,
        built_in=_edges(row, resource_type),
    )
    return msgspec.structs.replace(row, labels=labels, updated_ns=now_ns)


def has_children(db: Connection, namespace: str, resource_type: str, key: str) -> bool:
    """Return whether a snapshot is the parent of another."""
    query = (
        "SELECT 1 FROM refs f JOIN snapshots s ON s.id = f.source"
        " WHERE f.namespace = ? AND f.type = ? AND f.key = ? AND f.kind = ? LIMIT 1"
    )
    return db.execute(query, (namespace, resource_type, key, references.Kind.BUILT_IN)).fetchone() is not None


def known_names(db: Connection, snapshotter: str) -> dict[str, int]:
    """Return every backend name of a snapshotter that a namespace has, with its number."""
    query = "SELECT backend_key, sequence FROM snapshots WHERE snapshotter = ?"
    return dict(db.execute(query, (snapshotter,)).fetchall())


def _edges(row: Row, resource_type: str) -> list[Edge]:
    return [Edge(references.Kind.BUILT_IN, resource_type, row.parent)] if row.parent else []


def _row(row: Sequence[Anything], labels: Mapping[str, str]) -> Row:
    return Row(row[0], row[1], row[2], row[3], Kind(row[4]), row[5], row[6], row[7], labels)
