"""Show each namespace its part of one content store, which knows no namespaces (facts/core 4)."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Literal

import msgspec

from aiocontainerd import api, durations, timestamps
from aiocontainerd import labels as label_rules
from aiocontainerd.errors import AlreadyExists, DataLoss, InvalidArgument, NotFound, Unavailable
from aiocontainerd.gotext import quoted
from aiocontainerd.interfaces.content import BlobInfo, ContentStore, IngestStatus, Reader
from aiocontainerd.oci.descriptor import split_digest
from aiocontainerd_metadata_sqlite import resources
from aiocontainerd_metadata_sqlite.filtering import content_field, matcher, select, status_field
from aiocontainerd_metadata_sqlite.ingests import NamespacedWriter, open_ingest, recorded_size
from aiocontainerd_metadata_sqlite.pins import BlobPins
from aiocontainerd_metadata_sqlite.references import CONTENT, INGESTS
from aiocontainerd_metadata_sqlite.resources import Connection
from aiocontainerd_metadata_sqlite.session import Session

log = logging.getLogger(__name__)

Policy = Literal["shared", "isolated"]
_SELECT = (
    "SELECT r.id, r.key, c.size, r.created_ns, r.updated_ns FROM resources r JOIN content c ON c.id = r.id"
    " WHERE r.namespace = ? AND r.type = ?"
)
Row = tuple[int, str, int, int, int]


class NamespacedContent:
    """The `ContentStore` of the current namespace."""

    def __init__(self, session: Session, backend: ContentStore, policy: Policy) -> None:
        self.policy: Policy = policy
        self.backend = backend
        self.pins = BlobPins()
        self._session = session
        self._open: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<NamespacedContent {self.policy}, {len(self._open)} ingests open, {self.pins!r}>"

    async def info(self, digest: str) -> BlobInfo:
        """Raise NotFound, InvalidArgument for what is no digest."""
        _validate(digest)
        return await self._info(digest)

    async def _info(self, digest: str) -> BlobInfo:
        namespace = self._session.caller().namespace
        found = await self._session.lookup((namespace, CONTENT, digest), lambda db: _load(db, namespace, digest))
        if found is None:
            raise NotFound(f"content digest {digest}")
        return found[1]

    async def update(self, info: BlobInfo, paths: Sequence[str] = ()) -> BlobInfo:
        """Raise NotFound, InvalidArgument for a path other than `labels` and `labels.<key>`."""
        _validate(info.digest)
        namespace = self._session.caller().namespace

        def store(db: Connection) -> BlobInfo:
            found = _load(db, namespace, info.digest)
            if found is None:
                raise NotFound(f"content digest {info.digest}")
            for path in paths:
                if path != "labels" and not path.startswith("labels."):
                    raise InvalidArgument(f"cannot update {quoted(path)} field on content info {quoted(info.digest)}")
            resource, current = found
            labels = label_rules.update(current.labels, info.labels, list(paths) or ["labels"])
            label_rules.validate(labels, "info.Labels")
            now = timestamps.now_ns()
            resources.change(db, resource, namespace, CONTENT, updated_ns=now, labels=labels)
            return msgspec.structs.replace(current, labels=labels, updated_at_ns=now)

        return await self._session.mutate(store)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[BlobInfo]:
        """Yield the blobs that match, sorted by digest, as they were when the walk began."""
        namespace = self._session.caller().namespace
        matches = matcher(filters, content_field)
        for info in await self._session.read(lambda db: select(_load_all(db, namespace), matches)):
            yield info

    async def delete(self, digest: str) -> None:
        """Remove the blob from the namespace; garbage collection deletes its file.

        Raise NotFound, InvalidArgument for what is no digest.
        """
        try:
            split_digest(digest)
        except InvalidArgument as bad:
            raise InvalidArgument(bad.message, complete=True) from bad
        caller = self._session.caller()

        def unlink(db: Connection) -> None:
            resource = resources.find(db, caller.namespace, CONTENT, digest)
            if resource is None:
                raise NotFound(f"content digest {digest}")
            resources.delete(db, resource)
            resources.let_go(db, caller.namespace, caller.lease, CONTENT, digest)

        def unlinked(_done: None) -> None:
            self._session.dirty.add(CONTENT)
            self._session.publish("/content/delete", api.event_types.ContentDelete(digest=digest), caller.namespace)

        await self._session.mutate(unlink, deletion=True, then=unlinked)

    async def reader(self, digest: str) -> Reader:
        """Raise NotFound, whatever other namespaces hold; InvalidArgument for what is no digest.

        Raise DataLoss for a blob whose file was cut or is gone; a pull makes it anew.
        """
        try:
            split_digest(digest)
        except InvalidArgument as bad:
            raise InvalidArgument(f"{digest}: {bad.message}", complete=True) from bad
        size = (await self._info(digest)).size
        try:
            reader = await self.backend.reader(digest)
        except NotFound:
            raise DataLoss(f"content {digest} is damaged: its file is gone; pull its image again") from None
        if reader.size != size:
            found = reader.size
            await reader.close()
            raise DataLoss(f"content {digest} is damaged: {found} of {size} bytes are there; pull its image again")
        return reader

    async def writer(self, ref: str, *, total: int = 0, expected: str = "") -> NamespacedWriter:
        """Open an ingest. Raise AlreadyExists (and leases the blob), Unavailable, NotFound for the lease.

        A blob that the sharing policy lets this namespace have is not sent again: the writer starts at its end.
        """
        if not ref:
            raise InvalidArgument("ref must not be empty")
        caller = self._session.caller()
        writer = NamespacedWriter(self._session, self.backend, self.pins, caller, ref, self._unlock)
        try:
            await writer.pin(expected)
            await self._session.claim(CONTENT)
            number = await self._session.next_number()
            opened = await self._session.mutate(
                lambda db: open_ingest(db, caller, ref, number, expected, total, self.policy)
            )
            if (opened.exists or opened.shared) and await self._drop_damaged(expected):
                writer.anew = True
                opened = await self._session.mutate(
                    lambda db: open_ingest(db, caller, ref, number, expected, total, self.policy, anew=True)
                )
            if opened.exists:
                raise AlreadyExists(f"content {expected}")
            self._lock(opened.backend_ref)
            await writer.begin(opened, total)
        except BaseException:
            await writer.close()
            raise
        return writer

    async def _drop_damaged(self, digest: str) -> bool:
        """Delete the file of a blob that has not the size of its record. Return whether its bytes must come again."""
        size = await self._session.read(lambda db: recorded_size(db, digest))
        try:
            found = (await self.backend.info(digest)).size
            if found == size:
                return False
            await self.backend.delete(digest)
        except NotFound:
            found = 0
        log.warning("content %s is damaged (%d of %s bytes are there) and is made anew", digest, found, size)
        return True

    async def status(self, ref: str) -> IngestStatus:
        """Raise NotFound."""
        backend_ref = await self._backend_ref(ref)
        try:
            return msgspec.structs.replace(await self.backend.status(backend_ref), ref=ref)
        except NotFound:
            raise NotFound(f"reference {ref}") from None

    async def statuses(self, filters: Sequence[str] = ()) -> list[IngestStatus]:
        """Return the ingests that match, sorted by ref."""
        namespace = self._session.caller().namespace
        matches = matcher(filters, status_field)
        refs = await self._session.read(lambda db: _backend_refs(db, namespace))
        found = {status.ref: status for status in await self.backend.statuses()} if refs else {}
        mine = [
            msgspec.structs.replace(found[backend_ref], ref=ref) for ref, backend_ref in refs if backend_ref in found
        ]
        return select(mine, matches)

    async def abort(self, ref: str) -> None:
        """Drop an ingest, also one that is open elsewhere. Raise NotFound."""
        caller = self._session.caller()

        def remove(db: Connection) -> str:
            found = _backend_ref(db, caller.namespace, ref)
            if found is None:
                raise NotFound(f"reference {ref}")
            resource, backend_ref = found
            resources.delete(db, resource)
            resources.let_go(db, caller.namespace, caller.lease, INGESTS, ref)
            return backend_ref

        self._session.dirty.add(CONTENT)
        backend_ref = await self._session.mutate(remove, frees=True)
        with suppress(NotFound):
            await self.backend.abort(backend_ref)

    async def _backend_ref(self, ref: str) -> str:
        namespace = self._session.caller().namespace
        found = await self._session.read(lambda db: _backend_ref(db, namespace, ref))
        if found is None:
            raise NotFound(f"reference {ref}")
        return found[1]

    def _lock(self, backend_ref: str) -> None:
        now = timestamps.now_ns()
        since = self._open.setdefault(backend_ref, now)
        if since is not now:
            held = durations.render((now - since) / timestamps.NANOSECONDS)
            raise Unavailable(f"ref {backend_ref} locked for {held} (since {timestamps.format_rfc3339(since)})")

    def _unlock(self, backend_ref: str) -> None:
        self._open.pop(backend_ref, None)


def _validate(digest: str) -> None:
    try:
        split_digest(digest)
    except InvalidArgument as bad:
        raise InvalidArgument(f"{quoted(digest)} failed validation", complete=True) from bad


def _load(db: Connection, namespace: str, digest: str) -> tuple[int, BlobInfo] | None:
    row = db.execute(f"{_SELECT} AND r.key = ?", (namespace, CONTENT, digest)).fetchone()
    return None if row is None else (row[0], _record(row, resources.labels_of(db, row[0])))


def _load_all(db: Connection, namespace: str) -> list[BlobInfo]:
    labels = resources.labels_of_all(db, namespace, CONTENT)
    rows = db.execute(f"{_SELECT} ORDER BY r.key", (namespace, CONTENT)).fetchall()
    return [_record(row, labels.get(row[0], {})) for row in rows]


def _record(row: Row, labels: Mapping[str, str]) -> BlobInfo:
    return BlobInfo(digest=row[1], size=row[2], created_at_ns=row[3], updated_at_ns=row[4], labels=labels)


def _backend_ref(db: Connection, namespace: str, ref: str) -> tuple[int, str] | None:
    row: tuple[int, str] | None = db.execute(
        "SELECT r.id, i.backend_ref FROM resources r JOIN ingests i ON i.id = r.id"
        " WHERE r.namespace = ? AND r.type = ? AND r.key = ?",
        (namespace, INGESTS, ref),
    ).fetchone()
    return row


def _backend_refs(db: Connection, namespace: str) -> list[tuple[str, str]]:
    return db.execute(
        "SELECT r.key, i.backend_ref FROM resources r JOIN ingests i ON i.id = r.id"
        " WHERE r.namespace = ? AND r.type = ? ORDER BY r.key",
        (namespace, INGESTS),
    ).fetchall()
