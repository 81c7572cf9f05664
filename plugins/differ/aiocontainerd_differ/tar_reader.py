"""Read a tar stream from chunks of bytes: give headers, write data straight from the chunk to a descriptor.

`next_chunk` gives non-empty bytes and then b"" for ever; whatever it raises passes through.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from aiocontainerd_differ.tar_header import (
    BLOCK,
    GNU_SPARSE,
    MAX_SPECIAL,
    Header,
    InvalidArchive,
    is_end,
    pax_records,
    show,
    verify_checksum,
)


class TarReader:
    """Call `next_header`, then `copy_data` if its data is wanted, and so on until None."""

    def __init__(self, next_chunk: Callable[[], bytes]) -> None:
        self._next_chunk = next_chunk
        self._chunk = b""
        self._view = memoryview(b"")
        self._at = 0
        self._left = 0
        self._padding = 0

    def next_header(self) -> Header | None:
        """Return the next entry's header, long names and PAX records included; None at the end. Skip unread data."""
        name = link = b""
        records: dict[bytes, bytes] = {}
        while True:
            if self._left or self._padding:
                self._skip(self._left + self._padding)
                self._left = self._padding = 0
            block = self._block()
            if block is None:
                return None
            header = Header(block)
            match header.type:
                case b"L":
                    name = self._special(header).rstrip(b"\0")
                case b"K":
                    link = self._special(header).rstrip(b"\0")
                case b"x":
                    records = pax_records(self._special(header))
                case b"g":
                    self._special(header)
                case _:
                    return self._finish(header, name, link, records)

    def _finish(self, header: Header, name: bytes, link: bytes, records: dict[bytes, bytes]) -> Header:
        if name:
            header.name = name
        if link:
            header.link = link
        if records:
            header.override(records)
        if header.type == GNU_SPARSE:
            raise InvalidArchive(f"sparse file {show(header.name)}")
        header.check()
        self._left = header.size
        self._padding = -header.size % BLOCK
        return header

    def copy_data(self, fd: int) -> None:
        """Write the current entry's data to `fd`."""
        left = self._left
        while left:
            if self._at >= len(self._chunk):
                self._refill()
            part = self._view[self._at : self._at + left]
            done = os.write(fd, part)
            self._at += done
            left -= done
            self._left = left

    def drain(self) -> None:
        """Read what follows the archive to the end of the stream: it belongs to the layer's digest."""
        self._view = memoryview(b"")
        while self._next_chunk():
            pass

    def _block(self) -> bytes | None:
        """Return the next header block, its checksum verified; None at the end of the archive or of the stream."""
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
        data = self._gather(header.size)
        self._skip(-header.size % BLOCK)
        return data

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

    def _skip(self, size: int) -> None:
        while size:
            if self._at >= len(self._chunk):
                self._refill()
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
