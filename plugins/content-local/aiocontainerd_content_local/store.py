"""Store content in files: a `ContentStore` (interfaces/content.py)."""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import anyio
import anyio.to_thread

from aiocontainerd.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, NotFound
from aiocontainerd.interfaces.content import BlobInfo, IngestStatus
from aiocontainerd_content_local import layout
from aiocontainerd_content_local.locks import RefLocks
from aiocontainerd_content_local.reader import LocalReader
from aiocontainerd_content_local.writer import LocalWriter

LOCK_WAIT_S = 0.5


class LocalStore:
    """Blobs and ingests under `root`. Opening it changes nothing there."""

    def __init__(self, root: Path, *, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self._layout = layout.Layout(root)
        self.index_mark = root / "index.mark"
        """Where the index that owns these blobs leaves its mark (interfaces/content.py)."""
        self._locks = RefLocks(lock_wait_s)

    def __repr__(self) -> str:
        return f"<LocalStore {self._layout.root} {self.statistics()}>"

    def statistics(self) -> dict[str, int]:
        """Return how many ingests are open."""
        return {"open_ingests": len(self._locks)}

    async def info(self, digest: str) -> BlobInfo:
        """Return size and times of a blob; the metadata store has its labels. Raise NotFound."""
        return layout.blob_info(self._layout.blob(digest), digest)

    async def update(self, info: BlobInfo, paths: Sequence[str] = ()) -> BlobInfo:  # noqa: ARG002 - the Protocol's signature
        """Raise FailedPrecondition: this backend keeps no labels (facts/core 4)."""
        raise FailedPrecondition("update not supported on immutable content store")

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[BlobInfo]:
        """Yield every blob that a filter matches, sorted by digest."""
        matches = _matcher(filters)
        for info in await anyio.to_thread.run_sync(layout.blob_infos, self._layout):
            if matches(_info_fields(info)):
                yield info

    async def delete(self, digest: str) -> None:
        """Remove a blob; who has it open keeps reading. Raise NotFound."""
        try:
            await anyio.to_thread.run_sync(os.unlink, self._layout.blob(digest))
        except FileNotFoundError:
            raise NotFound(f"content digest {digest}") from None

    async def reader(self, digest: str) -> LocalReader:
        """Open a blob. Raise NotFound."""
        return LocalReader(self._layout.blob(digest), digest)

    async def writer(self, ref: str, *, total: int = 0, expected: str = "") -> LocalWriter:
        """Open an ingest, resuming what is there. Raise AlreadyExists for a blob `expected`, Unavailable if locked."""
        if not ref:
            raise InvalidArgument("ref must not be empty")
        if expected and self._has_blob(expected):
            raise AlreadyExists(f"content {expected}")
        await self._locks.acquire(ref)
        writer = LocalWriter(self._layout, ref, functools.partial(self._locks.release, ref))
        try:
            await writer.open(total)
        except BaseException:
            await writer.close()
            raise
        return writer

    async def status(self, ref: str) -> IngestStatus:
        """Return the status of an ingest, open or not. Raise NotFound."""
        try:
            return await anyio.to_thread.run_sync(layout.read_ingest, self._layout.ingest(ref))
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"reference {ref}") from None
        except ValueError as bad:
            raise DataLoss(f"reference {ref}: {bad}") from bad

    async def statuses(self, filters: Sequence[str] = ()) -> list[IngestStatus]:
        """Return every ingest that a filter (field `ref`) matches, sorted by ref."""
        matches = _matcher(filters)
        found = await anyio.to_thread.run_sync(layout.ingest_statuses, self._layout)
        return [status for status in found if matches(_status_fields(status))]

    async def abort(self, ref: str) -> None:
        """Remove an ingest, open or not; whoever writes it finds out at commit. Raise NotFound."""
        await anyio.to_thread.run_sync(layout.remove_ingest, self._layout.ingest(ref), ref)

    async def remove_unreadable(self) -> None:
        """Remove ingests whose record a crash left unreadable: no ref would ever abort them. Before any is opened.

        Where no index has left its mark, nothing is removed: the directory may be another program's.
        """
        if await anyio.to_thread.run_sync(self.index_mark.exists):
            await anyio.to_thread.run_sync(layout.remove_unreadable_ingests, self._layout)

    def _has_blob(self, digest: str) -> bool:
        """Return whether a blob exists; False for a malformed digest, which only the commit refuses (facts/core 4)."""
        try:
            return self._layout.blob(digest).exists()
        except InvalidArgument:
            return False


def _matcher(filters: Sequence[str]) -> Callable[[Mapping[tuple[str, ...], str]], bool]:
    """Return whether the fields of a record match; no filter matches everything and needs no filter language loaded."""
    if not filters:
        return lambda _fields: True
    from aiocontainerd.filters import compile_filters

    compiled = compile_filters(filters)
    return lambda fields: compiled.matches(lambda path: fields.get(path))


def _info_fields(info: BlobInfo) -> dict[tuple[str, ...], str]:
    return {("digest",): info.digest, ("size",): str(info.size)}


def _status_fields(status: IngestStatus) -> dict[tuple[str, ...], str]:
    return {("ref",): status.ref}
