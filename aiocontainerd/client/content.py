"""Blobs and ingests of a daemon: `ContentStore` over the API (facts/core 4)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from types import MappingProxyType
from typing import Self

import anyio

from aiocontainerd import api, timestamps
from aiocontainerd.client.connection import Connection
from aiocontainerd.errors import ContainerdError, DataLoss, FailedPrecondition, Internal, Unimplemented
from aiocontainerd.interfaces.content import BlobInfo, IngestStatus
from aiocontainerd.rpc.grpc_client import GrpcCall
from aiocontainerd.wire.content import content_info_from_wire, ingest_status_from_wire
from aiocontainerd.wire.masks import mask_to_wire

_NONE: Mapping[str, str] = MappingProxyType({})
WRITE_BYTES = 1 << 20
"""Bytes of one Write message."""
CLOSE_TIMEOUT_S = 10.0
NOTHING = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""The digest of no bytes."""


class Content:
    """`ContentStore` over the API."""

    SERVICE = "containerd.services.content.v1.Content"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __repr__(self) -> str:
        return f"<Content {self._connection!r}>"

    async def info(self, digest: str) -> BlobInfo:
        """Return what is known of a blob. Raises NotFound."""
        c = api.content
        answer = await self._connection.call(self.SERVICE, "Info", c.InfoRequest(digest=digest), c.InfoResponse)
        return _info(answer.info)

    async def update(self, info: BlobInfo, paths: Sequence[str] = ()) -> BlobInfo:
        """Change labels: all of them, or those that `paths` name. Raises NotFound."""
        c = api.content
        request = c.UpdateRequest(
            info=c.Info(digest=info.digest, labels=dict(info.labels)), update_mask=mask_to_wire(paths)
        )
        return _info((await self._connection.call(self.SERVICE, "Update", request, c.UpdateResponse)).info)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncGenerator[BlobInfo, None]:
        """Yield every blob that a filter matches, sorted by digest."""
        c = api.content
        request = c.ListContentRequest(filters=list(filters))
        stream = self._connection.messages(self.SERVICE, "List", request, c.ListContentResponse)
        async with aclosing(stream) as messages:
            async for message in messages:
                for info in message.info:
                    yield content_info_from_wire(info)

    async def delete(self, digest: str) -> None:
        """Delete a blob. Raises NotFound."""
        request = api.content.DeleteContentRequest(digest=digest)
        await self._connection.call(self.SERVICE, "Delete", request, api.protobuf.Empty)

    async def reader(self, digest: str) -> BlobReader:
        """Open a blob; its bytes are fetched as they are read. Raises NotFound."""
        return BlobReader(self._connection, await self.info(digest))

    async def writer(self, ref: str, *, total: int = 0, expected: str = "") -> IngestWriter:
        """Open an ingest. Raises Unavailable where another holds it, AlreadyExists where `expected` is there."""
        writer = IngestWriter(self._connection, ref)
        await writer.open(total, expected)
        return writer

    async def status(self, ref: str) -> IngestStatus:
        """Return what is known of an ingest. Raises NotFound."""
        c = api.content
        answer = await self._connection.call(self.SERVICE, "Status", c.StatusRequest(ref=ref), c.StatusResponse)
        if answer.status is None:
            raise Internal(f"the daemon answered without the status of {ref}")
        return ingest_status_from_wire(answer.status)

    async def statuses(self, filters: Sequence[str] = ()) -> list[IngestStatus]:
        """Return every ingest that a filter matches."""
        c = api.content
        request = c.ListStatusesRequest(filters=list(filters))
        answer = await self._connection.call(self.SERVICE, "ListStatuses", request, c.ListStatusesResponse)
        return [ingest_status_from_wire(message) for message in answer.statuses]

    async def abort(self, ref: str) -> None:
        """Drop an ingest. Raises NotFound."""
        await self._connection.call(self.SERVICE, "Abort", api.content.AbortRequest(ref=ref), api.protobuf.Empty)


