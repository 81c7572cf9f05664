"""The logic of content: digests are checked before the store is asked, deletions are published (facts/core 4, 11)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from aiocontainerd import api
from aiocontainerd.errors import InvalidArgument
from aiocontainerd.interfaces.content import ContentStore, Info, Reader, Status, Writer
from aiocontainerd.oci.descriptor import split_digest

if TYPE_CHECKING:
    from aiocontainerd.events import EventBus


class ContentService:
    """A ContentStore of the current namespace that publishes what it deleted."""

    def __init__(self, store: ContentStore, bus: EventBus) -> None:
        self._store = store
        self._bus = bus

    async def info(self, digest: str) -> Info:
        """Raises InvalidArgument for what is no digest, NotFound."""
        _check(digest)
        return await self._store.info(digest)

    async def update(self, info: Info, paths: Sequence[str] = ()) -> Info:
        """Change labels. Raises InvalidArgument, NotFound."""
        _check(info.digest)
        return await self._store.update(info, paths)

    def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        """Every blob that a filter matches, sorted by digest."""
        return self._store.walk(filters)

    async def delete(self, digest: str) -> None:
        """Unlink the blob from the namespace; garbage collection removes the file. Raises InvalidArgument, NotFound."""
        split_digest(digest)
        await self._store.delete(digest)
        self._bus.publish("/content/delete", api.event_types.ContentDelete(digest=digest))

    async def reader(self, digest: str) -> Reader:
        """Raises InvalidArgument, NotFound."""
        try:
            split_digest(digest)
        except InvalidArgument as bad:
            raise InvalidArgument(f"{digest}: {bad.message}") from bad
        return await self._store.reader(digest)

    async def writer(self, ref: str, *, total: int = 0, expected: str = "") -> Writer:
        """Raises Unavailable where another holds the ingest, AlreadyExists where `expected` is here."""
        return await self._store.writer(ref, total=total, expected=expected)

    async def status(self, ref: str) -> Status:
        """Raises NotFound."""
        return await self._store.status(ref)

    async def statuses(self, filters: Sequence[str] = ()) -> list[Status]:
        """Every ingest that a filter matches."""
        return await self._store.statuses(filters)

    async def abort(self, ref: str) -> None:
        """Raises NotFound."""
        await self._store.abort(ref)


def _check(digest: str) -> None:
    try:
        split_digest(digest)
    except InvalidArgument as bad:
        raise InvalidArgument(f'"{digest}" failed validation') from bad
