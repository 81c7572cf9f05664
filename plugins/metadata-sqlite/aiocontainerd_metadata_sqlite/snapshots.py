"""Show each namespace its snapshots in one backend, which knows no namespaces (facts/core 6).

The backend's name of a snapshot is `<namespace>/<number>/<key>`; no number is used twice. The backend acts before the
record is written. A crash between the two leaves a backend snapshot without a record, which garbage collection
removes. A commit keeps the number, so that a commit that was cut short is found when it is tried again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager

import anyio
import msgspec

from aiocontainerd import api, timestamps
from aiocontainerd import labels as label_rules
from aiocontainerd.errors import (
    AlreadyExists,
    ContainerdError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
    Unknown,
)
from aiocontainerd.gotext import quoted
from aiocontainerd.interfaces.snapshotter import Kind, SnapshotInfo, Snapshotter, Usage
from aiocontainerd.snapshots.claims import Claims
from aiocontainerd.sys.mount import Mount
from aiocontainerd_metadata_sqlite import resources, snapshot_rows
from aiocontainerd_metadata_sqlite.filtering import matcher, select, snapshot_field
from aiocontainerd_metadata_sqlite.owned import number_of
from aiocontainerd_metadata_sqlite.references import SNAPSHOTS
from aiocontainerd_metadata_sqlite.resources import Connection
from aiocontainerd_metadata_sqlite.session import Caller, Session
from aiocontainerd_metadata_sqlite.snapshot_rows import Row

log = logging.getLogger(__name__)

UNDO_TIMEOUT_S = 10.0


class NamespacedSnapshotter:
    """The `Snapshotter` of the current namespace over the backend `name`."""

    def __init__(self, session: Session, name: str, backend: Snapshotter) -> None:
        self.name = name
        self.backend = backend
        self.in_progress: set[str] = set()
        """Names that calls are making in the backend and have not recorded yet. Pruning spares them."""
        self._session = session
        self._type = SNAPSHOTS + name
        self._commits = Claims()

    def __repr__(self) -> str:
        return f"<NamespacedSnapshotter {self.name}, {len(self.in_progress)} in progress>"

    async def stat(self, key: str) -> SnapshotInfo:
        """Return the record. Its labels are those of the namespace over those of the backend. Raise NotFound."""
        row = await self._row(key)
        return _merged(row, await self.backend.stat(row.backend_key))

    async def update(self, info: SnapshotInfo, paths: Sequence[str] = ()) -> SnapshotInfo:
        """Raise NotFound, InvalidArgument for an empty name or a path other than `labels` and `labels.<key>`."""
        if not info.name:
            raise InvalidArgument
        namespace = self._session.caller().namespace
        row = await self._row(info.name)
        for path in paths:
            if path != "labels" and not path.startswith("labels."):
                raise InvalidArgument(f"cannot update {quoted(path)} field on snapshot {quoted(info.name)}")
        below = await self._update_backend(row, info.labels, paths)

        def store(db: Connection) -> Row:
            current = self._require(db, namespace, info.name)
            labels = label_rules.update(current.labels, info.labels, list(paths) or ["labels"])
            label_rules.validate(labels, "info.Labels")
            return snapshot_rows.relabel(db, current, namespace, self._type, labels, timestamps.now_ns())

        return _merged(await self._session.mutate(store), below)

    async def usage(self, key: str) -> Usage:
        """Raise NotFound."""
        return await self.backend.usage((await self._row(key)).backend_key)

    async def mounts(self, key: str) -> list[Mount]:
        """Raise NotFound, FailedPrecondition for a committed snapshot."""
        return await self.backend.mounts((await self._row(key)).backend_key)

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Raise AlreadyExists (and leases what exists), NotFound, InvalidArgument. Publishes `/snapshot/prepare`."""
        return await self._create(Kind.ACTIVE, key, parent, labels or {})

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Do as `prepare`, without an event."""
        return await self._create(Kind.VIEW, key, parent, labels or {})

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        """Raise AlreadyExists, NotFound, FailedPrecondition for a view. Publishes `/snapshot/commit`.

        The backend commits before the record is written, so commits to one name take turns: one that comes too late
        must leave its active snapshot as it was.
        """
        caller = self._session.caller()
        given = label_rules.without_empty(labels or {})
        label_rules.validate(given, "info.Labels")
        _require_key(name)
        pins = [(caller.namespace, self._type, pinned) for pinned in (key, parent) if pinned]
        async with self._commits.hold(f"{caller.namespace}/{name}"):
            with self._session.pin(*pins):
                await self._commit(caller, name, key, given, parent)

    async def remove(self, key: str) -> None:
        """Delete the record; garbage collection removes the backend's snapshot. Publish `/snapshot/remove`.

        Raise NotFound; FailedPrecondition if it has children, or a call is making one.
        """
        caller = self._session.caller()

        def drop(db: Connection) -> None:
            row = self._require(db, caller.namespace, key)
            making = (caller.namespace, self._type, key) in self._session.pinned
            if making or snapshot_rows.has_children(db, caller.namespace, self._type, key):
                raise FailedPrecondition("cannot remove snapshot with child")
            resources.delete(db, row.id)
            resources.let_go(db, caller.namespace, caller.lease, self._type, key)

        def dropped(_done: None) -> None:
            self._session.dirty.add(self._type)
            publish_removed(self._session, self.name, key, caller.namespace)

        await self._session.mutate(drop, deletion=True, then=dropped)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[SnapshotInfo]:
        """Yield the snapshots that match, sorted by key. Skip records whose snapshot the backend does not have."""
        namespace = self._session.caller().namespace
        matches = matcher(filters, snapshot_field)
        rows = await self._session.read(lambda db: snapshot_rows.load_all(db, namespace, self._type))
        below = {info.name: info async for info in self.backend.walk()} if rows else {}
        merged = [_merged(row, below[row.backend_key]) for row in rows if row.backend_key in below]
        for info in select(merged, matches):
            yield info

    async def cleanup(self) -> None:
        """Raise Unimplemented: only garbage collection cleans backends up (facts/core 6)."""
        raise Unimplemented("snapshotter does not implement Cleanup method")

    async def _row(self, key: str) -> Row:
        namespace = self._session.caller().namespace
        name = (namespace, self._type, key)
        row = await self._session.lookup(name, lambda db: snapshot_rows.load(db, *name))
        if row is None:
            raise NotFound(f"snapshot {key} does not exist")
        return row

    def _require(self, db: Connection, namespace: str, key: str) -> Row:
        row = snapshot_rows.load(db, namespace, self._type, key)
        if row is None:
            raise NotFound(f"snapshot {key} does not exist")
        return row

    def _parent(self, db: Connection, namespace: str, parent: str) -> Row | None:
        if not parent:
            return None
        row = snapshot_rows.load(db, namespace, self._type, parent)
        if row is None:
            raise NotFound(f"parent snapshot {parent} does not exist")
        if row.kind != Kind.COMMITTED:
            raise InvalidArgument(
                f"failed to create snapshot: parent {quoted(row.backend_key)} is not committed snapshot"
            )
        return row

    async def _update_backend(self, row: Row, labels: Mapping[str, str], paths: Sequence[str]) -> SnapshotInfo:
        """Pass on those changes that concern the backend."""
        passed = [path for path in paths if path == "labels" or _is_passed(path.removeprefix("labels."))]
        if paths and not passed:
            return await self.backend.stat(row.backend_key)
        info = SnapshotInfo(kind=row.kind, name=row.backend_key, labels=_passed(labels))
        return await self.backend.update(info, passed or ["labels"])

    async def _create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        caller = self._session.caller()
        given = label_rules.without_empty(labels)
        label_rules.validate(given, "info.Labels")
        target = given.get(label_rules.SNAPSHOT_REF, "")
        pins = [(caller.namespace, self._type, parent)] if parent else []
        with self._session.pin(*pins):
            await self._refuse_existing(caller, key, target)
            base = await self._session.read(lambda db: self._plan_create(db, caller, key, parent))
            await self._session.claim(self._type)
            number = await self._session.next_number()
            backend_key = f"{caller.namespace}/{number}/{key}"
            with self._progress(backend_key):
                mounts = await self._create_backend(caller, kind, backend_key, base, given, target, parent)
                row = Row(0, key, backend_key, number, kind, parent, 0, 0, given)
                await self._record_created(caller, row, base)
        return mounts

    async def _refuse_existing(self, caller: Caller, key: str, target: str) -> None:
        """Raise AlreadyExists for a key or a remote snapshot's target that exists. Add it to the call's lease."""

        def present(db: Connection) -> str:
            for name in filter(None, (key, target)):
                if resources.find(db, caller.namespace, self._type, name) is not None:
                    return name
            return ""

        found = await self._session.read(present)
        if not found or await self._drop_lost(caller, found):
            return
        if caller.lease:
            await self._session.mutate(lambda db: resources.hold(db, caller.namespace, caller.lease, self._type, found))
        raise AlreadyExists(f"snapshot {quoted(found)}" if found == key else f"target snapshot {quoted(found)}")

    async def _drop_lost(self, caller: Caller, key: str) -> bool:
        """Delete a record whose snapshot the backend has lost, as it is made anew. Return whether it was lost."""
        row = await self._session.read(lambda db: self._require(db, caller.namespace, key))
        try:
            await self.backend.stat(row.backend_key)
            return False
        except NotFound:
            log.warning("snapshotter %s has lost snapshot %s, which is made anew", self.name, row.backend_key)

        def drop(db: Connection) -> bool:
            current = snapshot_rows.load(db, caller.namespace, self._type, key)
            if current is not None and current.id == row.id:
                resources.delete(db, row.id)
            return current is None or current.id == row.id

        return await self._session.mutate(drop, frees=True)

    def _plan_create(self, db: Connection, caller: Caller, key: str, parent: str) -> Row | None:
        _require_lease(db, caller)
        base = self._parent(db, caller.namespace, parent)
        _require_key(key)
        return base

    async def _create_backend(
        self,
        caller: Caller,
        kind: Kind,
        backend_key: str,
        base: Row | None,
        labels: Mapping[str, str],
        target: str,
        parent: str,
    ) -> list[Mount]:
        make = self.backend.prepare if kind == Kind.ACTIVE else self.backend.view
        backend_parent = base.backend_key if base is not None else ""
        self._session.dirty.add(self._type)
        try:
            return await make(backend_key, backend_parent, _passed(labels))
        except AlreadyExists as error:
            if not target:
                raise Unknown(error.message) from error
            await self._adopt_remote(caller, target, parent, backend_parent, labels)
            raise AlreadyExists(f"target snapshot {quoted(target)} from snapshotter") from error

    async def _adopt_remote(
        self, caller: Caller, target: str, parent: str, backend_parent: str, labels: Mapping[str, str]
    ) -> None:
        """Record, under the name `target`, the committed snapshot that the backend says it has."""
        filters = [
            f'labels."{label_rules.SNAPSHOT_REF}"=={json.dumps(target)},parent=={json.dumps(backend_parent)}',
        ]
        async for info in self.backend.walk(filters):
            matching = info.labels.get(label_rules.SNAPSHOT_REF) == target and info.parent == backend_parent
            if info.kind == Kind.COMMITTED and matching:
                row = Row(0, target, info.name, number_of(info.name), Kind.COMMITTED, parent, 0, 0, labels)
                await self._session.mutate(lambda db, row=row: self._insert(db, caller, row))  # type: ignore[misc]  # mypy infers no lambda with a default
                return
        raise NotFound(f"target snapshot {quoted(target)} in backend")

    async def _record_created(self, caller: Caller, row: Row, base: Row | None) -> None:
        def insert(db: Connection) -> None:
            parent = self._parent(db, caller.namespace, row.parent)
            if parent is not None and base is not None and parent.backend_key != base.backend_key:
                raise NotFound(f"parent snapshot {row.parent} does not exist")
            self._insert(db, caller, row)

        def announce(_done: None) -> None:
            if row.kind == Kind.ACTIVE:
                message = api.event_types.SnapshotPrepare(key=row.key, parent=row.parent, snapshotter=self.name)
                self._session.publish("/snapshot/prepare", message, caller.namespace)

        try:
            await self._session.mutate(insert, then=announce)
        except ContainerdError:
            await self._undo(row.backend_key)
            raise

    def _insert(self, db: Connection, caller: Caller, row: Row) -> None:
        resources.hold(db, caller.namespace, caller.lease, self._type, row.key)
        if resources.find(db, caller.namespace, self._type, row.key) is not None:
            raise AlreadyExists(f"snapshot {quoted(row.key)}")
        snapshot_rows.insert(db, row, caller.namespace, self._type, timestamps.now_ns())

    async def _undo(self, backend_key: str) -> None:
        """Try to remove a backend snapshot. The backend is dirty already, so garbage collection finds what stays."""
        with anyio.move_on_after(UNDO_TIMEOUT_S, shield=True):
            try:
                await self.backend.remove(backend_key)
            except ContainerdError:
                return

    async def _commit(self, caller: Caller, name: str, key: str, labels: Mapping[str, str], parent: str) -> None:
        try:
            active, base = await self._session.read(lambda db: self._plan_commit(db, caller, name, key, parent))
        except AlreadyExists:
            if not await self._drop_lost(caller, name):
                raise
            active, base = await self._session.read(lambda db: self._plan_commit(db, caller, name, key, parent))
        backend_name = f"{caller.namespace}/{active.sequence}/{name}"
        with self._progress(backend_name, active.backend_key):
            rebase = base.backend_key if base is not None and not active.parent else ""
            await self._commit_backend(backend_name, active.backend_key, labels, rebase)
            await self._session.mutate(
                lambda db: self._record_commit(db, caller, name, key, active, base, labels, backend_name),
                then=lambda _done: self._announce_commit(caller.namespace, name, key),
            )

    def _plan_commit(self, db: Connection, caller: Caller, name: str, key: str, parent: str) -> tuple[Row, Row | None]:
        _require_lease(db, caller)
        if resources.find(db, caller.namespace, self._type, name) is not None:
            raise AlreadyExists(f"snapshot {quoted(name)}")
        active = self._require(db, caller.namespace, key)
        if active.kind != Kind.ACTIVE:
            raise FailedPrecondition(f"failed to commit snapshot: snapshot {quoted(active.backend_key)} is not active")
        return active, self._parent(db, caller.namespace, active.parent or parent)

    async def _commit_backend(self, name: str, key: str, labels: Mapping[str, str], parent: str) -> None:
        self._session.dirty.add(self._type)
        try:
            await self.backend.commit(name, key, _passed(labels), parent)
        except (AlreadyExists, NotFound):
            if not await self._was_committed(name):
                raise

    async def _was_committed(self, backend_name: str) -> bool:
        """Return whether an earlier try committed it in the backend before it was cut short."""
        try:
            return (await self.backend.stat(backend_name)).kind == Kind.COMMITTED
        except NotFound:
            return False

    def _record_commit(
        self,
        db: Connection,
        caller: Caller,
        name: str,
        key: str,
        active: Row,
        base: Row | None,
        labels: Mapping[str, str],
        backend_name: str,
    ) -> None:
        self._parent(db, caller.namespace, base.key if base is not None else "")
        current = snapshot_rows.load(db, caller.namespace, self._type, key)
        if current is not None and current.id == active.id:
            resources.delete(db, current.id)
        resources.let_go(db, caller.namespace, caller.lease, self._type, key)
        parent = base.key if base is not None else ""
        row = Row(0, name, backend_name, active.sequence, Kind.COMMITTED, parent, 0, 0, labels)
        self._insert(db, caller, row)

    def _announce_commit(self, namespace: str, name: str, key: str) -> None:
        message = api.event_types.SnapshotCommit(key=key, name=name, snapshotter=self.name)
        self._session.publish("/snapshot/commit", message, namespace)

    @contextmanager
    def _progress(self, *names: str) -> Iterator[None]:
        self.in_progress.update(names)
        try:
            yield
        finally:
            self.in_progress.difference_update(names)


def publish_removed(session: Session, snapshotter: str, key: str, namespace: str) -> None:
    """Publish that a snapshot was removed, by a client or by garbage collection (facts/core 10)."""
    session.publish("/snapshot/remove", api.event_types.SnapshotRemove(key=key, snapshotter=snapshotter), namespace)


def _require_key(key: str) -> None:
    """Raise Unknown for an empty key, in the words of containerd's database."""
    if not key:
        raise Unknown("bucket name required")


def _require_lease(db: Connection, caller: Caller) -> None:
    """Raise NotFound for an unknown lease, before the backend makes what could not be recorded."""
    if caller.lease and resources.find(db, caller.namespace, "leases", caller.lease) is None:
        raise NotFound("lease does not exist")


def _is_passed(label: str) -> bool:
    return label == label_rules.SNAPSHOT_REF or label.startswith(label_rules.SNAPSHOT_PREFIX)


def _passed(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels that go to the backend."""
    return {key: value for key, value in labels.items() if _is_passed(key)}


def _merged(row: Row, below: SnapshotInfo) -> SnapshotInfo:
    return msgspec.structs.replace(
        below,
        kind=row.kind,
        name=row.key,
        parent=row.parent,
        labels={**below.labels, **row.labels},
        created_at_ns=row.created_ns,
        updated_at_ns=row.updated_ns,
    )
