"""Blobs and ingests of a daemon (facts/core 4)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from types import MappingProxyType

import anyio

from aiocontainerd import api, timestamps
from aiocontainerd.client.connection import Connection
from aiocontainerd.errors import (
    AlreadyExists,
    ContainerdError,
    DataLoss,
    FailedPrecondition,
    Internal,
    NotFound,
    Unavailable,
)
from aiocontainerd.interfaces.content import Info, Status
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.rpc.grpc_client import GrpcCall
from aiocontainerd.wire.content import content_info_from_wire, ingest_status_from_wire
from aiocontainerd.wire.masks import mask_to_wire

_NONE: Mapping[str, str] = MappingProxyType({})
WRITE_BYTES = 1 << 20
"""Bytes of one Write message."""
LOCK_WAIT_S = 30.0
"""How long to wait for another writer of the same ingest; Go clients poll as well."""
LOCK_PAUSE_S = 0.2
DISCARD_S = 5.0
DISCARD_PAUSE_S = 0.05


class Content:
    """The content store of one namespace."""

    SERVICE = "containerd.services.content.v1.Content"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def info(self, digest: str) -> Info:
        """Raises NotFound."""
        c = api.content
        answer = await self._connection.call(self.SERVICE, "Info", c.InfoRequest(digest=digest), c.InfoResponse)
        return _info(answer.info)

    async def exists(self, digest: str) -> bool:
        """Whether this namespace has the blob."""
        try:
            await self.info(digest)
        except NotFound:
            return False
        return True

    async def update(self, info: Info, paths: Sequence[str] = ()) -> Info:
        """Change labels: all of them, or those that `paths` name."""
        c = api.content
        request = c.UpdateRequest(
            info=c.Info(digest=info.digest, labels=dict(info.labels)), update_mask=mask_to_wire(paths)
        )
        return _info((await self._connection.call(self.SERVICE, "Update", request, c.UpdateResponse)).info)

    async def add_labels(self, digest: str, labels: Mapping[str, str]) -> None:
        """Set some labels of a blob and keep the others."""
        if labels:
            info = Info(digest=digest, size=0, created_at_ns=0, updated_at_ns=0, labels=labels)
            await self.update(info, [f"labels.{key}" for key in labels])

    async def walk(self, filters: Sequence[str] = ()) -> AsyncGenerator[Info, None]:
        """Every blob that a filter matches, sorted by digest."""
        c = api.content
        request = c.ListContentRequest(filters=list(filters))
        stream = self._connection.messages(self.SERVICE, "List", request, c.ListContentResponse)
        async with aclosing(stream) as messages:
            async for message in messages:
                for info in message.info:
                    yield content_info_from_wire(info)

    async def delete(self, digest: str) -> None:
        """Raises NotFound."""
        request = api.content.DeleteContentRequest(digest=digest)
        await self._connection.call(self.SERVICE, "Delete", request, api.protobuf.Empty)

    async def read(self, digest: str, *, offset: int = 0, size: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset`, `size` 0 to the end. Raises NotFound, OutOfRange."""
        c = api.content
        request = c.ReadContentRequest(digest=digest, offset=offset, size=size)
        stream = self._connection.messages(self.SERVICE, "Read", request, c.ReadContentResponse)
        async with aclosing(stream) as messages:
            async for message in messages:
                yield message.data

    async def read_all(self, digest: str, *, limit: int) -> bytes:
        """A whole small blob. Raises FailedPrecondition for one over `limit` bytes."""
        info = await self.info(digest)
        if info.size > limit:
            raise FailedPrecondition(
                f"blob {digest} has {info.size} bytes, more than the {limit} that are read at once"
            )
        return b"".join([data async for data in self.read(digest)])

    async def status(self, ref: str) -> Status:
        """Raises NotFound."""
        c = api.content
        answer = await self._connection.call(self.SERVICE, "Status", c.StatusRequest(ref=ref), c.StatusResponse)
        if answer.status is None:
            raise Internal(f"the daemon answered without the status of {ref}")
        return ingest_status_from_wire(answer.status)

    async def statuses(self, filters: Sequence[str] = ()) -> list[Status]:
        """Every ingest that a filter matches."""
        c = api.content
        request = c.ListStatusesRequest(filters=list(filters))
        answer = await self._connection.call(self.SERVICE, "ListStatuses", request, c.ListStatusesResponse)
        return [ingest_status_from_wire(message) for message in answer.statuses]

    async def abort(self, ref: str) -> None:
        """Drop an ingest. Raises NotFound."""
        await self._connection.call(self.SERVICE, "Abort", api.content.AbortRequest(ref=ref), api.protobuf.Empty)

    async def discard(self, ref: str) -> None:
        """Drop an ingest whose writing failed; that failure is what counts, so this raises nothing.

        A daemon may still be busy ending the write, then it is asked again. What it keeps all the same goes with the
        lease it was written under.
        """
        with anyio.move_on_after(DISCARD_S, shield=True):
            while True:
                try:
                    await self.abort(ref)
                except NotFound:
                    return
                except ContainerdError:
                    pass
                await anyio.sleep(DISCARD_PAUSE_S)

    @asynccontextmanager
    async def writer(self, ref: str, *, total: int = 0, expected: str = "") -> AsyncIterator[Writer]:
        """An open ingest, waiting a while for another writer of it.

        Raises AlreadyExists where the namespace has `expected` already, Unavailable where the ingest stays locked.
        Leaving the block without a commit keeps the bytes for later.
        """
        until = anyio.current_time() + LOCK_WAIT_S
        while True:
            async with self._connection.stream(self.SERVICE, "Write") as call:
                writer = Writer(call, ref, total, expected, timeout_s=self._connection.timeout_s)
                if await self._opened(writer, until):
                    yield writer
                    return
            await anyio.sleep(LOCK_PAUSE_S)

    async def _opened(self, writer: Writer, until: float) -> bool:
        try:
            await writer.open()
        except Unavailable as error:
            if "locked" not in error.message or anyio.current_time() > until:
                raise
            return False
        return True

    async def put(self, ref: str, data: bytes, target: Descriptor, labels: Mapping[str, str] = _NONE) -> None:
        """Store a small blob; one that exists only gets the labels."""
        try:
            async with self.writer(ref, total=len(data), expected=target.digest) as writer:
                if writer.offset != len(data):
                    await writer.restart()
                    await writer.write(data)
                await writer.commit(len(data), target.digest, labels)
        except AlreadyExists:
            await self.add_labels(target.digest, labels)


