"""The contracts of snapshotters and content stores, kept over the wire: plugins served as a peer serves them."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from aiocontainerd_content_local.store import LocalStore
from aiocontainerd_proxy.connection import ProxyConnection
from aiocontainerd_proxy.content import ProxyContentStore
from aiocontainerd_proxy.link import Link
from aiocontainerd_proxy.ownership import Ownership
from aiocontainerd_proxy.snapshotter import ProxySnapshotter
from aiocontainerd_snapshotter_native.snapshotter import NativeSnapshotter

from aiocontainerd.interfaces.content import ContentStore
from aiocontainerd.interfaces.rpc_service import Service
from aiocontainerd.interfaces.snapshotter import Snapshotter
from aiocontainerd.rpc.grpc import GrpcFrontEnd
from aiocontainerd.rpc.sockets import bind_unix
from aiocontainerd.serve.content import ContentGrpc
from aiocontainerd.serve.snapshots import SnapshotsGrpc
from aiocontainerd.testing.content import ContentStoreContract
from aiocontainerd.testing.snapshotter import OpenSnapshotter, SnapshotterContract

OWNERSHIP = Ownership("test")


class Only:
    """A snapshotter under any name."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    def snapshotter(self, _name: str) -> Snapshotter:
        return self._snapshotter


@asynccontextmanager
async def connected(services: Iterable[Service], kind: str) -> AsyncIterator[ProxyConnection]:
    """Yield a connection to services on a socket."""
    with tempfile.TemporaryDirectory(prefix="px-", dir="/tmp") as directory:
        front = GrpcFrontEnd(services)
        bound = bind_unix(f"{directory}/s", -1, -1)
        await front.start(bound.sock)
        link = Link(f"{kind}.x", bound.path, lambda _timeout: 10.0)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(link.keep)
                yield ProxyConnection(link, lambda _timeout: 10.0)
                group.cancel_scope.cancel()
        finally:
            await front.stop(0)
            bound.remove()


@asynccontextmanager
async def open_native(root: Path) -> AsyncIterator[Snapshotter]:
    async with (
        NativeSnapshotter(root) as backend,
        connected([SnapshotsGrpc(Only(backend))], "io.containerd.snapshotter.v1") as connection,
    ):
        yield ProxySnapshotter(connection, OWNERSHIP)


class TestSnapshotter(SnapshotterContract):
    """The native snapshotter, as proxy."""

    @pytest.fixture
    def open_snapshotter(self) -> OpenSnapshotter:
        return open_native


class TestContent(ContentStoreContract):
    """The local content store, as proxy."""

    @pytest.fixture
    def has_files(self) -> bool:
        return False

    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[ContentStore]:
        async with connected([ContentGrpc(LocalStore(tmp_path))], "io.containerd.content.v1") as connection:
            yield ProxyContentStore(connection, OWNERSHIP)
