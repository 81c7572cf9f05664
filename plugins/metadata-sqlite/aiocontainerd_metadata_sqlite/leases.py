"""Keep leases and what they hold (facts/core 9)."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence

from aiocontainerd import timestamps
from aiocontainerd.errors import AlreadyExists, InvalidArgument, NotFound, Unimplemented, Unknown
from aiocontainerd.gotext import quoted
from aiocontainerd.interfaces.metadata import Lease, Resource
from aiocontainerd.labels import without_empty
from aiocontainerd.oci.descriptor import split_digest
from aiocontainerd_metadata_sqlite import resources
from aiocontainerd_metadata_sqlite.filtering import lease_field, record_matcher, select
from aiocontainerd_metadata_sqlite.references import CONTENT, IMAGES, INGESTS, LEASES, SNAPSHOTS, Kind
from aiocontainerd_metadata_sqlite.resources import Connection
from aiocontainerd_metadata_sqlite.session import Session


class Leases:
    """The leases of the current namespace; the `LeaseStore` of the metadata contract."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def create(self, lease_id: str, labels: Mapping[str, str]) -> Lease:
        """Create a lease; "" makes up an id. Raise AlreadyExists."""
        namespace = self._session.caller().namespace
        now = timestamps.now_ns()
        lease = Lease(id=lease_id or _made_up(now), created_at_ns=now, labels=without_empty(labels))

        def insert(db: Connection) -> Lease:
            if resources.find(db, namespace, LEASES, lease.id) is not None:
                raise AlreadyExists(f"lease {quoted(lease.id)}")
            resources.add(db, namespace, LEASES, lease.id, created_ns=now, updated_ns=now, labels=lease.labels)
            return lease

        return await self._session.mutate(insert)

    async def delete(self, lease_id: str) -> None:
        """Delete a lease; garbage collection deletes what it held. Raise NotFound."""
        namespace = self._session.caller().namespace
        await self._session.mutate(
            lambda db: resources.delete(db, _found(db, namespace, lease_id)),
            deletion=True,
        )

    async def list(self, filters: Sequence[str] = ()) -> list[Lease]:
        """Return the leases that match, sorted by id."""
        namespace = self._session.caller().namespace
        matches = record_matcher(filters, lease_field)
        return await self._session.read(lambda db: select(_load_all(db, namespace), matches))

    async def add_resource(self, lease_id: str, resource: Resource) -> None:
        """Add a resource, which need not exist. Raise NotFound, InvalidArgument, Unimplemented."""
        namespace = self._session.caller().namespace

        def add(db: Connection) -> None:
            _found(db, namespace, lease_id)
            _validate(resource)
            if not _snapshotter_is_named(resource):
                raise Unknown("bucket name required")
            if not resource.id:
                raise Unknown("key required")
            resources.hold(db, namespace, lease_id, resource.type, resource.id)

        await self._session.mutate(add)

    async def delete_resource(self, lease_id: str, resource: Resource) -> None:
        """Drop a resource, if the lease holds it. Raise NotFound for the lease, InvalidArgument, Unimplemented."""
        namespace = self._session.caller().namespace

        def remove(db: Connection) -> None:
            _found(db, namespace, lease_id)
            _validate(resource)
            resources.let_go(db, namespace, lease_id, resource.type, resource.id)

        await self._session.mutate(remove, deletion=True)

    async def resources(self, lease_id: str) -> Sequence[Resource]:
        """Return what a lease holds, sorted by type and id. Raise NotFound."""
        namespace = self._session.caller().namespace

        def query(db: Connection) -> list[Resource]:
            holder = _found(db, namespace, lease_id)
            rows = db.execute(
                "SELECT key, type FROM refs WHERE source = ? AND kind = ? ORDER BY type, key", (holder, Kind.HELD)
            )
            return [Resource(key, resource_type) for key, resource_type in rows]

        return await self._session.read(query)


def _found(db: Connection, namespace: str, lease_id: str) -> int:
    resource = resources.find(db, namespace, LEASES, lease_id)
    if resource is None:
        raise NotFound(f"lease {quoted(lease_id)}")
    return resource


def _load_all(db: Connection, namespace: str) -> list[Lease]:
    labels = resources.labels_of_all(db, namespace, LEASES)
    rows = db.execute(
        "SELECT id, key, created_ns FROM resources WHERE namespace = ? AND type = ? ORDER BY key",
        (namespace, LEASES),
    ).fetchall()
    return [Lease(id=key, created_at_ns=created, labels=labels.get(row, {})) for row, key, created in rows]


def _made_up(now_ns: int) -> str:
    suffix = base64.urlsafe_b64encode(os.urandom(3)).decode()
    return f"{now_ns % timestamps.NANOSECONDS}-{suffix}"


def _snapshotter_is_named(resource: Resource) -> bool:
    return resource.type != SNAPSHOTS


def _validate(resource: Resource) -> None:
    kind, slash, snapshotter = resource.type.partition("/")
    if kind == SNAPSHOTS.rstrip("/"):
        if not slash or "/" in snapshotter:
            raise InvalidArgument(f"invalid snapshot resource type {resource.type}")
    elif slash and kind in (CONTENT, INGESTS, IMAGES):
        raise InvalidArgument(f"invalid resource type {resource.type}")
    elif resource.type == CONTENT:
        try:
            split_digest(resource.id)
        except InvalidArgument as bad:
            raise InvalidArgument(f"invalid content resource id {resource.id}: {bad.message}") from bad
    elif resource.type not in (INGESTS, IMAGES):
        raise Unimplemented(f"resource type {resource.type} not supported yet")
