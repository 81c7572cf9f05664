"""Content stores and differs behind the API, and calls made while serving somebody else."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence

import pytest

from aiocontainerd import context, typeurl
from aiocontainerd.client.client import Client
from aiocontainerd.client.connection import CallerConnection
from aiocontainerd.client.content import NOTHING, Content
from aiocontainerd.client.diff import Diff
from aiocontainerd.errors import FailedPrecondition, Unavailable, Unimplemented
from aiocontainerd.interfaces.differ import ApplyOptions, CompareOptions
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.rpc.grpc import GrpcFrontEnd
from aiocontainerd.rpc.grpc_client import GrpcClient
from aiocontainerd.rpc.sockets import bind_unix
from aiocontainerd.serve.content import ContentGrpc
from aiocontainerd.serve.diff import DiffGrpc
from aiocontainerd.sys.mount import Mount
from aiocontainerd.testing.fakes import FakeContentStore, digest_of

pytestmark = pytest.mark.anyio

LAYER = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", "sha256:" + "1" * 64, 5, {"a": "b"})
MOUNTS = [Mount("bind", "/x", "", ("rbind",))]


class Differ:
    """A differ that remembers what it was asked, and by whom."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.called: list[tuple[str, str]] = []

    async def apply(self, layer: Descriptor, mounts: Sequence[Mount], options: ApplyOptions) -> Descriptor:
        called = context.current()
        self.called.append((called.namespace, called.lease))
        self.asked.append((layer, list(mounts), options))
        return layer

    async def compare(self, lower: Sequence[Mount], upper: Sequence[Mount], options: CompareOptions) -> Descriptor:
        self.asked.append((list(lower), list(upper), options))
        raise Unimplemented("unsupported diff media type: x")


class Peer:
    """What a test has on the other side."""

    def __init__(self) -> None:
        self.content = FakeContentStore()
        self.differ = Differ()


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
async def connection(peer: Peer) -> AsyncIterator[CallerConnection]:
    with tempfile.TemporaryDirectory(prefix="st-", dir="/tmp") as directory:
        front = GrpcFrontEnd([ContentGrpc(peer.content), DiffGrpc(peer.differ)])
        bound = bind_unix(f"{directory}/s", -1, -1)
        await front.start(bound.sock)
        try:
            async with GrpcClient(bound.path) as client:
                yield CallerConnection(client, namespace="", timeout_s=5.0)
        finally:
            await front.stop(0)
            bound.remove()


async def test_a_lock_is_free_once_its_writer_is_closed(connection: CallerConnection) -> None:
    store = Content(connection)
    for _ in range(5):
        async with await store.writer("ref"):
            with pytest.raises(Unavailable, match="ref ref locked"):
                await store.writer("ref")


async def test_a_truncated_writer_starts_again(peer: Peer, connection: CallerConnection) -> None:
    store = Content(connection)
    async with await store.writer("ref") as writer:
        await writer.write(b"wrong")
        assert (writer.offset, writer.digest()) == (5, digest_of(b"wrong"))
        await writer.truncate()
        assert (writer.offset, writer.digest()) == (0, NOTHING)
        await writer.write(b"data")
        info = await writer.commit(4, digest_of(b"data"), {"k": "v"})
    assert (info.digest, info.size) == (digest_of(b"data"), 4)
    assert peer.content.blobs == {digest_of(b"data"): b"data"}
    with pytest.raises(FailedPrecondition, match='writer of "ref" is closed'):
        await writer.write(b"more")


async def test_ranges_are_fetched_and_there_is_no_file(peer: Peer, connection: CallerConnection) -> None:
    digest = peer.content.put(b"0123456789")
    async with await Content(connection).reader(digest) as reader:
        assert await reader.read(3, 4) == b"456"
        assert await reader.read(9, 8) == b"89"
        assert await reader.read(1, 10) == b""
        with pytest.raises(Unimplemented, match=f"blob {digest} is in no file"):
            reader.fileno()


async def test_a_differ_is_asked_in_the_namespace_and_lease_of_the_caller(
    peer: Peer, connection: CallerConnection
) -> None:
    options = ApplyOptions(payloads={"p": typeurl.Any("t", b"v")}, sync_fs=True)
    with context.use(namespace="ns1", lease="l1"):
        assert await Diff(connection).apply(LAYER, MOUNTS, options) == LAYER
    assert peer.differ.called == [("ns1", "l1")]
    assert peer.differ.asked == [(LAYER, MOUNTS, options)]


async def test_a_comparison_travels_whole_and_its_error_comes_back(peer: Peer, connection: CallerConnection) -> None:
    options = CompareOptions(media_type="x", reference="r", labels={"a": "b"}, source_date_epoch_ns=7_000_000_001)
    with pytest.raises(Unimplemented, match="unsupported diff media type: x"):
        await Diff(connection).compare([], MOUNTS, options)
    assert peer.differ.asked == [([], MOUNTS, options)]


async def test_a_client_in_a_daemon_lets_neither_namespace_nor_lease_of_the_call_through(
    peer: Peer, connection: CallerConnection
) -> None:
    client = Client(connection.address, namespace="theirs")
    with context.use(namespace="ours", lease="ours"):
        await Diff(client.connection).apply(LAYER, MOUNTS, ApplyOptions())
        with client.stores() as stores:
            await stores.differ.apply(LAYER, MOUNTS, ApplyOptions())
            with context.use(lease="held"):
                await stores.differ.apply(LAYER, MOUNTS, ApplyOptions())
        with client.under(lease="own").stores() as stores:
            await stores.differ.apply(LAYER, MOUNTS, ApplyOptions())
        assert context.current() == context.CallContext("ours", "ours")
    client.close()
    assert peer.differ.called == [("theirs", ""), ("theirs", ""), ("theirs", "held"), ("theirs", "own")]
