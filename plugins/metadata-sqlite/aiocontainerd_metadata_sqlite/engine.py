"""Run mutations in one writer thread with group commit, and reads in reader threads with snapshots.

Mutations that wait at the same moment join one transaction. Each runs in its own savepoint: one that fails is undone
alone, and its caller gets the error. One COMMIT, which is one fsync, makes the whole group durable; then all callers
are answered. A lone mutation is a group of one and waits for nobody. A read runs in its own transaction on another
connection: it sees everything that was acknowledged before it began, and no part of what was not. A lookup reads one
resource; `cache` answers it again until a mutation of that resource is acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import msgspec

from aiocontainerd.errors import FailedPrecondition, Internal, ResourceExhausted, Unavailable
from aiocontainerd.index import backup, database
from aiocontainerd.index.read_only import read_only, refusal
from aiocontainerd.index.reserve import Reserve, is_full
from aiocontainerd_metadata_sqlite.cache import CACHE_BYTES, Name, RecordCache, watch_changes
from aiocontainerd_metadata_sqlite.connections import Opened
from aiocontainerd_metadata_sqlite.resources import generation
from aiocontainerd_metadata_sqlite.schema import NAME

log = logging.getLogger(__name__)

T = TypeVar("T")
MAX_GROUP = 512
MAX_READERS = 3
RESERVE_BYTES = 4 << 20
FULL = "the disk of %s %s is full: until there is room, only deletions are possible"
_RECORD_BYTES = 1024


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the engine opened; `largest_group` is how many mutations the fullest commit carried."""

    commits: int
    mutations: int
    failed: int
    largest_group: int
    reads: int
    waiting: int


class _Job:
    """One mutation on its way through the writer."""

    __slots__ = ("changed", "error", "frees", "function", "future", "result", "then")

    def __init__(
        self,
        function: Callable[[sqlite3.Connection], Any],
        then: Callable[[Any], None] | None,
        future: asyncio.Future[Any],
        frees: bool,
    ) -> None:
        self.function = function
        self.frees = frees
        self.then = then
        self.future = future
        self.result: Any = None
        self.changed: set[Name] = set()
        self.error: Exception | None = None


