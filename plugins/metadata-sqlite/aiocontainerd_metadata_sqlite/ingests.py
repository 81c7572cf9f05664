"""Open an ingest of a namespace, write it and commit it (facts/core 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Self

import anyio
import msgspec

from aiocontainerd import api, timestamps
from aiocontainerd import labels as label_rules
from aiocontainerd.errors import AlreadyExists, FailedPrecondition, NotFound
from aiocontainerd.gotext import quoted
from aiocontainerd.interfaces.content import BlobInfo, ContentStore, IngestStatus, Writer
from aiocontainerd_metadata_sqlite import resources
from aiocontainerd_metadata_sqlite.pins import BlobPins
from aiocontainerd_metadata_sqlite.references import CONTENT, INGESTS, Edge, Kind
from aiocontainerd_metadata_sqlite.resources import Connection
from aiocontainerd_metadata_sqlite.session import Caller, Session

LIFETIME_NS = 24 * 3600 * timestamps.NANOSECONDS
"""How long an ingest without a lease is kept after it was opened last."""
CLOSE_TIMEOUT_S = 10.0
"""Limit for the backend to close an ingest."""
_CHUNK = 1 << 20
_SHARED_SIZE = "SELECT c.size FROM resources r JOIN content c ON c.id = r.id WHERE r.type = 'content' AND r.key = ?"
_FROM_SHAREABLE = (
    " AND EXISTS (SELECT 1 FROM namespace_labels l WHERE l.namespace = r.namespace AND l.key = ? AND l.value = 'true')"
)


class Opened(msgspec.Struct, frozen=True):
    """The outcome of opening an ingest: the blob exists, or is one of another namespace to link, or neither."""

    backend_ref: str = ""
    exists: bool = False
    shared: tuple[str, int] | None = None
    """Digest and size of the blob to link."""


def open_ingest(
    db: Connection,
    caller: Caller,
    ref: str,
    number: int,
    expected: str,
    total: int,
    policy: str,
    *,
    anew: bool = False,
) -> Opened:
    """Make or refresh the row of an ingest and lease it. If the blob `expected` exists already, lease that instead.

    With `anew`, the blob's file is gone: its bytes are wanted whatever the records say.
    """
    if expected and not anew and resources.find(db, caller.namespace, CONTENT, expected) is not None:
        resources.hold(db, caller.namespace, caller.lease, CONTENT, expected)
        return Opened(exists=True)
    resources.hold(db, caller.namespace, caller.lease, INGESTS, ref)
    backend_ref = _touch(db, caller, ref, number, expected)
    size = _shareable_size(db, expected, total, policy) if expected and not anew else None
    return Opened(backend_ref, shared=None if size is None else (expected, size))


class NamespacedWriter:
    """An open ingest of a namespace. It holds the lock of the ingest, and pins on rows and files, until `close`."""

    def __init__(
        self,
        session: Session,
        backend: ContentStore,
        pins: BlobPins,
        caller: Caller,
        ref: str,
        unlock: Callable[[str], None],
    ) -> None:
        self._session = session
        self._backend = backend
        self._pins = pins
        self._caller = caller
        self._ref = ref
        self._unlock = unlock
        self._backend_ref = ""
        self._inner: Writer | None = None
        self._shared: tuple[str, int] | None = None
        self._opened_ns = timestamps.now_ns()
        self._pinned: list[str] = []
        self._closed = False
        self.anew = False
        """Whether the bytes of a blob that has a record come again."""
        self._row = (caller.namespace, INGESTS, ref)
        session.pinned[self._row] += 1

    def __repr__(self) -> str:
        state = "closed" if self._closed else "shared" if self._inner is None else f"at {self._inner.offset}"
        return f"<NamespacedWriter {self._caller.namespace}/{self._ref} {state}>"

    async def pin(self, digest: str) -> None:
        """Keep the file of `digest` until this writer closes."""
        if digest and digest not in self._pinned:
            await self._pins.pin(digest)
            self._pinned.append(digest)

    async def begin(self, opened: Opened, total: int) -> None:
        """Begin with an ingest whose lock is held. Open it in the backend, unless the blob can be linked.

        Raise NotFound for an ingest that is aborted meanwhile.
        """
        self._backend_ref, self._shared = opened.backend_ref, opened.shared
        if self._shared is None:
            try:
                self._inner = await self._backend.writer(self._backend_ref, total=total)
            except NotFound:
                raise NotFound(f"reference {self._ref}") from None

    @property
    def offset(self) -> int:
        return self._shared[1] if self._inner is None and self._shared else self._open_inner().offset

    def digest(self) -> str:
        return self._shared[0] if self._inner is None and self._shared else self._open_inner().digest()

    async def write(self, data: bytes) -> None:
        """Append. If the ingest could link a blob, copy that blob first."""
        await self._own(copy=True)
        await self._open_inner().write(data)

    async def truncate(self) -> None:
        await self._own(copy=False)
        await self._open_inner().truncate()

    async def status(self) -> IngestStatus:
        if self._inner is not None:
            return msgspec.structs.replace(await self._inner.status(), ref=self._ref)
        size = self.offset
        return IngestStatus(
            ref=self._ref, offset=size, total=size, started_at_ns=self._opened_ns, updated_at_ns=self._opened_ns
        )

    async def commit(self, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> BlobInfo:
        """Commit to the backend, then link. Raise AlreadyExists if the namespace has the blob; the ingest is gone then.

        If only other namespaces have the blob, that is no error: the backend drops its duplicate.
        """
        self._check_open()
        given = label_rules.without_empty(labels or {})
        label_rules.validate(given, "info.Labels")
        if size not in (0, self.offset):
            raise FailedPrecondition(f"{quoted(self._ref)} failed size validation: {self.offset} != {size}")
        if self._inner is None:
            digest, stored = self._check_shared(expected)
            with suppress(NotFound):
                await self._backend.abort(self._backend_ref)
        else:
            digest, stored = await self._commit_inner(self._inner, size, expected)
        return await self._link(digest, stored, given)

    async def close(self) -> None:
        """Release everything, in a cancelled call too. May be called twice."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._inner is not None:
                with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                    await self._inner.close()
        finally:
            if self._backend_ref:
                self._unlock(self._backend_ref)
            for digest in self._pinned:
                self._pins.unpin(digest)
            self._session.unpin([self._row])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise FailedPrecondition(f"writer of {quoted(self._ref)} is closed")

    def _open_inner(self) -> Writer:
        assert self._inner is not None
        return self._inner

    async def _own(self, *, copy: bool) -> None:
        """Open the backend's ingest instead of linking a blob. With `copy`, begin with the blob's bytes."""
        self._check_open()
        if self._inner is not None or self._shared is None:
            return
        inner = await self._backend.writer(self._backend_ref)
        try:
            if inner.offset:
                await inner.truncate()
            if copy:
                await _copy(self._backend, self._shared[0], inner)
            self._check_open()  # a call that was given up may come here after `close`, which does not know `inner`
        except BaseException:
            await inner.close()
            raise
        self._inner = inner

    def _check_shared(self, expected: str) -> tuple[str, int]:
        assert self._shared is not None
        digest, have = self._shared
        if expected and expected != digest:
            raise FailedPrecondition(f"unexpected commit digest {digest}, expected {expected}")
        return digest, have

    async def _commit_inner(self, inner: Writer, size: int, expected: str) -> tuple[str, int]:
        written = inner.digest()
        await self.pin(written)
        await self.pin(expected)
        self._session.dirty.add(CONTENT)
        try:
            info = await inner.commit(size, expected)
        except AlreadyExists:
            info = await self._backend.info(expected or written)
        except NotFound:
            raise NotFound(f"reference {self._ref}") from None
        return info.digest, info.size

    async def _link(self, digest: str, size: int, labels: Mapping[str, str]) -> BlobInfo:
        namespace, now = self._caller.namespace, timestamps.now_ns()
        info = BlobInfo(digest=digest, size=size, created_at_ns=now, updated_at_ns=now, labels=labels)

        def link(db: Connection) -> bool:
            row = resources.find(db, namespace, INGESTS, self._ref)
            if row is not None:
                resources.delete(db, row)
            resources.let_go(db, namespace, self._caller.lease, INGESTS, self._ref)
            resources.hold(db, namespace, self._caller.lease, CONTENT, digest)
            if resources.find(db, namespace, CONTENT, digest) is not None:
                return self.anew
            blob = resources.add(db, namespace, CONTENT, digest, created_ns=now, updated_ns=now, labels=labels)
            db.execute("INSERT INTO content (id, size) VALUES (?, ?)", (blob, size))
            return True

        announce = None if self.anew else self._announce
        if not await self._session.mutate(link, then=lambda new: announce(info) if new and announce else None):
            raise AlreadyExists(f"content {digest}")
        return info

    def _announce(self, info: BlobInfo) -> None:
        message = api.event_types.ContentCreate(digest=info.digest, size=info.size)
        self._session.publish("/content/create", message, self._caller.namespace)


