"""Store all records of all namespaces, over one content store and any number of snapshotters."""

from __future__ import annotations

import logging
import math
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from aiocontainerd.errors import ContainerdError, ReadOnlyFileSystem, text_of, to_status
from aiocontainerd.index import backup
from aiocontainerd.index.read_only import refusal
from aiocontainerd.interfaces.content import ContentStore
from aiocontainerd.interfaces.metadata import Collected
from aiocontainerd.interfaces.snapshotter import Snapshotter, named
from aiocontainerd_metadata_sqlite import images, prune, snapshots
from aiocontainerd_metadata_sqlite.cache import CACHE_BYTES
from aiocontainerd_metadata_sqlite.collect import Sweeper, Swept
from aiocontainerd_metadata_sqlite.containers import Containers
from aiocontainerd_metadata_sqlite.content import NamespacedContent, Policy
from aiocontainerd_metadata_sqlite.engine import Engine, Statistics
from aiocontainerd_metadata_sqlite.images import Images
from aiocontainerd_metadata_sqlite.leases import Leases
from aiocontainerd_metadata_sqlite.namespaces import Namespaces
from aiocontainerd_metadata_sqlite.owned import Backend, Names, Ownership
from aiocontainerd_metadata_sqlite.references import CONTENT, IMAGES, INGESTS, SNAPSHOTS
from aiocontainerd_metadata_sqlite.schema import NAME
from aiocontainerd_metadata_sqlite.session import Publisher, Session
from aiocontainerd_metadata_sqlite.snapshots import NamespacedSnapshotter

COPIED_AT_STOP_BYTES = 32 << 20
"""The largest database that is copied when the daemon stops: about a fifth of a second."""
FIRST_COPY_S = 60.0
"""From the start to the first copy, if one is due."""
log = logging.getLogger(__name__)


