"""Keep backends in memory, for tests of what stands on top of them: no files, no mounts, no threads.

They keep the contracts of `interfaces/content.py` and `interfaces/snapshotter.py`. `calls` lists what was asked of
them; `before` is awaited at the start of every call that changes something, with the call's name and first argument,
so that a test can hold a call, fail it, or do something else meanwhile.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Self

import msgspec

from aiocontainerd import labels as label_rules
from aiocontainerd import timestamps
from aiocontainerd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from aiocontainerd.filters import compile_filters, field
from aiocontainerd.interfaces import content, snapshotter
from aiocontainerd.interfaces.snapshotter import Kind, Usage
from aiocontainerd.sys.mount import Mount

if TYPE_CHECKING:
    import betterproto2

Hook = Callable[[str, str], Awaitable[None]]


async def _nothing(_call: str, _name: str) -> None:
    return


class FakeBus:
    """An event bus that remembers what was published: topic, message, namespace."""

    def __init__(self) -> None:
        self.events: list[tuple[str, betterproto2.Message, str | None]] = []

    def publish(self, topic: str, event: betterproto2.Message, *, namespace: str | None = None) -> None:
        """Remember an event."""
        self.events.append((topic, event, namespace))

    @property
    def topics(self) -> list[str]:
        """Return the topics, in order."""
        return [topic for topic, _, _ in self.events]


class _Ingest:
    def __init__(self, ref: str, total: int) -> None:
        self.ref = ref
        self.total = total
        self.data = bytearray()
        self.started_ns = self.updated_ns = timestamps.now_ns()
        self.locked = False

    def status(self) -> content.IngestStatus:
        return content.IngestStatus(
            ref=self.ref,
            offset=len(self.data),
            total=self.total,
            started_at_ns=self.started_ns,
            updated_at_ns=self.updated_ns,
        )


class FakeContentStore:
    """A `ContentStore` without namespaces."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.ingests: dict[str, _Ingest] = {}
        self.calls: list[tuple[str, str]] = []
        self.before: Hook = _nothing
        self._infos: dict[str, content.BlobInfo] = {}

    async def info(self, digest: str) -> content.BlobInfo:
        if digest not in self._infos:
            raise NotFound(f"content digest {digest}")
        return self._infos[digest]

    async def update(self, info: content.BlobInfo, paths: Sequence[str] = ()) -> content.BlobInfo:
        current = await self.info(info.digest)
        labels = label_rules.update(current.labels, info.labels, list(paths) or ["labels"])
        changed = msgspec.structs.replace(current, labels=labels, updated_at_ns=timestamps.now_ns())
        self._infos[info.digest] = changed
        return changed

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[content.BlobInfo]:
        for digest, info in sorted(self._infos.items()):
            if _chosen(filters, {"digest": digest}, info.labels):
                yield info

    async def delete(self, digest: str) -> None:
        await self._call("delete", digest)
        if self.blobs.pop(digest, None) is None:
            raise NotFound(f"content digest {digest}")
        del self._infos[digest]

    async def reader(self, digest: str) -> FakeReader:
        if digest not in self.blobs:
            raise NotFound(f"content digest {digest}")
        return FakeReader(self.blobs[digest])

    async def writer(self, ref: str, *, total: int = 0, expected: str = "") -> FakeWriter:
        await self._call("writer", ref)
        if expected in self.blobs:
            raise AlreadyExists(f"content {expected}")
        ingest = self.ingests.setdefault(ref, _Ingest(ref, total))
        if ingest.locked:
            raise Unavailable(f"ref {ref} locked")
        if total and ingest.total and total != ingest.total:
            ingest.data.clear()
            ingest.total = total
        ingest.locked = True
        return FakeWriter(self, ingest)

    async def status(self, ref: str) -> content.IngestStatus:
        if ref not in self.ingests:
            raise NotFound(f"reference {ref}")
        return self.ingests[ref].status()

    async def statuses(self, filters: Sequence[str] = ()) -> list[content.IngestStatus]:
        return [self.ingests[ref].status() for ref in sorted(self.ingests) if _chosen(filters, {"ref": ref}, {})]

    async def abort(self, ref: str) -> None:
        await self._call("abort", ref)
        if self.ingests.pop(ref, None) is None:
            raise NotFound(f"reference {ref}")

    def put(self, data: bytes) -> str:
        """Make a blob at once, and return its digest."""
        return self.put_as(digest_of(data), data).digest

    def put_as(self, digest: str, data: bytes) -> content.BlobInfo:
        """Make a blob of a digest at once."""
        now = timestamps.now_ns()
        self.blobs[digest] = data
        self._infos[digest] = content.BlobInfo(digest=digest, size=len(data), created_at_ns=now, updated_at_ns=now)
        return self._infos[digest]

    async def commit(self, ingest: _Ingest, size: int, expected: str) -> content.BlobInfo:
        """Do what a writer's commit does."""
        await self._call("commit", ingest.ref)
        if self.ingests.get(ingest.ref) is not ingest:
            raise NotFound(f"reference {ingest.ref}")
        data = bytes(ingest.data)
        digest = digest_of(data, expected.partition(":")[0] or "sha256")
        if size and size != len(data):
            raise FailedPrecondition(f'"{ingest.ref}" failed size validation: {len(data)} != {size}')
        if expected and digest != expected:
            raise FailedPrecondition(f"unexpected commit digest {digest}, expected {expected}")
        self.ingests.pop(ingest.ref, None)
        if digest in self.blobs:
            raise AlreadyExists(f"content {digest}")
        return self.put_as(digest, data)

    async def _call(self, call: str, name: str) -> None:
        self.calls.append((call, name))
        await self.before(call, name)