async def _copy(backend: ContentStore, digest: str, to: Writer) -> None:
    async with await backend.reader(digest) as reader:
        while to.offset < reader.size:
            await to.write(await reader.read(_CHUNK, to.offset))


def recorded_size(db: Connection, digest: str) -> int | None:
    """Return the size of a blob by the record of any namespace, None without one."""
    row = db.execute(f"{_SHARED_SIZE} LIMIT 1", (digest,)).fetchone()
    return None if row is None else int(row[0])


def _touch(db: Connection, caller: Caller, ref: str, number: int, expected: str) -> str:
    """Return the backend's name of an ingest. Make its row if it is new; let its time start again (facts/core 4)."""
    now = timestamps.now_ns()
    row = db.execute(
        "SELECT r.id, i.backend_ref FROM resources r JOIN ingests i ON i.id = r.id"
        " WHERE r.namespace = ? AND r.type = ? AND r.key = ?",
        (caller.namespace, INGESTS, ref),
    ).fetchone()
    edges = [Edge(Kind.BUILT_IN, CONTENT, expected)] if expected else []
    if row is None:
        backend_ref = f"{caller.namespace}/{number}/{ref}"
        ingest = resources.add(
            db, caller.namespace, INGESTS, ref, created_ns=now, updated_ns=now, labels={}, built_in=edges
        )
        db.execute("INSERT INTO ingests (id, backend_ref) VALUES (?, ?)", (ingest, backend_ref))
    else:
        ingest, backend_ref = row
        resources.change(db, ingest, caller.namespace, INGESTS, updated_ns=now, labels={}, built_in=edges)
    expires = None if caller.lease else now + LIFETIME_NS
    db.execute("UPDATE resources SET rooted = ?, expires_ns = ? WHERE id = ?", (not caller.lease, expires, ingest))
    return str(backend_ref)


def _shareable_size(db: Connection, digest: str, total: int, policy: str) -> int | None:
    """Return the size of a blob of another namespace that this one may link without sending its bytes."""
    if policy == "shared":
        row = db.execute(f"{_SHARED_SIZE} LIMIT 1", (digest,)).fetchone()
    else:
        query = f"{_SHARED_SIZE}{_FROM_SHAREABLE} LIMIT 1"
        row = db.execute(query, (digest, label_rules.NAMESPACE_SHAREABLE)).fetchone()
    return None if row is None or (total and total != row[0]) else int(row[0])
