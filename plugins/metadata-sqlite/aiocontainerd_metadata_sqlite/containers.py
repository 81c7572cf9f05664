"""Keep container records (facts/core 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any as Anything

import msgspec

from aiocontainerd import api, identifiers, timestamps
from aiocontainerd import labels as label_rules
from aiocontainerd.errors import AlreadyExists, InvalidArgument, NotFound
from aiocontainerd.gotext import quoted
from aiocontainerd.interfaces.metadata import Container
from aiocontainerd.typeurl import Any
from aiocontainerd.wire.anys import any_to_wire
from aiocontainerd_metadata_sqlite import resources
from aiocontainerd_metadata_sqlite.filtering import container_field, record_matcher, select
from aiocontainerd_metadata_sqlite.references import CONTAINERS, SNAPSHOTS, Edge, Kind
from aiocontainerd_metadata_sqlite.resources import Connection
from aiocontainerd_metadata_sqlite.session import Session

_BARE_BYTES = 2048
_ALL_FIELDS = ("labels", "spec", "extensions", "image", "snapshotkey")
_PLAIN_FIELDS = {"spec": "spec", "extensions": "extensions", "image": "image", "snapshotkey": "snapshot_key"}
_COLUMNS = (
    "r.id, r.key, r.created_ns, r.updated_ns, c.image, c.runtime_name, c.runtime_options_url, c.runtime_options,"
    " c.spec_url, c.spec, c.snapshotter, c.snapshot_key, c.sandbox"
)
_SELECT = f"SELECT {_COLUMNS} FROM resources r JOIN containers c ON c.id = r.id WHERE r.namespace = ? AND r.type = ?"  # noqa: S608 - constants only


class Containers:
    """The containers of the current namespace; the `ContainerStore` of the metadata contract."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def get(self, container_id: str) -> Container:
        """Raise NotFound."""
        namespace = self._session.caller().namespace
        found = await self._session.lookup(
            (namespace, CONTAINERS, container_id), lambda db: _load(db, namespace, container_id), _size_bytes
        )
        if found is None:
            raise NotFound(f"container {quoted(container_id)} in namespace {quoted(namespace)}")
        return found[1]

    async def list(self, filters: Sequence[str] = ()) -> list[Container]:
        """Return the containers that match, sorted by id."""
        namespace = self._session.caller().namespace
        matches = record_matcher(filters, container_field)
        return await self._session.read(lambda db: select(_load_all(db, namespace), matches))

    async def create(self, container: Container) -> Container:
        """Create a record and set both its times. Raise AlreadyExists, InvalidArgument."""
        namespace = self._session.caller().namespace
        _validate(container, "create container failed validation")
        now = timestamps.now_ns()
        stored = msgspec.structs.replace(
            container, labels=label_rules.without_empty(container.labels), created_at_ns=now, updated_at_ns=now
        )

        def insert(db: Connection) -> Container:
            if resources.find(db, namespace, CONTAINERS, container.id) is not None:
                raise AlreadyExists(f"container {quoted(container.id)}")
            resource = resources.add(
                db,
                namespace,
                CONTAINERS,
                stored.id,
                created_ns=now,
                updated_ns=now,
                labels=stored.labels,
                built_in=_edges(stored),
            )
            _insert(db, resource, stored)
            return stored

        def announce(created: Container) -> None:
            options = any_to_wire(created.runtime_options)
            runtime = api.event_types.ContainerCreateRuntime(name=created.runtime_name, options=options)
            event = api.event_types.ContainerCreate(id=created.id, image=created.image, runtime=runtime)
            self._session.publish("/containers/create", event, namespace)

        return await self._session.mutate(insert, then=announce)

    async def update(self, container: Container, paths: Sequence[str] = ()) -> Container:
        """Raise NotFound, InvalidArgument for a field that cannot be updated."""
        if not container.id:
            raise InvalidArgument("Container.ID required", complete=True)
        namespace = self._session.caller().namespace

        def store(db: Connection) -> Container:
            found = _load(db, namespace, container.id)
            if found is None:
                if _has_any(db, namespace):
                    raise NotFound(f"container {quoted(container.id)}")
                raise NotFound(f"cannot update container {quoted(container.id)} in namespace {quoted(namespace)}")
            resource, current = found
            changed = msgspec.structs.replace(_updated(current, container, paths), updated_at_ns=timestamps.now_ns())
            _validate(changed, "update failed validation")
            resources.change(
                db,
                resource,
                namespace,
                CONTAINERS,
                updated_ns=changed.updated_at_ns,
                labels=changed.labels,
                built_in=_edges(changed),
            )
            db.execute("DELETE FROM containers WHERE id = ?", (resource,))
            _insert(db, resource, changed)
            return changed

        def announce(updated: Container) -> None:
            event = api.event_types.ContainerUpdate(
                id=updated.id, image=updated.image, labels=dict(updated.labels), snapshot_key=updated.snapshot_key
            )
            self._session.publish("/containers/update", event, namespace)

        return await self._session.mutate(store, then=announce)

    async def delete(self, container_id: str) -> None:
        """Raise NotFound. Tasks are not looked at, snapshots are left to garbage collection."""
        namespace = self._session.caller().namespace

        def remove(db: Connection) -> None:
            resource = resources.find(db, namespace, CONTAINERS, container_id)
            if resource is not None:
                resources.delete(db, resource)
            elif _has_any(db, namespace):
                raise NotFound(f"container {container_id}")
            else:
                raise NotFound(f"cannot delete container {quoted(container_id)} in namespace {quoted(namespace)}")

        def announce(_done: None) -> None:
            self._session.publish("/containers/delete", api.event_types.ContainerDelete(id=container_id), namespace)

        await self._session.mutate(remove, deletion=True, then=announce)


