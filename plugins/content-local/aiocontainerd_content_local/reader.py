"""Read an open blob."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

import anyio.to_thread

from aiocontainerd.errors import NotFound

_INLINE_BYTES = 64 << 10


class LocalReader:
    """A blob's open file. Small reads that the page cache can answer are not worth a thread."""

    def __init__(self, path: Path, digest: str) -> None:
        self._fd = _opened(path, digest)
        self._size = os.fstat(self._fd).st_size
        self._digest = digest

    def __repr__(self) -> str:
        return f"<LocalReader {self._digest} {'closed' if self._fd < 0 else 'open'}>"

    @property
    def size(self) -> int:
        """Return the size of the blob in bytes."""
        return self._size

    async def read(self, size: int, offset: int) -> bytes:
        """Return up to `size` bytes from `offset`; fewer only at the end."""
        wanted = max(0, min(size, self._size - offset))
        if wanted <= _INLINE_BYTES:
            cached = _read_cached(self._fd, wanted, offset)
            if cached is not None:
                return cached
        return await anyio.to_thread.run_sync(_read_whole, self._fd, wanted, offset)

    def fileno(self) -> int:
        """Return the descriptor of the file, valid until `close`."""
        return self._fd

    async def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def _opened(path: Path, digest: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"content digest {digest}") from None


def _read_cached(fd: int, size: int, offset: int) -> bytes | None:
    """Return the bytes if they are in memory, None if reading would wait for the disk."""
    buffer = bytearray(size)
    try:
        done = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError:
        return None
    return bytes(buffer) if done == size else None


def _read_whole(fd: int, size: int, offset: int) -> bytes:
    parts = []
    while size > 0 and (part := os.pread(fd, size, offset)):
        parts.append(part)
        size -= len(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