class Engine:
    """One database file. Open with `open`, and close with `aclose`, on the event loop that uses it."""

    def __init__(self, path: Path, *, sync: bool = True, cache_bytes: int = CACHE_BYTES) -> None:
        self.path = path
        self._sync = sync
        self._queue: SimpleQueue[list[_Job] | None] = SimpleQueue()
        self._gathering: list[_Job] = []
        self._waiting = 0
        self._commits = self._mutations = self._failed = self._largest = self._reads = 0
        self._answered_groups = 0
        self._records = RecordCache(cache_bytes)
        self.committed: Callable[[int], object] = lambda _generation: None
        """Is called by the writer after each commit, before it is answered, with the last id of a resource."""
        self._changed: set[Name] = set()
        self._local = threading.local()
        self._reader_connections: list[sqlite3.Connection] = []
        self._readers = ThreadPoolExecutor(MAX_READERS, thread_name_prefix="metadata-reader")
        self._thread = threading.Thread(target=self._write_groups, name="metadata-writer", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: Opened | None = None
        self._reserve = Reserve(path, RESERVE_BYTES)
        self._full = self._read_only = False
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._opened else "new"
        return f"<Engine {self.path} {state} {self.statistics()}>"

    def statistics(self) -> Statistics:
        """Return the counters."""
        return Statistics(
            commits=self._commits,
            mutations=self._mutations,
            failed=self._failed,
            largest_group=self._largest,
            reads=self._reads,
            waiting=self._waiting,
        )

    async def open(self) -> None:
        """Open, check and migrate the database.

        Raise FailedPrecondition, with the remedy, for one of a newer version or another program, a damaged one, and one
        that SQLite cannot open; OSError.
        """
        self._loop = asyncio.get_running_loop()
        self._opened = await anyio.to_thread.run_sync(self._open)
        self._thread.start()

    @property
    def is_copy(self) -> bool:
        """Whether a copy in memory is read, because the file system of the database was read-only at the start."""
        return self._opened is not None and self._opened.copy is not None

    async def write(
        self,
        function: Callable[[sqlite3.Connection], T],
        *,
        then: Callable[[T], None] | None = None,
        frees: bool = False,
    ) -> T:
        """Run `function` on the writer and return its result once it is on disk. If it raises, undo it alone.

        Raise Internal, naming the database, for what SQLite cannot do. On a full disk, ResourceExhausted is raised by
        all that does not free room (`frees`), which is done with the room of the reserve. On a read-only file system,
        ReadOnlyFileSystem is raised by all.

        `then(result)` is called on the event loop right after the commit, in the order of the commits, even if the
        caller was cancelled meanwhile. The caller's cancellation is raised after the mutation has settled, so that it
        gives back nothing that the mutation still needs.
        """
        if self._closed or self._loop is None:
            raise Unavailable(f"metadata database {self.path} is not open")
        if self.is_copy:
            raise refusal(self.path, NAME)
        job = _Job(function, then, self._loop.create_future(), frees)
        if not self._gathering:
            self._loop.call_soon(self._hand_over)
        self._gathering.append(job)
        self._waiting += 1
        await _settled(job.future)
        try:
            result: T = job.future.result()
        except sqlite3.Error as error:
            raise self._mapped(error) from error
        return result

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function` on a reader within one snapshot of the database. Raise Internal as `write` does."""
        if self._closed or self._loop is None:
            raise Unavailable(f"metadata database {self.path} is not open")
        self._reads += 1
        try:
            return await self._loop.run_in_executor(self._readers, self._read, function)
        except sqlite3.Error as error:
            raise self._mapped(error) from error

    async def lookup(
        self,
        name: Name,
        function: Callable[[sqlite3.Connection], T],
        size_bytes: Callable[[T], int] = lambda _record: _RECORD_BYTES,
    ) -> T:
        """Return what `function` reads of the resource `name`, or what it read last if nobody changed that since.

        `function` reads that resource alone. `size_bytes` estimates the memory that its result takes.
        """
        if self._closed:
            raise Unavailable(f"metadata database {self.path} is not open")
        known = self._records.get(name)
        if known is not None:
            record: T = known[0]
            return record
        answered = self._answered_groups
        record = await self.read(function)
        if answered == self._answered_groups:
            # Otherwise the snapshot may be older than a change that has been answered.
            self._records.put(name, record, size_bytes(record))
        return record

    async def copy(self) -> None:
        """Make a copy of the database to go back to, from one snapshot and beside the writer.

        Nothing happens if the disk has too little room. Raise sqlite3.Error, OSError.
        """
        if not self._closed and not self.is_copy:
            await anyio.to_thread.run_sync(self._copy)

    def _copy(self) -> None:
        if not backup.has_room(self.path):
            log.warning("there is no copy of %s: the disk has too little room", self.path)
            return
        with closing(self._connected_reader()) as connection:
            backup.make(connection, self.path)

    async def aclose(self) -> None:
        """Finish the mutations that wait, then close. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._gathering:
            self._hand_over()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._shut_down)

    def _mapped(self, error: sqlite3.Error) -> Internal:
        return Internal(f"metadata database {self.path}: {error}")

    def _hand_over(self) -> None:
        jobs, self._gathering = self._gathering, []
        self._queue.put(jobs)

    def _open(self) -> Opened:
        database.refuse_foreign(self.path, NAME)
        try:
            opened = Opened(self.path, self._reserve, sync=self._sync)
        except sqlite3.DatabaseError as error:
            if database.is_damage(error):
                raise database.damaged(self.path, NAME, str(error)) from error
            raise FailedPrecondition(f"{NAME} {self.path} cannot be opened: {error}") from error
        watch_changes(opened.writer, lambda *name: self._changed.add(name))
        if opened.copy is None:
            self._reserve.hold_log()
            self._full = not self._reserve.fill()
            if self._full:
                log.warning(FULL, NAME, self.path)
        return opened

    def _shut_down(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._readers.shutdown(wait=True)
        for connection in self._reader_connections:
            connection.close()
        if self._opened is not None:
            self._opened.close()
            if not self.is_copy:
                self._reserve.fill()

    def _read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connected_reader()
            connection.execute("PRAGMA query_only = ON")
            self._reader_connections.append(connection)
        connection.execute("BEGIN")
        try:
            return function(connection)
        finally:
            connection.execute("ROLLBACK")

    def _connected_reader(self) -> sqlite3.Connection:
        """Connect a reader. Raise Internal if the file is no longer the one that the writer has open."""
        assert self._opened is not None
        try:
            return self._opened.reader()
        except FileNotFoundError as error:
            raise Internal(f"{NAME} {self.path} was replaced while the daemon runs; restart it") from error

    @property
    def _connection(self) -> sqlite3.Connection:
        assert self._opened is not None
        return self._opened.writer

    def _write_groups(self) -> None:
        while (jobs := self._queue.get()) is not None:
            group: list[_Job] = []
            if self._full:
                self._note_room()
            try:
                self._run_group(jobs, group)
            except Exception as error:  # noqa: BLE001 - the edge of the writer: its callers get what went wrong
                refused = read_only(self.path, NAME)
                if refused is not None and not self._read_only:
                    log.warning("%s; until it can be written, changes are refused", refused)
                self._read_only = refused is not None
                self._fail_group(group, refused or error)
                if refused is None and is_full(error):
                    self._free_only(group)
            self._answer_later(group)

    def _free_only(self, group: list[_Job]) -> None:
        """Run a group that found the disk full again, with the room of the reserve: only what frees room."""
        if not self._full:
            log.warning(FULL, NAME, self.path)
        self._full = True
        self._reserve.release()
        self._empty_log()
        jobs = group.copy()
        group.clear()
        for job in jobs:
            job.error = None
        try:
            self._run_group(jobs, group)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail_group(group, error)

    def _empty_log(self) -> None:
        """Copy the log into the database, so that it begins anew and needs no more room."""
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.OperationalError as error:
            log.warning("the log of %s %s cannot be emptied: %s", NAME, self.path, error)

    def _note_room(self) -> None:
        """Go back to normal when there is room again."""
        if self._reserve.has_room() and self._reserve.fill():
            self._full = False
            self._reserve.hold_log()
            log.warning("there is room again for %s %s", NAME, self.path)

    def _run_group(self, jobs: list[_Job], group: list[_Job]) -> None:
        """Run `jobs` and those that arrive meanwhile. `group` collects every job of this transaction."""
        connection = self._connection
        group.extend(jobs)
        connection.execute("BEGIN IMMEDIATE")
        while jobs:
            for job in jobs:
                self._run_one(connection, job)
            jobs = self._arrived() if len(group) < MAX_GROUP else []
            group.extend(jobs)
        reached = generation(connection)
        connection.execute("COMMIT")
        self.committed(reached)
        if self._full:
            self._empty_log()
        if self._read_only and read_only(self.path, NAME) is None:  # a group that changes nothing passes in any case
            log.warning("%s %s can be written again", NAME, self.path)
            self._read_only = False
        self._commits += 1
        self._largest = max(self._largest, len(group))

    def _arrived(self) -> list[_Job]:
        try:
            jobs = self._queue.get_nowait()
        except Empty:
            return []
        if jobs is None:
            self._queue.put(None)
            return []
        return jobs

    def _run_one(self, connection: sqlite3.Connection, job: _Job) -> None:
        self._changed = job.changed
        if self._full and not job.frees:
            job.error = ResourceExhausted(f"{NAME} {self.path}: no space left on device")
            return
        connection.execute("SAVEPOINT mutation")
        try:
            job.result = job.function(connection)
        except Exception as error:
            job.error = error
            if not connection.in_transaction or is_full(error):
                raise
            connection.execute("ROLLBACK TO mutation")
        connection.execute("RELEASE mutation")

    def _fail_group(self, group: list[_Job], error: Exception) -> None:
        """Give every mutation of a group an error: nothing of the group was committed."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        for job in group:
            if job.error is None or isinstance(job.error, sqlite3.Error):
                job.error = error

    def _answer_later(self, group: Sequence[_Job]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._answer, group)
        except RuntimeError:
            log.debug("event loop is closed, %d committed mutations have no one to tell", len(group))

    def _answer(self, group: Sequence[_Job]) -> None:
        self._answered_groups += 1
        for job in group:
            self._records.discard_all(job.changed)
            self._waiting -= 1
            self._mutations += 1
            if job.error is not None:
                self._failed += 1
                job.future.set_exception(job.error)
                continue
            if job.then is not None:
                _call(job.then, job.result)
            job.future.set_result(job.result)


async def _settled(future: asyncio.Future[Any]) -> None:
    """Wait until `future` is done. Raise a cancellation that came meanwhile only then."""
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        future.exception()
        raise cancelled


def _call(then: Callable[[Any], None], result: Any) -> None:
    try:
        then(result)
    except Exception:  # the edge of a callback: the mutation itself is on disk
        log.exception("callback after a metadata commit failed")
