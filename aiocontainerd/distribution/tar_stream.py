"""Reading tar headers of an image archive: bytes in, entries out, bounded (facts/security 2.4).

Only names, kinds, sizes and links count here; nothing is ever written by an archive's names.
"""

from __future__ import annotations

import gzip
import posixpath
from typing import IO, cast

import msgspec

from aiocontainerd.errors import InvalidArgument, Unimplemented

BLOCK = 512
MAX_EXTENSION_BYTES = 1 << 20
MAX_PATH_BYTES = 4096
READ_BYTES = 1 << 20
_REGULAR = frozenset(b"0\x007")
_SKIPPED = frozenset(b"g")


class Entry(msgspec.Struct, frozen=True):
    """One entry: its clean relative name, its kind (`file`, `link`, `other`), size in bytes, clean target of a link."""

    name: str
    kind: str
    size: int
    link: str = ""


class TarStream:
    """Reads the entries of a tar from start to end. Blocking: used in a worker thread."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = _inflated(source)
        self._left = 0
        self._padding = 0

    def next(self) -> Entry | None:
        """Skip the rest of the current entry and return the next; None at the end. Raises InvalidArgument."""
        self._skip()
        extended: dict[str, str] = {}
        while (header := self._header()) is not None:
            kind, size = header[156], _number(header[124:136], "size")
            if kind in b"xLK":
                extended.update(self._extension(kind, size))
            elif kind in _SKIPPED:
                self._take(size)
                self._skip()
            else:
                return self._entry(header, kind, size, extended)
        return None

    def read(self) -> bytes:
        """Return up to a megabyte of the current entry, b"" at its end."""
        data = self._exactly(min(self._left, READ_BYTES))
        self._left -= len(data)
        return data

    def _entry(self, header: bytes, kind: int, size: int, extended: dict[str, str]) -> Entry:
        size = int(extended["size"]) if extended.get("size", "").isdecimal() else size
        name = clean(extended.get("path") or _name(header))
        link = extended.get("linkpath") or _text(header[157:257])
        if kind == ord("2"):
            return Entry(name, "link", 0, clean(posixpath.join(posixpath.dirname(name), link)))
        if kind == ord("1"):
            return Entry(name, "link", 0, clean(link))
        self._take(size)
        return Entry(name, "file" if kind in _REGULAR else "other", size)

    def _extension(self, kind: int, size: int) -> dict[str, str]:
        if size > MAX_EXTENSION_BYTES:
            raise InvalidArgument(f"archive: extended header of {size} bytes")
        self._take(size)
        data = self._exactly(size)
        self._left = 0
        self._skip()
        if kind == ord("x"):
            return _pax(data)
        return {"path" if kind == ord("L") else "linkpath": _text(data)}

    def _header(self) -> bytes | None:
        header = self._source.read(BLOCK)
        if len(header) < BLOCK or header.count(0) == BLOCK:
            if header and len(header) < BLOCK:
                raise InvalidArgument("archive: ends in the middle of a header")
            return None
        total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
        if total != _number(header[148:156], "checksum"):
            raise InvalidArgument("unrecognized image format: not a tar archive")
        return header

    def _take(self, size: int) -> None:
        self._left, self._padding = size, -size % BLOCK

    def _skip(self) -> None:
        while self._left:
            self.read()
        self._exactly(self._padding)
        self._padding = 0

    def _exactly(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            data = self._source.read(size)
            if not data:
                raise InvalidArgument("archive: ends in the middle of an entry")
            parts.append(data)
            size -= len(data)
        return b"".join(parts)


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
    if peeked.start.startswith(b"\x28\xb5\x2f\xfd"):
        try:
            import zstandard
        except ImportError as error:
            raise Unimplemented("archive: compressed with zstd, which needs the package zstandard") from error
        return cast("IO[bytes]", zstandard.ZstdDecompressor().stream_reader(cast("IO[bytes]", peeked)))
    return cast("IO[bytes]", peeked)


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


def _number(field: bytes, what: str) -> int:
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if field[0] == 0xFF or value > 1 << 62:
            raise InvalidArgument(f"archive: bad {what}")
        return value
    digits = field.strip(b" \0")
    if any(digit not in b"01234567" for digit in digits):
        raise InvalidArgument("unrecognized image format: not a tar archive")
    return int(digits or b"0", 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="replace")


def _name(header: bytes) -> str:
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    name = _text(header[:100])
    return f"{prefix}/{name}" if prefix else name


def _pax(data: bytes) -> dict[str, str]:
    records: dict[str, str] = {}
    while data:
        length, space, _ = data.partition(b" ")
        if not space or not length.isdigit() or not len(length) < int(length) <= len(data):
            raise InvalidArgument("archive: malformed extended header")
        record = data[len(length) + 1 : int(length) - 1]
        key, _, value = record.partition(b"=")
        records[key.decode(errors="replace")] = value.decode(errors="replace")
        data = data[int(length) :]
    return records