class FakeReader:
    """A reader of bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._descriptor = -1

    @property
    def size(self) -> int:
        return len(self._data)

    async def read(self, size: int, offset: int) -> bytes:
        return self._data[offset : offset + size]

    def fileno(self) -> int:
        if self._descriptor < 0:
            self._descriptor = os.memfd_create("blob")
            os.pwrite(self._descriptor, self._data, 0)
        return self._descriptor

    async def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class FakeWriter:
    """A writer into an ingest in memory."""

    def __init__(self, store: FakeContentStore, ingest: _Ingest) -> None:
        self._store = store
        self._ingest = ingest
        self._closed = False

    @property
    def offset(self) -> int:
        return len(self._ingest.data)

    def digest(self) -> str:
        return digest_of(bytes(self._ingest.data))

    async def write(self, data: bytes) -> None:
        if self._closed:
            raise FailedPrecondition(f"writer of {self._ingest.ref} is closed")
        self._ingest.data += data
        self._ingest.updated_ns = timestamps.now_ns()

    async def truncate(self) -> None:
        self._ingest.data.clear()

    async def status(self) -> content.IngestStatus:
        return self._ingest.status()

    async def commit(
        self, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None
    ) -> content.BlobInfo:
        info = await self._store.commit(self._ingest, size, expected)
        return await self._store.update(msgspec.structs.replace(info, labels=labels or {}))

    async def close(self) -> None:
        if not self._closed:
            self._closed, self._ingest.locked = True, False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class FakeSnapshotter:
    """A `Snapshotter` without namespaces and without files. `usages` may be set by a test."""

    def __init__(self) -> None:
        self.infos: dict[str, snapshotter.SnapshotInfo] = {}
        self.usages: dict[str, Usage] = {}
        self.cleanups = 0
        self._children: Counter[str] = Counter()
        self.calls: list[tuple[str, str]] = []
        self.before: Hook = _nothing

    async def stat(self, key: str) -> snapshotter.SnapshotInfo:
        if key not in self.infos:
            raise NotFound(f"snapshot {key} does not exist")
        return self.infos[key]

    async def update(self, info: snapshotter.SnapshotInfo, paths: Sequence[str] = ()) -> snapshotter.SnapshotInfo:
        await self._call("update", info.name)
        current = await self.stat(info.name)
        labels = label_rules.update(current.labels, info.labels, list(paths) or ["labels"])
        changed = msgspec.structs.replace(current, labels=labels, updated_at_ns=timestamps.now_ns())
        self.infos[info.name] = changed
        return changed

    async def usage(self, key: str) -> Usage:
        await self.stat(key)
        return self.usages.get(key, Usage())

    async def mounts(self, key: str) -> list[Mount]:
        info = await self.stat(key)
        if info.kind not in (Kind.ACTIVE, Kind.VIEW):
            raise FailedPrecondition(f"snapshot {key} is not active or view")
        return [Mount("bind", f"fake/{key}", options=("rbind", "rw" if info.kind == Kind.ACTIVE else "ro"))]

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        return await self._make("prepare", Kind.ACTIVE, key, parent, labels)

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        return await self._make("view", Kind.VIEW, key, parent, labels)

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        await self._call("commit", name)
        if name in self.infos:
            raise AlreadyExists(f'snapshot "{name}"')
        info = await self.stat(key)
        if info.kind != Kind.ACTIVE:
            raise FailedPrecondition(f"snapshot {key} is not active")
        self._check_parent(parent)
        self._drop(key)
        self._put(Kind.COMMITTED, name, info.parent or parent, labels)

    async def remove(self, key: str) -> None:
        await self._call("remove", key)
        await self.stat(key)
        if self._children[key]:
            raise FailedPrecondition("cannot remove snapshot with child")
        self._drop(key)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[snapshotter.SnapshotInfo]:
        for key, info in sorted(self.infos.items()):
            fields = {"name": key, "kind": info.kind.name.lower(), "parent": info.parent}
            if _chosen(filters, fields, info.labels):
                yield info

    async def cleanup(self) -> None:
        self.cleanups += 1

    async def _make(
        self, call: str, kind: Kind, key: str, parent: str, labels: Mapping[str, str] | None
    ) -> list[Mount]:
        await self._call(call, key)
        if key in self.infos:
            raise AlreadyExists(f'snapshot "{key}"')
        self._check_parent(parent)
        self._put(kind, key, parent, labels)
        return await self.mounts(key)

    def _check_parent(self, parent: str) -> None:
        if not parent:
            return
        if parent not in self.infos:
            raise NotFound(f"parent snapshot {parent} does not exist")
        if self.infos[parent].kind != Kind.COMMITTED:
            raise InvalidArgument(f'parent "{parent}" is not committed snapshot')

    def _put(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str] | None) -> None:
        now = timestamps.now_ns()
        self._children[parent] += 1
        self.infos[key] = snapshotter.SnapshotInfo(
            kind=kind, name=key, parent=parent, labels=dict(labels or {}), created_at_ns=now, updated_at_ns=now
        )

    def _drop(self, key: str) -> None:
        self._children[self.infos.pop(key).parent] -= 1

    async def _call(self, call: str, name: str) -> None:
        self.calls.append((call, name))
        await self.before(call, name)


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """Return the digest of bytes."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def _chosen(filters: Sequence[str], fields: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    compiled = compile_filters(filters)
    return compiled.matches(lambda path: field(labels, path[1:]) if path[0] == "labels" else fields.get(path[0]))
