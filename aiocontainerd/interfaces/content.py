"""Content stores (kind `io.containerd.content.v1`): immutable blobs by digest, and the ingests that become blobs.

Vocabulary. A *blob* is found by its digest and never changes; its labels may. An *ingest* is a blob being written:
it is named by its *ref*, which whoever writes chooses, survives the writer and the daemon, and ends by commit
(it is a blob now) or abort (it is gone).

Life cycle. `writer(ref)` opens the ingest and takes its lock, which is held until `close`; a second `writer` for the
same ref raises Unavailable naming the ref. Data already there counts: `offset` says where to go on. `commit` checks
size and digest, makes the blob durable (file synced, renamed, directory synced) and only then returns; it ends the
ingest. A failed check raises FailedPrecondition and keeps the ingest. `commit` of a blob that exists raises
AlreadyExists and removes the ingest. `close` without commit keeps the ingest for later.

A backend store knows no namespaces; the metadata plugin gives each namespace its own view of the same Protocol
(facts/core 4). Digests and sizes are checked by the store, never trusted.

A store whose data lies in a directory has there a file for the index that owns it; its path is the attribute
`index_mark` (`aiocontainerd/index/mark.py`). Without one, the index keeps that file beside itself.

Errors: NotFound `content digest <digest>: not found` / `reference <ref>: not found`, AlreadyExists
`content <digest>: already exists`, Unavailable `ref <ref> locked for <duration> (since <time>)`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, Self

import msgspec

from aiocontainerd.interfaces.rules import LONG, QUICK, WORK, deadline, items

_NONE: Mapping[str, str] = MappingProxyType({})


class BlobInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a blob. The labels are empty in a backend that keeps none."""

    digest: str
    size: int
    created_at_ns: int
    updated_at_ns: int
    labels: Mapping[str, str] = _NONE


class IngestStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about an ingest: bytes on disk, expected total (0 if unknown), times."""

    ref: str
    offset: int
    total: int
    started_at_ns: int
    updated_at_ns: int
    expected: str = ""


class Reader(Protocol):
    """An open blob. Reading is done off the event loop."""

    @property
    def size(self) -> int:
        """Bytes in the blob."""
        ...

    @deadline(WORK)
    async def read(self, size: int, offset: int) -> bytes:
        """Return `size` bytes from `offset`; fewer only at the end."""
        ...

    def fileno(self) -> int:
        """Return a file descriptor to hand to C code or a child process; it is valid until `close`.

        Raises Unimplemented if the blob is in no file here; `distribution.spool.as_file` makes one then.
        """
        ...

    @deadline(WORK, always=True)
    async def close(self) -> None: ...

    @deadline(WORK)
    async def __aenter__(self) -> Self: ...

    @deadline(WORK, always=True)
    async def __aexit__(self, *exc: object) -> None: ...


class Writer(Protocol):
    """An open ingest, locked by its holder."""

    @property
    def offset(self) -> int:
        """Bytes written so far; the next byte goes here."""
        ...

    def digest(self) -> str:
        """Return the sha256 digest of the bytes so far."""
        ...

    @deadline(WORK)
    async def write(self, data: bytes) -> None:
        """Append all of `data`, or raise. Large data is hashed and written off the event loop."""
        ...

    @deadline(WORK)
    async def truncate(self) -> None:
        """Start again at offset 0."""
        ...

    @deadline(QUICK)
    async def status(self) -> IngestStatus: ...

    @deadline(LONG)
    async def commit(self, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> BlobInfo:
        """Make the bytes a blob. `size` 0 and `expected` "" are not checked. See the life cycle above."""
        ...

    @deadline(WORK, always=True)
    async def close(self) -> None:
        """Release the ingest's lock. Keep its bytes unless it was committed. May be called twice."""
        ...

    @deadline(WORK)
    async def __aenter__(self) -> Self: ...

    @deadline(WORK, always=True)
    async def __aexit__(self, *exc: object) -> None: ...


class ContentStore(Protocol):
    """Blobs and ingests, of one backend or of one namespace."""

    @deadline(QUICK)
    async def info(self, digest: str) -> BlobInfo: ...

    @deadline(WORK)
    async def update(self, info: BlobInfo, paths: Sequence[str] = ()) -> BlobInfo:
        """Change labels: all of them, or those that `paths` name (`labels`, `labels.<key>`)."""
        ...

    @items(WORK)
    def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[BlobInfo]:
        """Yield every blob that a filter matches, sorted by digest."""
        ...

    @deadline(WORK, always=True)
    async def delete(self, digest: str) -> None: ...

    @deadline(WORK)
    async def reader(self, digest: str) -> Reader: ...

    @deadline(WORK)
    async def writer(self, ref: str, *, total: int = 0, expected: str = "") -> Writer: ...

    @deadline(QUICK)
    async def status(self, ref: str) -> IngestStatus: ...

    @deadline(WORK)
    async def statuses(self, filters: Sequence[str] = ()) -> list[IngestStatus]: ...

    @deadline(WORK, always=True)
    async def abort(self, ref: str) -> None: ...
