"""Unpack one layer into one tree: read, inflate, digest, extract. Blocks; for a child process or a thread.

Inflating and hashing run in another thread, without the GIL, a few chunks ahead of the extraction. A child process
unpacks one layer only, so this module imports nothing that takes long to import, such as typing.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from aiocontainerd.oci.tar_reader import TarReader
from aiocontainerd_differ.extract import Extractor
from aiocontainerd_differ.inflate import Measured, inflated

_AHEAD = 8


class Job:
    """What to unpack and how. `lowers` are the lower directories of an overlay, topmost first.

    With `sniff` the first bytes tell the compression; without it the blob is a plain tar.
    """

    def __init__(
        self,
        *,
        blob_fd: int,
        root_fd: int,
        overlay: bool,
        lowers: list[str],
        in_user_namespace: bool,
        sniff: bool,
        max_entries: int,
    ) -> None:
        self.blob_fd = blob_fd
        self.root_fd = root_fd
        self.overlay = overlay
        self.lowers = lowers
        self.in_user_namespace = in_user_namespace
        self.sniff = sniff
        self.max_entries = max_entries


class Result:
    """Digest and size in bytes of the uncompressed stream."""

    def __init__(self, digest: str, size: int) -> None:
        self.digest = digest
        self.size = size


class Stopped(Exception):
    """Raised when the caller has given up. The tree is half written."""


def unpack(job: Job, stopped: Callable[[], bool] = lambda: False, *, ahead: bool = True) -> Result:
    """Do `job`. With `ahead`, inflate in another thread.

    Raise InvalidArchive, BrokenStream or OSError; Stopped once `stopped()` is true.
    """
    stream = Measured(inflated(job.blob_fd, sniff=job.sniff))
    if not ahead:
        _extract(job, stream.next_chunk, stopped)
        return Result(stream.digest, stream.size)
    with _Ahead(stream) as chunks:
        _extract(job, chunks.next_chunk, stopped)
    return Result(stream.digest, stream.size)


def _extract(job: Job, next_chunk: Callable[[], bytes], stopped: Callable[[], bool]) -> None:
    extractor = Extractor(
        job.root_fd,
        overlay=job.overlay,
        lowers=job.lowers,
        in_user_namespace=job.in_user_namespace,
        max_entries=job.max_entries,
    )

    def chunk_unless_stopped() -> bytes:
        if stopped():
            raise Stopped
        return next_chunk()

    reader = TarReader(chunk_unless_stopped)
    extractor.run(reader, stopped)
    reader.drain()


class _Ahead:
    """Reads a stream in a thread, a few chunks ahead at most."""

    def __init__(self, stream: Measured) -> None:
        self._stream = stream
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(_AHEAD)
        self._abandoned = False
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="inflate", daemon=True)

    def __enter__(self) -> _Ahead:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._abandoned = True
        while self._thread.is_alive():
            self._discard()
            self._thread.join(0.01)

    def next_chunk(self) -> bytes:
        """Return the next chunk, b"" at the end. Raise what the stream raised."""
        if self._ended:
            return b""
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._ended = True
            raise item
        self._ended = not item
        return item

    def _run(self) -> None:
        try:
            while not self._abandoned:
                chunk = self._stream.next_chunk()
                self._queue.put(chunk)
                if not chunk:
                    return
        except BaseException as error:  # noqa: BLE001 - `next_chunk` raises it in the thread that reads
            self._queue.put(error)

    def _discard(self) -> None:
        try:
            while True:
                self._queue.get_nowait()
        except queue.Empty:
            pass
