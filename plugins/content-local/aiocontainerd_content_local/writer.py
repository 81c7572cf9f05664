"""Append to an open ingest, and make it a blob step by step (facts/core 4).

Bytes are hashed with sha256 as they come. hashlib and write(2) release the GIL, so large data goes to a thread. For
small data the way to a thread would cost more than the work.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar

import anyio
import anyio.to_thread
import msgspec

from aiocontainerd import timestamps
from aiocontainerd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from aiocontainerd.gotext import quoted
from aiocontainerd.interfaces.content import BlobInfo, IngestStatus
from aiocontainerd.oci.descriptor import split_digest
from aiocontainerd_content_local import layout

if TYPE_CHECKING:
    from hashlib import _Hash

P = ParamSpec("P")
T = TypeVar("T")

_INLINE_BYTES = 64 << 10
_HASH_CHUNK = 1 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class LocalWriter:
    """The one writer of an ingest. `release` gives its lock back and is called once, by `close`.

    A call that is cancelled may leave its thread at work on the file, so threads and `close` take turns by a lock:
    the file is never closed under a thread, and a thread that comes late finds the writer closed.
    """

    def __init__(self, store: layout.Layout, ref: str, release: Callable[[], None]) -> None:
        self._layout = store
        self._directory = store.ingest(ref)
        self._status = IngestStatus(ref=ref, offset=0, total=0, started_at_ns=0, updated_at_ns=0)
        self._fd = -1
        self._hasher = hashlib.sha256()
        self._offset = 0
        self._release = release
        self._ended = False
        self._closed = False
        self._turn = threading.Lock()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"at {self._offset}"
        return f"<LocalWriter {self._status.ref} {state}>"

    async def open(self, total: int) -> None:
        """Resume the ingest or start a new one. Call `close` even if this fails.

        Raise NotFound for an ingest that is aborted meanwhile.
        """
        try:
            await self._off_loop(self._open, total)
        except FileNotFoundError:
            raise NotFound(f"reference {self._status.ref}") from None

    @property
    def offset(self) -> int:
        """Return the number of bytes written so far."""
        return self._offset

    def digest(self) -> str:
        """Return the sha256 digest of the bytes so far."""
        return f"sha256:{self._hasher.hexdigest()}"

    async def write(self, data: bytes) -> None:
        """Append `data`. Raise ResourceExhausted where the disk is full; the ingest then ends where it did before."""
        if len(data) <= _INLINE_BYTES and self._turn.acquire(blocking=False):
            try:
                self._check_open()
                self._append(data)
            finally:
                self._turn.release()
        else:
            await self._off_loop(self._append, data)

    async def truncate(self) -> None:
        """Start again at offset 0."""
        await self._off_loop(self._truncate)

    async def status(self) -> IngestStatus:
        """Return the status of the ingest."""
        return msgspec.structs.replace(self._status, offset=self._offset)

    async def commit(self, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> BlobInfo:  # noqa: ARG002 - a backend keeps no labels, the metadata store does
        """Check, make durable, rename into place. Raise FailedPrecondition (kept), AlreadyExists (removed)."""
        info = await self._off_loop(self._commit, size, expected)
        await self.close()
        return info

    async def close(self) -> None:
        """Release the lock; an ingest that was not committed is kept for later. A cancelled call closes it, too."""
        if self._closed:
            return
        self._closed = True
        try:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._close)
        finally:
            self._release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _off_loop(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        def turn() -> T:
            with self._turn:
                self._check_open()
                return step(*args, **kwargs)

        return await anyio.to_thread.run_sync(turn)

    def _check_open(self) -> None:
        if self._closed:
            raise FailedPrecondition(f"writer of {self._status.ref} is closed")

    def _touch(self) -> None:
        self._status = msgspec.structs.replace(self._status, updated_at_ns=timestamps.now_ns())

    def _open(self, total: int) -> None:
        found = layout.resumable(self._directory, self._status.ref, total)
        self._status = found or layout.create_ingest(self._directory, self._status.ref, total)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (0 if found else os.O_TRUNC)
        self._fd = _open_data(self._directory / "data", flags)
        self._offset = self._status.offset
        if self._offset:
            self._hasher = hash_file(self._fd, "sha256")

    def _append(self, data: bytes) -> None:
        try:
            _write_all(self._fd, data, self._offset)
        except OSError as error:
            with suppress(OSError):  # on a read-only file system nothing was written
                os.ftruncate(self._fd, self._offset)
            raise self._named(error) from error
        self._hasher.update(data)
        self._offset += len(data)
        self._touch()

    def _truncate(self) -> None:
        try:
            os.ftruncate(self._fd, 0)
        except OSError as error:
            raise self._named(error) from error
        self._hasher = hashlib.sha256()
        self._offset = 0
        self._touch()

    def _commit(self, size: int, expected: str) -> BlobInfo:
        if size not in (0, self._offset):
            raise FailedPrecondition(f"{quoted(self._status.ref)} failed size validation: {self._offset} != {size}")
        return self._publish(self._checked_digest(expected))

    def _close(self) -> None:
        with self._turn:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
                if not self._ended:
                    self._record_update()

    def _named(self, error: OSError) -> Exception:
        """Return the error to raise: ResourceExhausted naming the ref for a full disk, else OSError naming the file."""
        if error.errno in _NO_SPACE:
            return ResourceExhausted(f"ref {self._status.ref} at offset {self._offset}: {error.strerror}")
        return OSError(error.errno, error.strerror, str(self._directory / "data"))

    def _checked_digest(self, expected: str) -> str:
        have = self.digest()
        if expected and expected != have and not expected.startswith("sha256:") and _is_digest(expected):
            algorithm, _ = split_digest(expected)
            rehashed = hash_file(self._fd, algorithm)
            have = f"{algorithm}:{rehashed.hexdigest()}"
        if expected and expected != have:
            raise FailedPrecondition(f"unexpected commit digest {have}, expected {expected}")
        return have

    def _publish(self, digest: str) -> BlobInfo:
        """Sync the data, rename it, sync the directory: only then is it a blob. Modes and times go first.

        A blob of another size than these bytes, which have its digest, is damaged: it is replaced.
        """
        data, target = self._directory / "data", self._layout.blob(digest)
        if target.exists() and target.stat().st_size == self._offset:
            self._drop_ingest()
            raise AlreadyExists(f"content {digest}")
        now = timestamps.now_ns()
        try:
            layout.make_durable_directory(target.parent)
            os.fchmod(self._fd, 0o444)
            os.utime(self._fd, ns=(now, now))
            os.fsync(self._fd)
            data.rename(target)
            layout.sync_directory(target.parent)
        except FileNotFoundError:
            raise NotFound(f"reference {self._status.ref}") from None
        except OSError as error:
            raise self._named(error) from error
        self._drop_ingest()
        return BlobInfo(digest=digest, size=self._offset, created_at_ns=now, updated_at_ns=now)

    def _drop_ingest(self) -> None:
        self._ended = True
        try:
            layout.remove_ingest(self._directory, self._status.ref)
        except NotFound:
            pass

    def _record_update(self) -> None:
        """Try to record the time of the last write. Neither an aborted ingest nor a full disk must keep the lock."""
        try:
            layout.write_time(self._directory / "updatedat", self._status.updated_at_ns)
        except OSError:
            pass


def hash_file(fd: int, algorithm: str) -> _Hash:
    """Hash all bytes of an open file."""
    hasher = hashlib.new(algorithm)
    offset = 0
    while part := os.pread(fd, _HASH_CHUNK, offset):
        hasher.update(part)
        offset += len(part)
    return hasher


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def _open_data(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags, 0o644)
    except PermissionError:  # a crash within a commit leaves it read-only, which matters to a daemon without root
        os.chmod(path, 0o644)
        return os.open(path, flags, 0o644)


def _is_digest(text: str) -> bool:
    try:
        split_digest(text)
    except InvalidArgument:
        return False
    return True