class SqliteMetadataStore:
    """See `aiocontainerd.interfaces.metadata.MetadataStore`. Open with `open`, close with `aclose`.

    `cache_bytes` is the memory for records that were read last. `backend_limit_s()` limits each call that a collection
    makes to a backend.
    """

    def __init__(
        self,
        path: Path,
        *,
        content: ContentStore,
        snapshotters: Mapping[str, Snapshotter],
        bus: Publisher,
        policy: Policy = "shared",
        sync: bool = True,
        cache_bytes: int = CACHE_BYTES,
        backend_limit_s: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self.engine = Engine(path, sync=sync, cache_bytes=cache_bytes)
        self._backend_limit_s = backend_limit_s
        self._session = Session(self.engine, bus)
        self._sweeper = Sweeper(self.engine, self._session.pinned)
        self._namespaces = Namespaces(self._session)
        self._containers = Containers(self._session)
        self._images = Images(self._session)
        self._leases = Leases(self._session)
        self._content = NamespacedContent(self._session, content, policy)
        self._snapshotters = {
            name: NamespacedSnapshotter(self._session, name, backend) for name, backend in snapshotters.items()
        }
        self._pruning: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._session.dirty.update((CONTENT, *(SNAPSHOTS + name for name in snapshotters)))
        self._copied = 0
        self._failures: dict[str, str] = {}
        self.ownership = Ownership(self.engine)
        self._session.claim = self._claim
        self.engine.committed = self.ownership.advance

    def __repr__(self) -> str:
        return f"<SqliteMetadataStore {self.engine!r}, dirty: {sorted(self._session.dirty)}>"

    async def open(self) -> None:
        """Open the database and claim the backends. The first collection looks at what earlier runs left in them.

        A backend that cannot be claimed now is claimed before the first call makes something there, or by a collection.
        On a read-only file system none is claimed: nothing can be made or deleted.
        """
        await self.engine.open()
        for resource_type in sorted(self._session.dirty):
            if self.engine.is_copy:
                await self.ownership.count(resource_type)
                continue
            try:
                await self._claim(resource_type)
            except Exception as error:  # noqa: BLE001 - the edge of a backend: the store serves without it
                log.warning("cannot claim the backend of %s yet: %s", resource_type, _words(error))

    async def keep_copies(self, interval_s: float) -> None:
        """Copy the database once in an interval in which it changed. Run it as a task."""
        await anyio.sleep(min(FIRST_COPY_S, interval_s))
        while True:
            if await anyio.to_thread.run_sync(backup.is_due, self.engine.path, interval_s):
                await self._copy()
            await anyio.sleep(interval_s)

    async def _copy(self) -> None:
        changes = self._session.changes
        if changes == self._copied:
            return
        try:
            await self.engine.copy()
            self._copied = changes
        except (sqlite3.Error, OSError) as error:
            log.warning("there is no copy of %s: %s", self.engine.path, text_of(error))

    async def aclose(self) -> None:
        """Copy the database if it changed, finish the mutations that wait, and close it."""
        with anyio.CancelScope(shield=True):
            try:
                await self.ownership.note_leftovers()
            except ContainerdError as error:
                log.warning("what is left in the backends is not written down: %s", error)
            if await anyio.to_thread.run_sync(self._is_small):
                await self._copy()
        await self.engine.aclose()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.ownership.aclose)

    def _is_small(self) -> bool:
        """Return whether a copy takes so little time that a stop can wait for it."""
        return self.engine.path.exists() and self.engine.path.stat().st_size <= COPIED_AT_STOP_BYTES

    def statistics(self) -> Statistics:
        """Return the counters of the engine."""
        return self.engine.statistics()

    @property
    def namespaces(self) -> Namespaces:
        return self._namespaces

    @property
    def containers(self) -> Containers:
        return self._containers

    @property
    def images(self) -> Images:
        return self._images

    @property
    def leases(self) -> Leases:
        return self._leases

    @property
    def content(self) -> NamespacedContent:
        return self._content

    def snapshotter(self, name: str) -> NamespacedSnapshotter:
        """Return the snapshotter of a name. Raise InvalidArgument for no name and an unknown one (facts/core 6)."""
        return named(name, self._snapshotters)

    @property
    def snapshotters(self) -> Sequence[str]:
        return sorted(self._snapshotters)

    def follow(self, name: str, backend: Snapshotter | None) -> None:
        """Add a backend while the store is open, or remove one (None). Its records stay."""
        if backend is None:
            self._snapshotters.pop(name, None)
            self.ownership.forget(SNAPSHOTS + name)
            return
        self._snapshotters[name] = NamespacedSnapshotter(self._session, name, backend)
        self._session.dirty.add(SNAPSHOTS + name)

    def on_mutation(self, callback: Callable[[bool], None]) -> None:
        """Call `callback(deletion)` after every committed change that a client made; collections do not count."""
        self._session.on_mutation(callback)

    async def sweep(self) -> Collected:
        """Delete the records that nothing leads to. Raise what the database raises.

        Nothing is done, here and in `reclaim`, while the database was opened on a read-only file system.
        """
        if self.engine.is_copy:
            return Collected(removed={}, duration_s=0.0)
        started, rested_s = time.monotonic(), self._sweeper.rested_s
        removed = await self._sweeper.run(self._swept)
        return Collected(removed=removed, duration_s=time.monotonic() - started - (self._sweeper.rested_s - rested_s))

    async def reclaim(self) -> None:
        """Delete from every dirty backend what no namespace has. A backend that fails is logged and stays dirty."""
        if self.engine.is_copy:
            return
        async with anyio.create_task_group() as group:
            for resource_type in sorted({CONTENT, *(SNAPSHOTS + name for name in self._snapshotters)}):
                group.start_soon(self._prune, resource_type)

    async def collect(self) -> Collected:
        """Sweep and reclaim."""
        collected = await self.sweep()
        await self.reclaim()
        return collected

    def _swept(self, batch: Sequence[Swept]) -> None:
        self._session.changes += len(batch)
        for record in batch:
            if record.type == IMAGES:
                images.publish_deleted(self._session, record.key, record.namespace)
            elif record.type in (CONTENT, INGESTS):
                self._session.dirty.add(CONTENT)
            elif record.type.startswith(SNAPSHOTS):
                self._session.dirty.add(record.type)
                name = record.type.removeprefix(SNAPSHOTS)
                snapshots.publish_removed(self._session, name, record.key, record.namespace)

    async def _prune(self, resource_type: str) -> None:
        """Prune one backend if it is dirty. It stays dirty if that fails, or if it becomes dirty again meanwhile."""
        async with self._pruning[resource_type]:
            if resource_type in self._session.dirty:
                await self._prune_dirty(resource_type)

    async def _prune_dirty(self, resource_type: str) -> None:
        self._session.dirty.discard(resource_type)
        complete = False
        try:
            complete = await self._prune_backend(resource_type)
        except Exception as error:  # noqa: BLE001 - the edge of a task: one backend's failure is its own
            self._tell_failure(resource_type, error)
        else:
            self._failures.pop(resource_type, None)
        finally:
            if not complete:
                self._session.dirty.add(resource_type)

    def _tell_failure(self, resource_type: str, error: Exception) -> None:
        """Log why a backend cannot be pruned. A file system that stays read-only is told once."""
        text = _words(error)
        if not (text.endswith(ReadOnlyFileSystem.text) and self._failures.get(resource_type) == text):
            log.warning("cannot prune the backend of %s, will try again: %s", resource_type, text)
        self._failures[resource_type] = text

    async def _prune_backend(self, resource_type: str) -> bool:
        """Claim a backend and prune it. A snapshotter that is not loaded is complete."""
        await self._claim(resource_type)
        found = self._snapshotters.get(resource_type.removeprefix(SNAPSHOTS))
        complete = True
        if resource_type == CONTENT:
            await prune.prune_content(self.engine, self._content, self._backend_limit_s())
        elif found is not None:
            complete = await prune.prune_snapshots(self.engine, found, self._backend_limit_s())
        if self.ownership.kept:
            await self.ownership.count(resource_type)
        return complete

    async def _claim(self, resource_type: str) -> None:
        """Claim a backend that is loaded, before the first call makes something there or a collection deletes."""
        found = self._snapshotters.get(resource_type.removeprefix(SNAPSHOTS))
        if self.ownership.is_claimed(resource_type):
            return
        if self.engine.is_copy:
            raise refusal(self.engine.path, NAME)
        if resource_type == CONTENT:
            await self.ownership.claim(Backend(CONTENT, self._content.backend, self._present_content))
        elif found is not None:
            await self.ownership.claim(Backend(resource_type, found.backend, partial(self._present_snapshots, found)))
        self._session.skip_numbers()

    async def _present_content(self) -> Names:
        backend = self._content.backend
        with anyio.fail_after(self._backend_limit_s()):
            blobs = frozenset([info.digest async for info in backend.walk()])
            return {CONTENT: blobs, INGESTS: frozenset(status.ref for status in await backend.statuses())}

    async def _present_snapshots(self, found: NamespacedSnapshotter) -> Names:
        with anyio.fail_after(self._backend_limit_s()):
            names = frozenset([info.name async for info in found.backend.walk()])
        return {SNAPSHOTS + found.name: names - found.in_progress}


def _words(error: Exception) -> str:
    """Return what the log says of an error."""
    if isinstance(error, ReadOnlyFileSystem):
        return to_status(error)[1]
    return text_of(error) if getattr(error, "errno", None) else str(error) or type(error).__name__
