"""Blobs as files: an open blob's own file, or a nameless copy where the store is on the other side of a wire."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import anyio
from aiofiles import tempfile

from aiocontainerd.errors import DataLoss, Unimplemented
from aiocontainerd.interfaces.content import Reader

CHUNK_BYTES = 4 << 20


@asynccontextmanager
async def as_file(reader: Reader, directory: str | Path | None = None) -> AsyncIterator[int]:
    """Give a descriptor to read the blob from, at offset 0 and seekable, until the block ends.

    A copy, where one is needed, is made in `directory`, by default the directory for temporary files. Raises OSError
    where there is no room, DataLoss where the store ends early.
    """
    descriptor = _own_file(reader)
    if descriptor is not None:
        yield descriptor
        return
    async with aclosing(_chunks(reader)) as chunks, spooled(chunks, directory) as (copy, _size):
        yield copy


def _own_file(reader: Reader) -> int | None:
    try:
        return reader.fileno()
    except Unimplemented:
        return None


@asynccontextmanager
async def spooled(stream: AsyncIterator[bytes], directory: str | Path | None = None) -> AsyncIterator[tuple[int, int]]:
    """Give the bytes of a stream as a descriptor at offset 0, and their number, until the block ends."""
    with anyio.CancelScope(shield=True):  # a file that is opened in a thread must be closed, too
        file = await tempfile.TemporaryFile(dir=directory, prefix="blob-")
    try:
        size = 0
        async for data in stream:
            size += await file.write(data)
        await file.seek(0)
        yield file.fileno(), size
    finally:
        with anyio.CancelScope(shield=True):
            await file.close()


async def _chunks(reader: Reader) -> AsyncGenerator[bytes, None]:
    at = 0
    while at < reader.size:
        data = await reader.read(CHUNK_BYTES, at)
        if not data:
            raise DataLoss(f"blob ended after {at} of {reader.size} bytes")
        yield data
        at += len(data)
