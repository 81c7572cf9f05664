"""Content.Write: one ingest over one stream, a response for each request (the table of facts/core 4).

The first request names the ingest and takes its lock, which is held until the stream ends. `total` and `expected` keep
their last value where a request leaves them out; responses repeat the times of the last STAT. The last response is
sent twice, as containerd does.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import anyio

from aiocontainerd import api
from aiocontainerd.errors import (
    AlreadyExists,
    ContainerdError,
    DataLoss,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Unknown,
    to_status,
)
from aiocontainerd.interfaces.content import ContentStore, Writer
from aiocontainerd.wire.times import time_to_wire

log = logging.getLogger(__name__)

CLEANUP_TIMEOUT_S = 10.0


async def write_stream(
    store: ContentStore, requests: AsyncIterator[api.content.WriteContentRequest]
) -> AsyncIterator[api.content.WriteContentResponse]:
    """Serve one stream until a commit, the client's half-close, or the first error, which keeps the ingest."""
    request = await anext(requests, None)
    if request is None:
        raise Unknown("EOF")
    if not request.ref:
        raise InvalidArgument("first message must have a reference", complete=True)
    writer = await store.writer(request.ref, total=max(request.total, 0), expected=request.expected)
    try:
        session = _Session(store, request.ref, writer, total=request.total, expected=request.expected)
        response = await session.step(request)
        yield response
        while request.action != api.content.WriteAction.COMMIT:
            request = await anext(requests, None)
            if request is None:
                break
            await session.check_expected(request.expected)
            response = await session.step(request)
            yield response
        yield response
    finally:
        with anyio.move_on_after(CLEANUP_TIMEOUT_S, shield=True):
            await writer.close()


class _Session:
    """The state of one stream."""

    def __init__(self, store: ContentStore, ref: str, writer: Writer, *, total: int, expected: str) -> None:
        self._store = store
        self._ref = ref
        self._writer = writer
        self._total = total
        self._expected = expected
        self._shown_total = 0
        self._started_at: api.protobuf.Timestamp | None = None
        self._updated_at: api.protobuf.Timestamp | None = None

    def __repr__(self) -> str:
        return f"<Content.Write of {self._ref} at {self._writer.offset}>"

    async def check_expected(self, expected: str) -> None:
        """Drop the ingest if the blob that it is to become exists already. Raises AlreadyExists."""
        if not expected or not await self._exists(expected):
            return
        await self._writer.close()
        try:
            await self._store.abort(self._ref)
        except ContainerdError as error:
            log.warning("ingest %s of a blob that exists could not be removed: %s", self._ref, error)
        raise AlreadyExists(f"blob with expected digest {expected} exists", complete=True)

    async def _exists(self, digest: str) -> bool:
        try:
            await self._store.info(digest)
        except (NotFound, InvalidArgument):
            return False
        return True

    async def step(self, request: api.content.WriteContentRequest) -> api.content.WriteContentResponse:
        """Do what one request says."""
        action = api.content.WriteAction
        self._expected = request.expected or self._expected
        self._total = request.total if request.total > 0 else self._total
        offset, digest = self._writer.offset, ""
        if request.action == action.STAT:
            digest = await self._stat()
        elif request.action in (action.WRITE, action.COMMIT):
            offset = await self._append(request.offset, request.data)
            digest = self._writer.digest()
            if request.action == action.COMMIT:
                info = await self._writer.commit(self._total, self._expected, request.labels)
                digest = info.digest
        return api.content.WriteContentResponse(
            action=request.action,
            started_at=self._started_at,
            updated_at=self._updated_at,
            offset=offset,
            total=self._shown_total,
            digest=digest,
        )

    async def _stat(self) -> str:
        status = await self._writer.status()
        self._started_at = time_to_wire(status.started_at_ns)
        self._updated_at = time_to_wire(status.updated_at_ns)
        self._shown_total = self._total
        return self._writer.digest()

    async def _append(self, offset: int, data: bytes) -> int:
        """Write `data` at `offset` and return the offset behind it; offset 0 starts again. Raises OutOfRange."""
        here = self._writer.offset
        if offset > 0 and offset != here:
            raise OutOfRange(f"write @{offset} must occur at current offset {here}", complete=True)
        if offset == 0 and here > 0:
            await self._truncate()
            here = 0
        if not data:
            return here
        await self._writer.write(data)
        written = self._writer.offset - here
        if written != len(data):
            raise DataLoss(f"wrote {written} of {len(data)} bytes", complete=True)
        return self._writer.offset

    async def _truncate(self) -> None:
        try:
            await self._writer.truncate()
        except ContainerdError as error:
            raise Unknown(f"truncate failed: {to_status(error)[1]}") from error
