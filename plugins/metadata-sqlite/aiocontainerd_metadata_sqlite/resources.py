"""Read and write the rows that every kind of resource has: name, labels, edges, leases. For the writer."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping

from aiocontainerd.errors import NotFound
from aiocontainerd_metadata_sqlite import references
from aiocontainerd_metadata_sqlite.references import Edge, Kind

Connection = sqlite3.Connection
BACKEND_NUMBERS = "backend"
"""Name of the sequence of the numbers in backend names."""


def ensure_namespace(db: Connection, namespace: str) -> None:
    """Make the namespace if it is new: any write does that (facts/core 0)."""
    db.execute("INSERT INTO namespaces (name) VALUES (?) ON CONFLICT DO NOTHING", (namespace,))


def find(db: Connection, namespace: str, resource_type: str, key: str) -> int | None:
    """Return the id of a resource, None if it does not exist."""
    row = db.execute(
        "SELECT id FROM resources WHERE namespace = ? AND type = ? AND key = ?", (namespace, resource_type, key)
    ).fetchone()
    return None if row is None else int(row[0])


def add(
    db: Connection,
    namespace: str,
    resource_type: str,
    key: str,
    *,
    created_ns: int,
    updated_ns: int,
    labels: Mapping[str, str],
    built_in: Iterable[Edge] = (),
) -> int:
    """Insert a new resource with its labels and edges, and return its id."""
    ensure_namespace(db, namespace)
    a = references.attributes(resource_type, labels)
    inserted = db.execute(
        "INSERT INTO resources"
        " (namespace, type, key, created_ns, updated_ns, rooted, flat, expires_ns, used_at_ns)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (namespace, resource_type, key, created_ns, updated_ns, a.rooted, a.flat, a.expires_ns, a.used_at_ns),
    )
    resource = inserted.lastrowid
    assert resource is not None
    _insert_labels(db, resource, labels)
    _insert_edges(db, resource, namespace, {*built_in, *references.edges(resource_type, labels)})
    return resource


def change(
    db: Connection,
    resource: int,
    namespace: str,
    resource_type: str,
    *,
    updated_ns: int,
    labels: Mapping[str, str],
    built_in: Iterable[Edge] = (),
) -> None:
    """Replace the labels and built-in edges of a resource. What it holds as a lease stays."""
    a = references.attributes(resource_type, labels)
    db.execute(
        "UPDATE resources SET updated_ns = ?, rooted = ?, flat = ?, expires_ns = ?, used_at_ns = ? WHERE id = ?",
        (updated_ns, a.rooted, a.flat, a.expires_ns, a.used_at_ns, resource),
    )
    db.execute("DELETE FROM labels WHERE resource = ?", (resource,))
    db.execute("DELETE FROM refs WHERE source = ? AND kind != ?", (resource, Kind.HELD))
    _insert_labels(db, resource, labels)
    _insert_edges(db, resource, namespace, {*built_in, *references.edges(resource_type, labels)})


def delete(db: Connection, resource: int) -> None:
    """Delete a resource with its labels, edges and details."""
    db.execute("DELETE FROM resources WHERE id = ?", (resource,))


def labels_of(db: Connection, resource: int) -> dict[str, str]:
    """Return the labels of one resource."""
    return dict(db.execute("SELECT key, value FROM labels WHERE resource = ? ORDER BY key", (resource,)).fetchall())


def labels_of_all(db: Connection, namespace: str, resource_type: str) -> dict[int, dict[str, str]]:
    """Return the labels of all resources of a type by id. Those without labels are left out."""
    result: dict[int, dict[str, str]] = {}
    rows = db.execute(
        "SELECT l.resource, l.key, l.value FROM resources r JOIN labels l ON l.resource = r.id"
        " WHERE r.namespace = ? AND r.type = ? ORDER BY l.resource, l.key",
        (namespace, resource_type),
    )
    for resource, key, value in rows:
        result.setdefault(resource, {})[key] = value
    return result


def hold(db: Connection, namespace: str, lease: str, resource_type: str, key: str) -> None:
    """Add a resource to the lease of the call, if it has one. Raise NotFound for an unknown lease (facts/core 9)."""
    if not lease:
        return
    holder = find(db, namespace, references.LEASES, lease)
    if holder is None:
        raise NotFound("lease does not exist")
    _insert_edges(db, holder, namespace, [Edge(Kind.HELD, resource_type, key)])


def let_go(db: Connection, namespace: str, lease: str, resource_type: str, key: str) -> None:
    """Drop a resource from the lease of the call. Do nothing if lease or entry is gone."""
    if lease:
        db.execute(
            "DELETE FROM refs WHERE kind = ? AND type = ? AND key = ? AND source ="
            " (SELECT id FROM resources WHERE namespace = ? AND type = ? AND key = ?)",
            (Kind.HELD, resource_type, key, namespace, references.LEASES, lease),
        )


def reserve_numbers(db: Connection, name: str, count: int) -> int:
    """Take the next `count` numbers of a sequence for good, and return the first."""
    (reserved,) = db.execute(
        "INSERT INTO sequences (name, reserved) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET reserved = reserved + excluded.reserved RETURNING reserved",
        (name, count),
    ).fetchone()
    return int(reserved) - count + 1


def generation(db: Connection) -> int:
    """Return the last id that was ever given to a resource: it grows with each resource that is made."""
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'resources'").fetchone()
    return int(row[0]) if row else 0


def _insert_labels(db: Connection, resource: int, labels: Mapping[str, str]) -> None:
    if labels:
        db.executemany(
            "INSERT INTO labels (resource, key, value) VALUES (?, ?, ?)",
            [(resource, key, value) for key, value in labels.items()],
        )


def _insert_edges(db: Connection, source: int, namespace: str, edges: Iterable[Edge]) -> None:
    rows = [(source, int(e.kind), namespace, e.type, e.key, e.younger_than_ns, e.older_than_ns) for e in edges]
    if rows:
        db.executemany(
            "INSERT INTO refs (source, kind, namespace, type, key, younger_than_ns, older_than_ns)"
            " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            rows,
        )
