"""The Content service (facts/core 4)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import ClassVar

import anyio

from aiocontainerd import api
from aiocontainerd.errors import ContainerdError, OutOfRange
from aiocontainerd.gotext import quoted
from aiocontainerd.interfaces.content import BlobInfo, ContentStore, Reader
from aiocontainerd.serve.content_write import write_stream
from aiocontainerd.serve.requests import LIST_BATCH, converted, required
from aiocontainerd.wire.content import content_info_to_wire, ingest_status_to_wire
from aiocontainerd.wire.masks import mask_from_wire

READ_CHUNK_BYTES = 1 << 20
CLEANUP_TIMEOUT_S = 10.0


class ContentGrpc:
    """`containerd.services.content.v1.Content`."""

    service_name: ClassVar[str] = "containerd.services.content.v1.Content"

    def __init__(self, content: ContentStore) -> None:
        self._content = content

    async def info(self, request: api.content.InfoRequest) -> api.content.InfoResponse:
        """Return what is known of a blob."""
        return api.content.InfoResponse(info=content_info_to_wire(await self._content.info(request.digest)))

    async def update(self, request: api.content.UpdateRequest) -> api.content.UpdateResponse:
        """Change labels; size and times of the request are ignored."""
        given = required(request.info, "info")
        info = BlobInfo(digest=given.digest, size=0, created_at_ns=0, updated_at_ns=0, labels=given.labels)
        updated = await self._content.update(info, mask_from_wire(request.update_mask))
        return api.content.UpdateResponse(info=content_info_to_wire(updated))

    async def list(self, request: api.content.ListContentRequest) -> AsyncIterator[api.content.ListContentResponse]:
        """Send the blobs sorted by digest, a hundred in each message; no message if there are none."""
        batch: list[api.content.Info] = []
        async for info in self._content.walk(request.filters):
            batch.append(content_info_to_wire(info))
            if len(batch) == LIST_BATCH:
                yield api.content.ListContentResponse(info=batch)
                batch = []
        if batch:
            yield api.content.ListContentResponse(info=batch)

    async def delete(self, request: api.content.DeleteContentRequest) -> api.protobuf.Empty:
        """Unlink a blob from the namespace."""
        await self._content.delete(request.digest)
        return api.protobuf.Empty()

    async def read(self, request: api.content.ReadContentRequest) -> AsyncIterator[api.content.ReadContentResponse]:
        """Send the bytes from `offset`, at most 1 MiB in each message.

        Offsets of the responses count from the first byte sent.
        """
        reader = await self._content.reader(request.digest)
        try:
            start, size = read_range(request.offset, request.size, reader.size)
            sent = 0
            while sent < size:
                data = await reader.read(min(READ_CHUNK_BYTES, size - sent), start + sent)
                if not data:
                    return
                yield api.content.ReadContentResponse(offset=sent, data=data)
                sent += len(data)
        finally:
            await _close(reader)

    async def status(self, request: api.content.StatusRequest) -> api.content.StatusResponse:
        """Return what is known of an ingest."""
        try:
            status = await self._content.status(request.ref)
        except ContainerdError as error:
            raise type(error)(f"could not get status for ref {quoted(request.ref)}: {error.message}") from error
        return api.content.StatusResponse(status=ingest_status_to_wire(status))

    async def list_statuses(self, request: api.content.ListStatusesRequest) -> api.content.ListStatusesResponse:
        """Return every ingest that a filter matches."""
        found = await self._content.statuses(request.filters)
        return api.content.ListStatusesResponse(statuses=await converted(found, ingest_status_to_wire))

    def write(
        self, requests: AsyncIterator[api.content.WriteContentRequest]
    ) -> AsyncIterator[api.content.WriteContentResponse]:
        """Write one ingest: commit it, or leave it for later."""
        return write_stream(self._content, requests)

    async def abort(self, request: api.content.AbortRequest) -> api.protobuf.Empty:
        """Drop an ingest, even one that is being written."""
        await self._content.abort(request.ref)
        return api.protobuf.Empty()


def read_range(offset: int, size: int, length: int) -> tuple[int, int]:
    """Return the first byte to send of a blob of `length` bytes, and how many. Raises OutOfRange past its end."""
    start = max(offset, 0)
    if start > length:
        raise OutOfRange(f"read past object length {length} bytes", complete=True)
    rest = length - start
    return start, rest if size <= 0 or size > rest else size


async def _close(reader: Reader) -> None:
    with anyio.move_on_after(CLEANUP_TIMEOUT_S, shield=True):
        await reader.close()
