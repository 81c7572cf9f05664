"""Name the paths below the store's root, and record ingests there (facts/core 4, "On disk").

All of this is blocking file work. Callers run it off the event loop where it may take long.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from aiocontainerd import timestamps
from aiocontainerd.errors import InvalidArgument, NotFound
from aiocontainerd.interfaces.content import BlobInfo, IngestStatus
from aiocontainerd.oci.descriptor import split_digest


class Layout:
    """Paths of blobs and ingests under one root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs"
        self.ingests = root / "ingest"

    def blob(self, digest: str) -> Path:
        """Return the path of a blob. Raise InvalidArgument for a malformed digest."""
        algorithm, encoded = split_digest(digest)
        return self.blobs / algorithm / encoded

    def ingest(self, ref: str) -> Path:
        """Return the directory of an ingest. It is named by a hash, so that no ref can lead elsewhere."""
        return self.ingests / hashlib.sha256(ref.encode()).hexdigest()


def blob_info(path: Path, digest: str) -> BlobInfo:
    """Return size and times of a blob from its file. Raise NotFound."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise NotFound(f"content digest {digest}") from None
    return BlobInfo(digest=digest, size=stat.st_size, created_at_ns=stat.st_mtime_ns, updated_at_ns=stat.st_mtime_ns)


def blob_infos(layout: Layout) -> list[BlobInfo]:
    """Return every blob, sorted by digest. Ignore files whose name is not a digest."""
    return sorted(_scan_blobs(layout.blobs), key=lambda info: info.digest)


def _scan_blobs(blobs: Path) -> Iterator[BlobInfo]:
    if not blobs.is_dir():
        return
    for algorithm in os.scandir(blobs):
        if algorithm.is_dir(follow_symlinks=False):
            for entry in os.scandir(algorithm):
                digest = f"{algorithm.name}:{entry.name}"
                try:
                    split_digest(digest)
                    yield blob_info(Path(entry.path), digest)
                except (InvalidArgument, NotFound):
                    continue


def create_ingest(directory: Path, ref: str, total: int) -> IngestStatus:
    """Record a new ingest, or an old one that starts over; `total` 0 is not recorded."""
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    now = timestamps.now_ns()
    _replace_text(directory / "ref", ref)
    write_time(directory / "startedat", now)
    write_time(directory / "updatedat", now)
    if total > 0:
        _replace_text(directory / "total", str(total))
    return IngestStatus(ref=ref, offset=0, total=total, started_at_ns=now, updated_at_ns=now)


def read_ingest(directory: Path) -> IngestStatus:
    """Return the status of an ingest. Raise FileNotFoundError or ValueError if its record is missing or unreadable.

    The last write may be later than the record says, which is written when a writer closes.
    """
    ref = (directory / "ref").read_text()
    data = (directory / "data").stat()
    started = _read_time(directory / "startedat")
    updated = max(_read_time(directory / "updatedat"), data.st_mtime_ns)
    return IngestStatus(
        ref=ref, offset=data.st_size, total=_read_total(directory), started_at_ns=started, updated_at_ns=updated
    )


def resumable(directory: Path, ref: str, total: int) -> IngestStatus | None:
    """Return the ingest to resume; None if it is new or broken, or had another total."""
    try:
        status = read_ingest(directory)
    except (OSError, ValueError):
        return None
    differs = total > 0 and status.total > 0 and total != status.total
    return None if differs or status.ref != ref else status


def ingest_statuses(layout: Layout) -> list[IngestStatus]:
    """Return every readable ingest, sorted by ref. Leave out those that end or break meanwhile."""
    found = []
    if layout.ingests.is_dir():
        for entry in os.scandir(layout.ingests):
            try:
                found.append(read_ingest(Path(entry.path)))
            except (OSError, ValueError):
                continue
    return sorted(found, key=lambda status: status.ref)


def remove_unreadable_ingests(layout: Layout) -> None:
    """Remove what `ingest_statuses` leaves out; a writer would start such an ingest over anyway."""
    if layout.ingests.is_dir():
        for entry in os.scandir(layout.ingests):
            try:
                read_ingest(Path(entry.path))
            except (FileNotFoundError, NotADirectoryError, ValueError):
                shutil.rmtree(entry.path, ignore_errors=True)


def remove_ingest(directory: Path, ref: str) -> None:
    """Remove an ingest with its data. Raise NotFound where there is none.

    It is renamed away first, so that a crash leaves it whole or gone; what a crash kept from being deleted goes with
    the next removal.
    """
    removed = directory.parent.parent / "removed"
    removed.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        directory.rename(removed / f"{directory.name}.{timestamps.now_ns()}")
    except FileNotFoundError:
        raise NotFound(f"reference {ref}") from None
    for entry in os.scandir(removed):
        shutil.rmtree(entry.path, ignore_errors=True)


def write_time(path: Path, ns: int) -> None:
    """Record a time as RFC 3339 text, whole or not at all."""
    _replace_text(path, timestamps.format_rfc3339(ns))


def make_durable_directory(directory: Path) -> None:
    """Make a directory that is still there after a power cut."""
    if not directory.is_dir():
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        for ancestor in (directory.parent, directory.parent.parent):
            sync_directory(ancestor)


def sync_directory(directory: Path) -> None:
    """Write a directory's entries to disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read_time(path: Path) -> int:
    return timestamps.parse_rfc3339(path.read_text().strip())


def _read_total(directory: Path) -> int:
    try:
        return int((directory / "total").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
