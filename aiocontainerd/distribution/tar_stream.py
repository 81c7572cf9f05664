"""Reading the entries of an image archive, compressed or not (facts/security 2.4).

Only names, kinds, sizes and links count here; nothing is ever written by an archive's names.
"""

from __future__ import annotations

import gzip
import posixpath
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

import msgspec

from aiocontainerd.errors import InvalidArgument, Unimplemented
from aiocontainerd.oci.tar_header import LINK, REGULAR, SYMLINK, Header, InvalidArchive
from aiocontainerd.oci.tar_reader import TarReader
from aiocontainerd.oci.zstd_frames import MAX_WINDOW_BYTES, FrameTracker, is_zstd

MAX_PATH_BYTES = 4096
READ_BYTES = 1 << 20


class Entry(msgspec.Struct, frozen=True):
    """One entry: its clean relative name, its kind (`file`, `link`, `other`), size in bytes, clean target of a link."""

    name: str
    kind: str
    size: int
    link: str = ""


class TarStream:
    """Reads the entries of a tar from start to end. Blocking: used in a worker thread."""

    def __init__(self, source: IO[bytes]) -> None:
        inflated = _inflated(source)
        self._compressed = not isinstance(inflated, _Peeked)
        self._reader = TarReader(lambda: inflated.read(READ_BYTES))
        self._begun = False

    def next(self) -> Entry | None:
        """Skip the rest of the current entry and return the next; None at the end. Raises InvalidArgument.

        A compressed archive is read on to its end, where the checksum is.
        """
        with _told("archive" if self._begun else "unrecognized image format"):
            header = self._reader.next_header()
            if header is None and self._compressed:
                self._reader.drain()
        self._begun = True
        return None if header is None else _entry(header)

    def read(self) -> bytes:
        """Return up to a megabyte of the current entry, b"" at its end. Raises InvalidArgument."""
        with _told("archive"):
            return self._reader.read(READ_BYTES)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn what is wrong with a tar or its compression into InvalidArgument."""
    try:
        yield
    except (InvalidArchive, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidArgument(f"{what}: {error}") from error


def _entry(header: Header) -> Entry:
    name = clean(_text(header.name))
    if header.type == SYMLINK:
        return Entry(name, "link", 0, clean(posixpath.join(posixpath.dirname(name), _text(header.link))))
    if header.type == LINK:
        return Entry(name, "link", 0, clean(_text(header.link)))
    return Entry(name, "file" if header.type == REGULAR else "other", header.size)


def clean(name: str) -> str:
    """Return the name relative to the archive's root. Raises InvalidArgument for one that leaves it or is too long."""
    cleaned = posixpath.normpath("/" + name.lstrip("/") if name.startswith("/") else name).lstrip("/")
    if cleaned == ".." or cleaned.startswith("../") or len(name.encode(errors="replace")) > MAX_PATH_BYTES:
        raise InvalidArgument(f'archive: entry name "{name[:128]}" leaves the archive')
    return cleaned


def _inflated(source: IO[bytes]) -> IO[bytes]:
    """Return `source` without its outer gzip or zstd compression, if it has one."""
    peeked = _Peeked(source)
    if peeked.start.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=cast("IO[bytes]", peeked)))
    return cast("IO[bytes]", _Zstd(peeked) if is_zstd(peeked.start) else peeked)


class _Zstd:
    """Reads all frames of a stream. Raises EOFError where it ends within one, which the decoder does not notice."""

    def __init__(self, source: _Peeked) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise Unimplemented("archive: compressed with zstd, which needs the package zstandard") from error
        frames = FrameTracker()

        class Followed:
            def read(self, size: int) -> bytes:
                data = source.read(size)
                frames.feed(data)
                return data

        decoder = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
        self._frames = frames
        self._failure = zstandard.ZstdError
        self._reader = decoder.stream_reader(cast("IO[bytes]", Followed()), read_across_frames=True)

    def read(self, size: int) -> bytes:
        try:
            data = self._reader.read(size)
        except self._failure as error:
            raise InvalidArgument(f"archive: {error}") from error
        if not data and not self._frames.complete:
            raise EOFError("zstd stream ends early")
        return data


class _Peeked:
    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.start = source.read(4)
        self._rest = self.start

    def read(self, size: int = -1) -> bytes:
        if not self._rest:
            return self._source.read(size)
        taken, self._rest = (self._rest, b"") if size < 0 else (self._rest[:size], self._rest[size:])
        return taken + self._source.read(size - len(taken) if size >= 0 else -1)


def _text(name: bytes) -> str:
    return name.decode(errors="replace")
