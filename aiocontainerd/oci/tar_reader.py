"""Read a tar stream from chunks of bytes: give headers, write data straight from the chunk to a descriptor.

`next_chunk` gives non-empty bytes and then b"" for ever; whatever it raises passes through. As Go's archive/tar does,
an archive may end without zero blocks, or in the padding of its last entry, and what follows the end is ignored.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from aiocontainerd.oci import tar_sparse
from aiocontainerd.oci.tar_header import (
    BLOCK,
    GNU_SPARSE,
    MAX_SPECIAL,
    REGULAR,
    WITHOUT_DATA,
    Header,
    InvalidArchive,
    is_end,
    pax_records,
    show,
    verify_checksum,
)

_ZEROES = 1 << 16


class TarReader:
    """Call `next_header`, then `copy_data` or `read` if its data is wanted, and so on until None."""

    def __init__(self, next_chunk: Callable[[], bytes]) -> None:
        self._next_chunk = next_chunk
        self._chunk = b""
        self._view = memoryview(b"")
        self._at = 0
        self._left = 0
        """Bytes of the entry's data that are still in the stream."""
        self._padding = 0
        self._runs: list[tuple[int, int]] = []
        """Of a file with holes: bytes of a hole and of data, the next run last."""

    def next_header(self) -> Header | None:
        """Return the next entry's header, long names and PAX records included; None at the end. Skip unread data."""
        name = link = b""
        records: dict[bytes, bytes] = {}
        while (block := self._block()) is not None:
            header = Header(block)
            match header.type:
                case b"L":
                    name = self._special(header).partition(b"\0")[0]
                case b"K":
                    link = self._special(header).partition(b"\0")[0]
                case b"x":
                    records = pax_records(self._special(header))
                case b"g":  # an entry of its own in Go: what came before it is not for the next one
                    self._special(header)
                    name = link = b""
                    records = {}
                case _:
                    if records:
                        header.override(records)
                    header.name = name or header.name
                    header.link = link or header.link
                    return self._finished(header, block)
        return None

    def _finished(self, header: Header, block: bytes) -> Header:
        version = tar_sparse.pax_version(header.sparse) if header.sparse else ""
        if version:
            header.name = tar_sparse.pax_name(header.sparse) or header.name
        header.finish()
        self._take(header.size)
        if header.type == GNU_SPARSE:
            header.type = REGULAR
            header.size, pieces = tar_sparse.map_of_header(block, lambda: self._gather(BLOCK))
            self._set_runs(header, pieces)
        elif version:
            in_records = version == "0"
            header.size = tar_sparse.pax_size(header.sparse, header.size)
            self._set_runs(
                header,
                tar_sparse.map_of_records(header.sparse) if in_records else tar_sparse.map_of_data(self._block_of_data),
            )
        return header

    def _set_runs(self, header: Header, pieces: list[tuple[int, int]]) -> None:
        if header.type in WITHOUT_DATA:
            raise InvalidArchive(f"sparse map of {show(header.name)}, which is no file")
        self._runs = tar_sparse.runs(pieces, header.size)[::-1]
        data = sum(length for _, length in pieces)
        if data != self._left:
            raise InvalidArchive(f"sparse file {show(header.name)} with {self._left} bytes of data, not {data}")

    def _block_of_data(self) -> bytes:
        if self._left < BLOCK:
            raise InvalidArchive("sparse file that ends in its map")
        self._left -= BLOCK
        return self._gather(BLOCK)

    def copy_data(self, fd: int) -> None:
        """Write the current entry's data to `fd`, a new file. Holes stay holes."""
        if not self._runs:
            self._copy(fd, self._left)
            return
        size = 0
        while self._runs:
            hole, data = self._runs.pop()
            if hole:
                os.lseek(fd, hole, os.SEEK_CUR)
            self._copy(fd, data)
            size += hole + data
        os.ftruncate(fd, size)

    def _copy(self, fd: int, left: int) -> None:
        while left:
            if self._at >= len(self._chunk):
                self._refill()
            done = os.write(fd, self._view[self._at : self._at + left])
            self._at += done
            left -= done
            self._left -= done

    def read(self, limit: int) -> bytes:
        """Return up to `limit` bytes of the current entry, b"" at its end. Holes are zeroes."""
        while self._runs:
            hole, data = self._runs.pop()
            if hole:
                part = min(hole, limit, _ZEROES)
                self._runs.append((hole - part, data))
                return bytes(part)
            if data:
                found = self._part(min(data, limit))
                self._runs.append((0, data - len(found)))
                return found
        return self._part(min(self._left, limit)) if self._left else b""

    def _part(self, limit: int) -> bytes:
        if self._at >= len(self._chunk):
            self._refill()
        part = self._chunk[self._at : self._at + limit]
        self._at += len(part)
        self._left -= len(part)
        return part

    def drain(self) -> None:
        """Read what follows the archive to the end of the stream: it belongs to the layer's digest."""
        self._view = memoryview(b"")
        while self._next_chunk():
            pass

    def _block(self) -> bytes | None:
        """Return the next header block, its checksum verified; None at the end of the archive or of the stream."""
        if self._left or self._padding:
            self._skip(self._left)
            self._skip(self._padding, optional=True)
            self._left = self._padding = 0
        self._runs = []
        at = self._at
        block = self._chunk[at : at + BLOCK]
        if len(block) == BLOCK:
            self._at = at + BLOCK
        else:
            block = self._gather(BLOCK, optional=True)
            if not block:
                return None
        if is_end(block):
            second = self._gather(BLOCK, optional=True)
            if second and not is_end(second):
                raise InvalidArchive("tar header after a zero block")
            return None
        verify_checksum(block)
        return block

    def _special(self, header: Header) -> bytes:
        if not 0 <= header.size <= MAX_SPECIAL:
            raise InvalidArchive(f"special tar header of {header.size} bytes")
        self._take(header.size)
        self._left = 0
        return self._gather(header.size)

    def _take(self, size: int) -> None:
        self._left, self._padding = size, -size % BLOCK

    def _gather(self, size: int, *, optional: bool = False) -> bytes:
        """Return exactly `size` bytes; with `optional`, b"" if the stream ends here."""
        parts = []
        left = size
        while left:
            if self._at >= len(self._chunk):
                if optional and left == size:
                    self._load()
                    if not self._chunk:
                        return b""
                else:
                    self._refill()
            part = self._chunk[self._at : self._at + left]
            self._at += len(part)
            left -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _skip(self, size: int, *, optional: bool = False) -> None:
        """Pass over bytes; with `optional`, the stream may end before."""
        while size:
            if self._at >= len(self._chunk):
                self._load()
                if not self._chunk:
                    if optional:
                        return
                    raise InvalidArchive("unexpected end of the tar stream")
            step = min(size, len(self._chunk) - self._at)
            self._at += step
            size -= step

    def _refill(self) -> None:
        self._load()
        if not self._chunk:
            raise InvalidArchive("unexpected end of the tar stream")

    def _load(self) -> None:
        self._chunk = self._next_chunk()
        self._view = memoryview(self._chunk)
        self._at = 0