class BlobReader:
    """A blob behind the API. It is in no file here: `distribution.spool.as_file` makes one where that is needed."""

    def __init__(self, connection: Connection, info: BlobInfo) -> None:
        self._connection = connection
        self._info = info

    def __repr__(self) -> str:
        return f"<BlobReader {self._info.digest}>"

    @property
    def size(self) -> int:
        return self._info.size

    async def read(self, size: int, offset: int) -> bytes:
        """Return up to `size` bytes from `offset`; fewer only at the end."""
        wanted = min(size, self.size - offset)
        if wanted <= 0:
            return b""
        c = api.content
        request = c.ReadContentRequest(digest=self._info.digest, offset=offset, size=wanted)
        stream = self._connection.messages(Content.SERVICE, "Read", request, c.ReadContentResponse)
        async with aclosing(stream) as messages:
            return b"".join([message.data async for message in messages])

    def fileno(self) -> int:
        """Raise Unimplemented, as the blob is in no file here."""
        raise Unimplemented(f"blob {self._info.digest} is in no file on this side of the API")

    async def close(self) -> None:
        """Do nothing: a reader holds nothing between two reads."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class IngestWriter:
    """An open ingest: one Write stream, which holds the lock until `close`."""

    def __init__(self, connection: Connection, ref: str) -> None:
        self._connection = connection
        self._ref = ref
        self._stack = AsyncExitStack()
        self._call: GrpcCall | None = None
        self._offset = 0
        self._digest = ""

    def __repr__(self) -> str:
        return f"<IngestWriter {self._ref} {'closed' if self._call is None else f'at {self._offset}'}>"

    async def open(self, total: int, expected: str) -> None:
        """Take the lock and learn what is there. Raises as `Content.writer`."""
        c = api.content
        try:
            self._call = await self._stack.enter_async_context(self._connection.stream(Content.SERVICE, "Write"))
            stat = c.WriteContentRequest(action=c.WriteAction.STAT, ref=self._ref, total=total, expected=expected)
            answer = await self._step(stat)
        except BaseException:
            await self.close()
            raise
        self._offset, self._digest = answer.offset, answer.digest

    @property
    def offset(self) -> int:
        self._opened()
        return self._offset

    def digest(self) -> str:
        """Return the digest of the bytes so far, as the store told it last."""
        self._opened()
        return self._digest if self._offset else NOTHING

    async def write(self, data: bytes) -> None:
        """Append `data`. Raises DataLoss where the store took less."""
        for start in range(0, len(data), WRITE_BYTES):
            await self._write_part(data[start : start + WRITE_BYTES])

    async def _write_part(self, part: bytes) -> None:
        c = api.content
        answer = await self._step(c.WriteContentRequest(action=c.WriteAction.WRITE, offset=self._offset, data=part))
        wanted = self._offset + len(part)
        if answer.offset != wanted:
            raise DataLoss(f"ingest {self._ref}: the daemon is at {answer.offset} of {wanted} bytes")
        self._offset, self._digest = answer.offset, answer.digest

    async def truncate(self) -> None:
        """Start again. The first bytes written, or a commit without any, drop what is there."""
        self._opened()
        self._offset = 0

    async def status(self) -> IngestStatus:
        """Return what is known of the ingest. Raises NotFound."""
        return await Content(self._connection).status(self._ref)

    async def commit(self, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> BlobInfo:
        """Make the bytes a blob. Raises FailedPrecondition for a wrong size or digest, AlreadyExists."""
        c, given = api.content, labels or _NONE
        request = c.WriteContentRequest(
            action=c.WriteAction.COMMIT, total=size, offset=self._offset, expected=expected, labels=dict(given)
        )
        answer = await self._step(request)
        if size and answer.offset != size:
            raise FailedPrecondition(f"unexpected size: {answer.offset} != {size}")
        if expected and answer.digest != expected:
            raise FailedPrecondition(f"unexpected digest: {answer.digest} != {expected}")
        now, digest = timestamps.now_ns(), expected or self.digest()
        return BlobInfo(digest=digest, size=self._offset, created_at_ns=now, updated_at_ns=now, labels=given)

    async def close(self) -> None:
        """End the stream and wait until the store has released the lock. May be called twice."""
        call, self._call = self._call, None
        with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            try:
                if call is not None:
                    await _drain(call)
            finally:
                await self._stack.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _step(self, request: api.content.WriteContentRequest) -> api.content.WriteContentResponse:
        call = self._opened()
        with anyio.fail_after(self._connection.timeout_s):
            await call.send(request)
            answer = await call.recv()
        if not isinstance(answer, api.content.WriteContentResponse):
            raise Internal(f"the daemon ended the write of {self._ref} early")
        return answer

    def _opened(self) -> GrpcCall:
        if self._call is None:
            raise FailedPrecondition(f'writer of "{self._ref}" is closed')
        return self._call


async def _drain(call: GrpcCall) -> None:
    """Half-close, and read until the other side is done with the call, in whatever way."""
    try:
        await call.end()
        async for _ in call:
            continue
    except ContainerdError:
        return


def _info(message: api.content.Info | None) -> BlobInfo:
    if message is None:
        raise Internal("the daemon answered without the blob's info")
    return content_info_from_wire(message)