def _validate(container: Container, what: str) -> None:
    """Raise InvalidArgument, which begins with `what`, for a record that cannot be."""
    try:
        _check(container)
    except InvalidArgument as bad:
        raise InvalidArgument(f"{what}: {bad.message}") from bad


def _check(container: Container) -> None:
    try:
        identifiers.validate(container.id)
    except InvalidArgument as bad:
        raise InvalidArgument(f"container.ID: {bad.message}") from bad
    if "" in container.extensions:
        raise InvalidArgument("container.Extension keys must not be zero-length")
    label_rules.validate(container.labels, "containers.Labels")
    if not container.runtime_name:
        raise InvalidArgument("container.Runtime.Name must be set")
    if container.snapshot_key and not container.snapshotter:
        raise InvalidArgument("container.Snapshotter must be set if container.SnapshotKey is set")


def _updated(current: Container, given: Container, paths: Sequence[str]) -> Container:
    """Return `current` with the fields that `paths` name taken from `given`."""
    if not paths:
        if given.snapshotter != current.snapshotter:
            raise InvalidArgument("container.Snapshotter field is immutable")
        if given.runtime_name != current.runtime_name:
            raise InvalidArgument("container.Runtime.Name field is immutable")
        paths = _ALL_FIELDS
    changes: dict[str, Anything] = {}
    extensions = dict(current.extensions)
    for path in paths:
        if path in _PLAIN_FIELDS:
            changes[_PLAIN_FIELDS[path]] = getattr(given, _PLAIN_FIELDS[path])
            extensions = dict(given.extensions) if path == "extensions" else extensions
        elif path.startswith("extensions."):
            key = path.removeprefix("extensions.")
            extensions[key] = given.extensions.get(key, Any("", b""))
        elif path != "labels" and not path.startswith("labels."):
            raise InvalidArgument(f"cannot update {quoted(path)} field on {quoted(given.id)}")
    changes["extensions"] = extensions
    changes["labels"] = label_rules.update(current.labels, given.labels, list(paths))
    return msgspec.structs.replace(current, **changes)


def _edges(container: Container) -> list[Edge]:
    if not container.snapshot_key:
        return []
    return [Edge(Kind.BUILT_IN, SNAPSHOTS + container.snapshotter, container.snapshot_key)]


def _insert(db: Connection, resource: int, c: Container) -> None:
    options_url, options = _split(c.runtime_options)
    spec_url, spec = _split(c.spec)
    db.execute(
        "INSERT INTO containers (id, image, runtime_name, runtime_options_url, runtime_options, spec_url, spec,"
        " snapshotter, snapshot_key, sandbox) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            resource, c.image, c.runtime_name, options_url, options, spec_url, spec,
            c.snapshotter, c.snapshot_key, c.sandbox_id,
        ),
    )  # fmt: skip
    if c.extensions:
        db.executemany(
            "INSERT INTO container_extensions (container, key, url, value) VALUES (?, ?, ?, ?)",
            [(resource, key, value.type_url, value.value) for key, value in c.extensions.items()],
        )


def _load(db: Connection, namespace: str, container_id: str) -> tuple[int, Container] | None:
    row = db.execute(f"{_SELECT} AND r.key = ?", (namespace, CONTAINERS, container_id)).fetchone()
    if row is None:
        return None
    extensions = db.execute(
        "SELECT key, url, value FROM container_extensions WHERE container = ? ORDER BY key", (row[0],)
    )
    anys = {key: Any(url, value) for key, url, value in extensions}
    return row[0], _record(row, resources.labels_of(db, row[0]), anys)


def _load_all(db: Connection, namespace: str) -> list[Container]:
    labels = resources.labels_of_all(db, namespace, CONTAINERS)
    extensions: dict[int, dict[str, Any]] = {}
    for resource, key, url, value in db.execute(
        "SELECT e.container, e.key, e.url, e.value FROM resources r JOIN container_extensions e ON e.container = r.id"
        " WHERE r.namespace = ? AND r.type = ?",
        (namespace, CONTAINERS),
    ):
        extensions.setdefault(resource, {})[key] = Any(url, value)
    rows = db.execute(f"{_SELECT} ORDER BY r.key", (namespace, CONTAINERS)).fetchall()
    return [_record(row, labels.get(row[0], {}), extensions.get(row[0], {})) for row in rows]


def _record(row: Sequence[Anything], labels: Mapping[str, str], extensions: Mapping[str, Any]) -> Container:
    return Container(
        id=row[1],
        labels=labels,
        image=row[4],
        runtime_name=row[5],
        runtime_options=_join(row[6], row[7]),
        spec=_join(row[8], row[9]),
        snapshotter=row[10],
        snapshot_key=row[11],
        created_at_ns=row[2],
        updated_at_ns=row[3],
        extensions=extensions,
        sandbox_id=row[12],
    )


def _split(value: Any | None) -> tuple[str | None, bytes | None]:
    return (None, None) if value is None else (value.type_url, value.value)


def _join(url: str | None, value: bytes | None) -> Any | None:
    return None if url is None else Any(url, value or b"")


def _has_any(db: Connection, namespace: str) -> bool:
    query = "SELECT 1 FROM resources WHERE namespace = ? AND type = ? LIMIT 1"
    return db.execute(query, (namespace, CONTAINERS)).fetchone() is not None


def _size_bytes(found: tuple[int, Container] | None) -> int:
    """Estimate the memory that a record takes: mostly its opaque values."""
    if found is None:
        return _BARE_BYTES
    container = found[1]
    anys = [container.spec, container.runtime_options, *container.extensions.values()]
    return _BARE_BYTES + sum(len(value.value) for value in anys if value is not None)
