"""Reading an image archive to its end: its files go to the content store, its JSON documents are kept (facts/core 14).

JSON is read up to 20 MiB. Nothing but the content store is written, whatever the archive's names are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import anyio.to_thread
import msgspec

from aiocontainerd.distribution import blobs
from aiocontainerd.distribution.tar_stream import Entry, TarStream
from aiocontainerd.errors import AlreadyExists, InvalidArgument

if TYPE_CHECKING:
    from aiocontainerd.interfaces.content import ContentStore

MAX_JSON_BYTES = 20 << 20
_DOCUMENTS = ("oci-layout", "index.json", "manifest.json")
_MAX_LINKS = 16


class Stored(msgspec.Struct, frozen=True):
    """A file of the archive as it is in the content store, with its first bytes."""

    digest: str
    size: int
    start: bytes


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON documents of an archive, its files as stored, its links."""

    documents: Mapping[str, bytes]
    files: Mapping[str, Stored]
    links: Mapping[str, str]

    def find(self, path: str) -> Stored:
        """Return the file behind a path, through links. Raises InvalidArgument naming the missing path."""
        at = path
        for _ in range(_MAX_LINKS):
            if at in self.files:
                return self.files[at]
            if at not in self.links:
                break
            at = self.links[at]
        raise InvalidArgument(f'archive: manifest.json names "{path}", which is not in it')


class ArchiveReader:
    """Reads an archive to its end and stores its files."""

    def __init__(self, content: ContentStore, stream: TarStream) -> None:
        self._content = content
        self._stream = stream

    async def read(self) -> Contents:
        documents: dict[str, bytes] = {}
        files: dict[str, Stored] = {}
        links: dict[str, str] = {}
        while (entry := await anyio.to_thread.run_sync(self._stream.next)) is not None:
            if entry.kind == "link":
                links[entry.name] = entry.link
            elif entry.kind == "file" and entry.name in _DOCUMENTS:
                documents[entry.name] = await self._document(entry)
            elif entry.kind == "file":
                files[entry.name] = await self._store(entry)
        return Contents(documents=documents, files=files, links=links)

    async def _document(self, entry: Entry) -> bytes:
        if entry.size > MAX_JSON_BYTES:
            raise InvalidArgument(f"archive: {entry.name} has {entry.size} bytes, more than {MAX_JSON_BYTES}")
        parts: list[bytes] = []
        while data := await anyio.to_thread.run_sync(self._stream.read):
            parts.append(data)
        return b"".join(parts)

    async def _store(self, entry: Entry) -> Stored:
        ref, hashed, start = f"tar-{entry.name}", hashlib.sha256(), b""
        try:
            async with await blobs.writer(self._content, ref, total=entry.size) as writer:
                await writer.truncate()
                while data := await anyio.to_thread.run_sync(self._stream.read):
                    start = start or data[:8]
                    await anyio.to_thread.run_sync(hashed.update, data)
                    await writer.write(data)
                digest = f"sha256:{hashed.hexdigest()}"
                _check_named(entry, digest)
                await writer.commit(entry.size, digest)
        except AlreadyExists:
            pass
        except BaseException:
            await blobs.discard(self._content, ref)
            raise
        return Stored(f"sha256:{hashed.hexdigest()}", entry.size, start)


def _check_named(entry: Entry, digest: str) -> None:
    """Raise InvalidArgument where the name of a blob is a digest that its bytes do not have."""
    if entry.name.startswith("blobs/sha256/") and entry.name != digest.replace(":", "/").replace("sha", "blobs/sha", 1):
        raise InvalidArgument(f"archive: {entry.name} has digest {digest}; the archive is damaged")
