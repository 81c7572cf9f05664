"""Keep namespaces and their labels (facts/core 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aiocontainerd import api, identifiers
from aiocontainerd import labels as label_rules
from aiocontainerd.errors import AlreadyExists, FailedPrecondition, NotFound, Unknown
from aiocontainerd.gotext import quoted
from aiocontainerd.interfaces.metadata import Namespace, check_namespace_update
from aiocontainerd_metadata_sqlite import references, resources
from aiocontainerd_metadata_sqlite.cache import NAMESPACES
from aiocontainerd_metadata_sqlite.resources import Connection
from aiocontainerd_metadata_sqlite.session import Session

_WHERE = "namespace.Labels"
_RESERVED = "version"
_BLOCKING = ((references.IMAGES, "images"), (references.CONTENT, "blobs"), (references.CONTAINERS, "containers"))


class Namespaces:
    """Every namespace; the `NamespaceStore` of the metadata contract."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def create(self, name: str, labels: Mapping[str, str]) -> None:
        """Raise AlreadyExists, InvalidArgument for a malformed name or label, Unknown for the name `version`."""
        identifiers.validate(name)
        label_rules.validate(labels, _WHERE)
        _refuse_reserved(name)

        def insert(db: Connection) -> None:
            if _exists(db, name):
                raise AlreadyExists(f"namespace {quoted(name)}")
            _put(db, name, label_rules.without_empty(labels))

        event = api.event_types.NamespaceCreate(name=name, labels=dict(labels))
        await self._session.mutate(insert, then=lambda _done: self._session.publish("/namespaces/create", event, name))

    async def get(self, name: str) -> Namespace:
        """Return a namespace with its labels; an unknown one has none."""
        return Namespace(name, await self._session.lookup((name, NAMESPACES, ""), lambda db: _labels(db, name)))

    async def update(self, namespace: Namespace, paths: Sequence[str] = ()) -> Namespace:
        """Raise InvalidArgument for a path other than `labels.<key>`."""
        check_namespace_update(namespace, paths)
        _refuse_reserved(namespace.name)

        def store(db: Connection) -> Namespace:
            changed = label_rules.update(_labels(db, namespace.name), namespace.labels, list(paths) or ["labels"])
            label_rules.validate(changed, _WHERE)
            _put(db, namespace.name, changed)
            return Namespace(namespace.name, changed)

        def announce(_changed: Namespace) -> None:
            event = api.event_types.NamespaceUpdate(name=namespace.name, labels=dict(namespace.labels))
            self._session.publish("/namespaces/update", event, namespace.name)

        return await self._session.mutate(store, then=announce)

    async def list(self) -> list[Namespace]:
        """Return all namespaces, sorted by name."""

        def query(db: Connection) -> list[Namespace]:
            names = db.execute("SELECT name FROM namespaces ORDER BY name").fetchall()
            return [Namespace(name, _labels(db, name)) for (name,) in names]

        return await self._session.read(query)

    async def delete(self, name: str) -> None:
        """Raise NotFound, FailedPrecondition. Leases, sandboxes and ingests go with their namespace."""

        def remove(db: Connection) -> None:
            if not _exists(db, name):
                raise NotFound(f"namespace {quoted(name)}")
            left = _left_in(db, name)
            if left:
                raise FailedPrecondition(f"namespace {quoted(name)} must be empty, but it still has {', '.join(left)}")
            db.execute("DELETE FROM namespaces WHERE name = ?", (name,))

        self._session.dirty.add(references.CONTENT)
        event = api.event_types.NamespaceDelete(name=name)
        await self._session.mutate(
            remove, deletion=True, then=lambda _done: self._session.publish("/namespaces/delete", event, name)
        )


def _exists(db: Connection, name: str) -> bool:
    return db.execute("SELECT 1 FROM namespaces WHERE name = ?", (name,)).fetchone() is not None


def _labels(db: Connection, name: str) -> dict[str, str]:
    rows = db.execute("SELECT key, value FROM namespace_labels WHERE namespace = ? ORDER BY key", (name,))
    return dict(rows.fetchall())


def _put(db: Connection, name: str, labels: Mapping[str, str]) -> None:
    resources.ensure_namespace(db, name)
    db.execute("DELETE FROM namespace_labels WHERE namespace = ?", (name,))
    db.executemany(
        "INSERT INTO namespace_labels (namespace, key, value) VALUES (?, ?, ?)",
        [(name, key, value) for key, value in labels.items()],
    )


def _left_in(db: Connection, name: str) -> list[str]:
    """Return the kinds of objects that keep a namespace from being deleted, in containerd's words and order."""
    rows = db.execute("SELECT DISTINCT type FROM resources WHERE namespace = ? ORDER BY type", (name,)).fetchall()
    types = [row[0] for row in rows]
    snapshotters = [t.removeprefix(references.SNAPSHOTS) for t in types if t.startswith(references.SNAPSHOTS)]
    return [
        *(word for resource_type, word in _BLOCKING if resource_type in types),
        *(f'snapshots on "{snapshotter}" snapshotter' for snapshotter in snapshotters),
    ]


def _refuse_reserved(name: str) -> None:
    """Raise Unknown for the name of a key that containerd's database has beside its namespaces, as containerd does."""
    if name == _RESERVED:
        raise Unknown("incompatible value")