class Writer:
    """An open ingest over one Write stream, as `Content.writer` gives it."""

    def __init__(self, call: GrpcCall, ref: str, total: int, expected: str, *, timeout_s: float) -> None:
        self._call = call
        self._ref = ref
        self._total = total
        self._expected = expected
        self._timeout_s = timeout_s
        self.offset = 0
        """Bytes in the ingest; the next byte goes here."""
        self.digest = ""
        """sha256 digest of them, as the daemon told it."""

    def __repr__(self) -> str:
        return f"<Writer {self._ref} at {self.offset}>"

    async def open(self) -> None:
        """Take the ingest's lock and learn what it holds already."""
        c = api.content
        answer = await self._step(
            c.WriteContentRequest(action=c.WriteAction.STAT, ref=self._ref, total=self._total, expected=self._expected)
        )
        self.offset, self.digest = answer.offset, answer.digest

    async def write(self, data: bytes) -> None:
        """Append `data`. Raises DataLoss where the daemon took less."""
        for start in range(0, len(data), WRITE_BYTES):
            await self._write_part(data[start : start + WRITE_BYTES])

    async def _write_part(self, part: bytes) -> None:
        c = api.content
        request = c.WriteContentRequest(action=c.WriteAction.WRITE, offset=self.offset, data=part)
        answer = await self._step(request)
        wanted = self.offset + len(part)
        if answer.offset != wanted:
            raise DataLoss(f"ingest {self._ref}: the daemon is at {answer.offset} of {wanted} bytes")
        self.offset, self.digest = answer.offset, answer.digest

    async def restart(self) -> None:
        """Start again at offset 0. The first bytes written drop what is there."""
        self.offset = 0

    async def commit(self, size: int, expected: str, labels: Mapping[str, str] = _NONE) -> None:
        """Make the bytes a blob. Raises FailedPrecondition for a wrong size or digest, AlreadyExists."""
        c = api.content
        request = c.WriteContentRequest(
            action=c.WriteAction.COMMIT, total=size, offset=self.offset, expected=expected, labels=dict(labels)
        )
        answer = await self._step(request)
        if size and answer.offset != size:
            raise FailedPrecondition(f"unexpected size: {answer.offset} != {size}")
        if expected and answer.digest != expected:
            raise FailedPrecondition(f"unexpected digest: {answer.digest} != {expected}")

    async def _step(self, request: api.content.WriteContentRequest) -> api.content.WriteContentResponse:
        with anyio.fail_after(self._timeout_s):
            await self._call.send(request)
            answer = await self._call.recv()
        if not isinstance(answer, api.content.WriteContentResponse):
            raise Internal(f"the daemon ended the write of {self._ref} early")
        return answer


def _info(message: api.content.Info | None) -> Info:
    if message is None:
        raise Internal("the daemon answered without the blob's info")
    return content_info_from_wire(message)


def fresh_key(prefix: str, suffix: str = "") -> str:
    """A name nobody else uses: `<prefix>-<nanoseconds of the second>-<4 url characters>` (facts/core 14)."""
    import base64
    import secrets

    nanos = timestamps.now_ns() % timestamps.NANOSECONDS
    random = base64.urlsafe_b64encode(secrets.token_bytes(3)).decode()
    return f"{prefix}-{nanos}-{random}{suffix}"
