"""Blobs as files: an open blob's own file, or a copy without a name where the store is on the other side of a wire."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread

from aiocontainerd.errors import DataLoss, Unimplemented
from aiocontainerd.interfaces.content import Reader

CHUNK_BYTES = 4 << 20


@asynccontextmanager
async def as_file(reader: Reader, directory: str | Path | None = None) -> AsyncIterator[int]:
    """A descriptor to read the blob from, at offset 0 and seekable, until the block ends.

    `directory` is where a copy is made if one is needed, the one for temporary files unless given. Raises OSError
    where there is no room, DataLoss where the store ends early.
    """
    try:
        descriptor = reader.fileno()
    except Unimplemented:
        descriptor = -1
    if descriptor >= 0:
        yield descriptor
        return
    descriptor = await anyio.to_thread.run_sync(_nameless, directory)
    try:
        await _fill(descriptor, reader)
        yield descriptor
    finally:
        os.close(descriptor)


@asynccontextmanager
async def spooled(stream: AsyncIterator[bytes], directory: str | Path | None = None) -> AsyncIterator[tuple[int, int]]:
    """What a stream gives, as a descriptor at offset 0 and its size in bytes, until the block ends."""
    descriptor, size = await anyio.to_thread.run_sync(_nameless, directory), 0
    try:
        async for data in stream:
            await anyio.to_thread.run_sync(_write_whole, descriptor, data)
            size += len(data)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor, size
    finally:
        os.close(descriptor)


async def _fill(descriptor: int, reader: Reader) -> None:
    at = 0
    while at < reader.size:
        data = await reader.read(CHUNK_BYTES, at)
        if not data:
            raise DataLoss(f"blob ended after {at} of {reader.size} bytes")
        await anyio.to_thread.run_sync(_write_whole, descriptor, data)
        at += len(data)
    os.lseek(descriptor, 0, os.SEEK_SET)


def _nameless(directory: str | Path | None) -> int:
    with tempfile.TemporaryFile(dir=directory, prefix="blob-") as file:
        return os.dup(file.fileno())


def _write_whole(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
