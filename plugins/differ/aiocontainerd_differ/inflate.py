"""Inflate a blob: yield its uncompressed stream in bounded chunks, and measure digest and size.

The first bytes tell the compression (facts/core 8). isal and zstandard inflate without the GIL.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator

from aiocontainerd.oci.zstd_frames import MAX_WINDOW_BYTES, FrameTracker, is_zstd

INPUT_BYTES = 128 << 10
CHUNK_BYTES = 512 << 10
_GZIP_MAGIC = b"\x1f\x8b\x08"


class BrokenStream(Exception):
    """Raised for a compressed stream that is damaged or ends early. The text names the format."""


def inflated(fd: int, *, sniff: bool = True) -> Iterator[bytes]:
    """Yield the uncompressed bytes of `fd`, a file or a pipe, in non-empty chunks. Without `sniff`, inflate nothing.

    Raise BrokenStream.
    """
    head = _read_full(fd, INPUT_BYTES)
    if not sniff:
        return _plain(fd, head)
    if head.startswith(_GZIP_MAGIC):
        return _gunzip(fd, head)
    if is_zstd(head):
        return _unzstd(fd, head)
    return _plain(fd, head)


class Measured:
    """Passes chunks on, and keeps their digest and size."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._hasher = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> str:
        """Return the sha256 digest of what was passed on."""
        return f"sha256:{self._hasher.hexdigest()}"

    def next_chunk(self) -> bytes:
        """Return the next chunk, b"" at the end."""
        chunk = next(self._chunks, b"")
        self._hasher.update(chunk)
        self.size += len(chunk)
        return chunk


def _read_full(fd: int, size: int) -> bytes:
    """Read `size` bytes, fewer only at the end; a pipe may need several reads."""
    parts = []
    while size and (part := os.read(fd, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _plain(fd: int, head: bytes) -> Iterator[bytes]:
    while head:
        yield head
        head = os.read(fd, CHUNK_BYTES)


def _gunzip(fd: int, data: bytes) -> Iterator[bytes]:
    """Yield the data of all members of a gzip stream. Skip NUL padding after the last one."""
    from isal import igzip_lib, isal_zlib

    def start() -> igzip_lib.IgzipDecompressor:
        return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)

    # the stubs have the errors as instances
    failures: tuple[type[Exception], ...] = (isal_zlib.error, igzip_lib.error, EOFError)  # type: ignore[assignment]
    decoder = start()
    try:
        while True:
            chunk = decoder.decompress(data, CHUNK_BYTES)
            if chunk:
                yield chunk
            if decoder.eof:
                data = _next_member(decoder.unused_data, fd)
                if not data:
                    return
                decoder = start()
            else:
                data = os.read(fd, INPUT_BYTES) if decoder.needs_input else b""
                if decoder.needs_input and not data:
                    raise BrokenStream("gzip stream ends early")
    except failures as error:
        raise BrokenStream(f"gzip stream is damaged: {error}") from error


def _next_member(unused: bytes, fd: int) -> bytes:
    while not (rest := unused.lstrip(b"\0")):
        unused = os.read(fd, INPUT_BYTES)
        if not unused:
            return b""
    if len(rest) < len(_GZIP_MAGIC):
        rest += os.read(fd, INPUT_BYTES)
    if not rest.startswith(_GZIP_MAGIC):
        raise BrokenStream("gzip stream is followed by bytes that are no gzip member")
    return rest


class _Followed:
    """A source for zstandard's reader: the bytes that were read already, then the rest of the file."""

    def __init__(self, fd: int, head: bytes) -> None:
        self._fd = fd
        self._head = head
        self.frames = FrameTracker()

    def read(self, size: int) -> bytes:
        data, self._head = self._head[:size] or os.read(self._fd, size), self._head[size:]
        self.frames.feed(data)
        return data


def _unzstd(fd: int, head: bytes) -> Iterator[bytes]:
    """Yield the data of all frames. The decoder takes any end of the file for the end of the stream: check it."""
    import zstandard

    decoder = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    source = _Followed(fd, head)  # has `read`, which is all that is called
    reader = decoder.stream_reader(source, read_size=INPUT_BYTES, read_across_frames=True)  # type: ignore[arg-type]
    read: Callable[[int], bytes] = reader.read
    try:
        while chunk := read(CHUNK_BYTES):
            yield chunk
    except zstandard.ZstdError as error:
        raise BrokenStream(f"zstd stream is damaged: {error}") from error
    if not source.frames.complete:
        raise BrokenStream("zstd stream ends early")
