"""A content store and a differ behind the API, as `interfaces/content.py` and `interfaces/differ.py` have them.

`client.content.Content` and `client.snapshots.Diff` are for programs; these are for whoever takes any implementation
of the interface, such as the daemon a proxy plugin. (`client.snapshots.Snapshots` is a Snapshotter as it stands.)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Self

import anyio

from aiocontainerd import api, timestamps
from aiocontainerd.client.connection import Connection
from aiocontainerd.client.content import Content
from aiocontainerd.client.content import Writer as Session
from aiocontainerd.client.snapshots import APPLY_TIMEOUT_S
from aiocontainerd.errors import ContainerdError, FailedPrecondition, Internal, Unimplemented
from aiocontainerd.interfaces.content import Info, Status
from aiocontainerd.interfaces.differ import ApplyOptions, CompareOptions
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.rpc.grpc_client import GrpcCall
from aiocontainerd.sys.mount import Mount
from aiocontainerd.wire.descriptors import descriptor_from_wire
from aiocontainerd.wire.diff import apply_to_wire, compare_to_wire

CLOSE_TIMEOUT_S = 10.0
NOTHING = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""The digest of no bytes."""


class RemoteContentStore:
    """A ContentStore behind the Content service."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._content = Content(connection)

    def __repr__(self) -> str:
        return f"<RemoteContentStore {self._connection!r}>"

    async def info(self, digest: str) -> Info:
        """Raises NotFound."""
        return await self._content.info(digest)

    async def update(self, info: Info, paths: Sequence[str] = ()) -> Info:
        """Raises NotFound."""
        return await self._content.update(info, paths)

    def walk(self, filters: Sequence[str] = ()) -> AsyncGenerator[Info, None]:
        """Every blob that a filter matches, sorted by digest."""
        return self._content.walk(filters)

    async def delete(self, digest: str) -> None:
        """Raises NotFound."""
        await self._content.delete(digest)

    async def reader(self, digest: str) -> RemoteReader:
        """Raises NotFound. The bytes are fetched as they are read."""
        return RemoteReader(self._content, await self._content.info(digest))

    async def writer(self, ref: str, *, total: int = 0, expected: str = "") -> RemoteWriter:
        """Raises Unavailable where another holds the ingest, AlreadyExists where `expected` is there."""
        writer = RemoteWriter(self._connection, ref)
        await writer.open(total, expected)
        return writer

    async def status(self, ref: str) -> Status:
        """Raises NotFound."""
        return await self._content.status(ref)

    async def statuses(self, filters: Sequence[str] = ()) -> list[Status]:
        """Every ingest that a filter matches."""
        return await self._content.statuses(filters)

    async def abort(self, ref: str) -> None:
        """Raises NotFound."""
        await self._content.abort(ref)


class RemoteReader:
    """A blob behind the API. It is in no file here: `distribution.spool.as_file` makes one where that is needed."""

    def __init__(self, content: Content, info: Info) -> None:
        self._content = content
        self._info = info

    def __repr__(self) -> str:
        return f"<RemoteReader {self._info.digest}>"

    @property
    def size(self) -> int:
        return self._info.size

    async def read(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end."""
        wanted = min(size, self.size - offset)
        if wanted <= 0:
            return b""
        stream = self._content.read(self._info.digest, offset=offset, size=wanted)
        async with aclosing(stream) as parts:
            return b"".join([part async for part in parts])

    def fileno(self) -> int:
        """Raises Unimplemented."""
        raise Unimplemented(f"blob {self._info.digest} is in no file on this side of the API")

    async def close(self) -> None:
        """There is nothing to give back."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class RemoteWriter:
    """An open ingest: one Write stream, which holds the lock until `close`."""

    def __init__(self, connection: Connection, ref: str) -> None:
        self._connection = connection
        self._ref = ref
        self._stack = AsyncExitStack()
        self._call: GrpcCall | None = None
        self._session: Session | None = None

    def __repr__(self) -> str:
        return f"<RemoteWriter {self._ref} {'closed' if self._session is None else f'at {self.offset}'}>"

    async def open(self, total: int, expected: str) -> None:
        """Take the lock and learn what is there. Raises as `RemoteContentStore.writer`."""
        connection = self._connection
        try:
            self._call = await self._stack.enter_async_context(connection.stream(Content.SERVICE, "Write"))
            session = Session(self._call, self._ref, total, expected, timeout_s=connection.timeout_s)
            await session.open()
        except BaseException:
            await self.close()
            raise
        self._session = session

    @property
    def offset(self) -> int:
        return self._open_session().offset

    def digest(self) -> str:
        """As the store told it last."""
        session = self._open_session()
        return session.digest if session.offset else NOTHING

    async def write(self, data: bytes) -> None:
        """Raises DataLoss where the store took less."""
        await self._open_session().write(data)

    async def truncate(self) -> None:
        """Start again; what is there is dropped by the first bytes, or by a commit without any."""
        await self._open_session().restart()

    async def status(self) -> Status:
        """Raises NotFound."""
        return await Content(self._connection).status(self._ref)

    async def commit(self, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> Info:
        """Raises FailedPrecondition for a wrong size or digest, AlreadyExists."""
        session = self._open_session()
        given = labels or {}
        await session.commit(size, expected, given)
        now = timestamps.now_ns()
        return Info(
            digest=expected or session.digest, size=session.offset, created_at_ns=now, updated_at_ns=now, labels=given
        )

    async def close(self) -> None:
        """End the stream and wait until the store has released the lock. May be called twice."""
        call, self._session = self._call, None
        with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            try:
                if call is not None:
                    await _drained(call)
            finally:
                self._call = None
                await self._stack.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _open_session(self) -> Session:
        if self._session is None:
            raise FailedPrecondition(f'writer of "{self._ref}" is closed')
        return self._session


class RemoteDiffer:
    """A Differ behind the Diff service. It reads and writes layers in the content store of its own process."""

    SERVICE = "containerd.services.diff.v1.Diff"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __repr__(self) -> str:
        return f"<RemoteDiffer {self._connection!r}>"

    async def apply(self, layer: Descriptor, mounts: Sequence[Mount], options: ApplyOptions) -> Descriptor:
        """Unpack a layer. Raises what the differ says."""
        d = api.diff
        request = apply_to_wire(layer, mounts, options)
        answer = await self._connection.call(self.SERVICE, "Apply", request, d.ApplyResponse, timeout_s=APPLY_TIMEOUT_S)
        if answer.applied is None:
            raise Internal(f"the differ applied {layer.digest} without telling what")
        return descriptor_from_wire(answer.applied)

    async def compare(self, lower: Sequence[Mount], upper: Sequence[Mount], options: CompareOptions) -> Descriptor:
        """Write the difference of two trees to the content store. Raises what the differ says."""
        d = api.diff
        request = compare_to_wire(lower, upper, options)
        answer = await self._connection.call(self.SERVICE, "Diff", request, d.DiffResponse, timeout_s=APPLY_TIMEOUT_S)
        if answer.diff is None:
            raise Internal("the differ compared two trees without telling the result")
        return descriptor_from_wire(answer.diff)


async def _drained(call: GrpcCall) -> None:
    """Half-close, and read until the other side is done with the call, in whatever way."""
    try:
        await call.end()
        async for _ in call:
            continue
    except ContainerdError:
        return
