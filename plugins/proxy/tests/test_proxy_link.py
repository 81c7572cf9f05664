"""The connection of a proxy plugin: its states, its errors, its deadlines, what it asks a peer."""

from __future__ import annotations

import math
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import anyio
import anyio.abc
import pytest
from aiocontainerd_proxy import backoff, pulse
from aiocontainerd_proxy import connection as connection_module
from aiocontainerd_proxy.connection import ProxyConnection
from aiocontainerd_proxy.content import ProxyContentStore
from aiocontainerd_proxy.limits import Limits, limits_of
from aiocontainerd_proxy.link import Link, NotReady, State
from aiocontainerd_proxy.ownership import OWNER, ROOT, Ownership, load, without_marks
from aiocontainerd_proxy.peer import Peer
from aiocontainerd_proxy.proxies import check_address
from aiocontainerd_proxy.snapshotter import ProxySnapshotter

from aiocontainerd import api, context, kinds
from aiocontainerd.config.timeouts import PLUGIN_CONNECT, PLUGIN_QUICK
from aiocontainerd.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    Unavailable,
    Unimplemented,
)
from aiocontainerd.filters import compile_filters
from aiocontainerd.interfaces.rpc_service import Service
from aiocontainerd.interfaces.snapshotter import SnapshotInfo, Snapshotter
from aiocontainerd.plugin import InitContext, PluginError
from aiocontainerd.rpc.grpc import GrpcFrontEnd
from aiocontainerd.rpc.grpc_client import GrpcClient
from aiocontainerd.rpc.sockets import bind_unix
from aiocontainerd.serve.content import ContentGrpc
from aiocontainerd.serve.health import HealthGrpc
from aiocontainerd.serve.snapshots import SnapshotsGrpc
from aiocontainerd.testing.fakes import FakeContentStore, FakeSnapshotter, digest_of

pytestmark = pytest.mark.anyio

URI = f"{kinds.SNAPSHOTTER}.x"
OWNED = Ownership("me")
LIMIT_S = 20.0
"""What anything may take that is not about time."""
intro, spaces = api.introspection, api.namespaces


def limits(**seconds: float) -> Limits:
    """Return those of `seconds` by the last word of their key; LIMIT_S else."""
    return lambda timeout: seconds.get(timeout.key.rpartition(".")[2], LIMIT_S)


LIMITS = limits()


@pytest.fixture
def address() -> Any:
    with tempfile.TemporaryDirectory(prefix="px-", dir="/tmp") as directory:
        yield f"{directory}/s"


@asynccontextmanager
async def serving(address: str, *services: Service) -> AsyncIterator[None]:
    front = GrpcFrontEnd(services)
    bound = bind_unix(address, -1, -1)
    await front.start(bound.sock)
    try:
        yield
    finally:
        await front.stop(0)
        bound.remove()


@asynccontextmanager
async def kept(link: Link, *, quick_s: float = LIMIT_S, work_s: float = LIMIT_S) -> AsyncIterator[ProxyConnection]:
    async with anyio.create_task_group() as group:
        group.start_soon(link.keep)
        yield ProxyConnection(link, limits(quick=quick_s, work=work_s, long=work_s))
        group.cancel_scope.cancel()


async def becomes(link: Link, state: State) -> None:
    with anyio.fail_after(LIMIT_S):
        while link.state is not state:  # noqa: ASYNC110 - seen from outside, as introspection does
            await anyio.sleep(0.005)


class Any1:
    """The snapshotters of a peer: one, under any name, which it remembers."""

    def __init__(self, backend: Snapshotter | None = None) -> None:
        self.backend: Snapshotter = FakeSnapshotter() if backend is None else backend
        self.asked: list[tuple[str, str, str]] = []

    def snapshotter(self, name: str) -> Snapshotter:
        called = context.current()
        self.asked.append((name, called.namespace, called.lease))
        return self.backend


class Hanging:
    """A service whose calls never end."""

    service_name: ClassVar[str] = SnapshotsGrpc.service_name

    async def stat(self, _request: Any) -> Any:
        await anyio.sleep_forever()


class Plugins:
    """The introspection of a peer."""

    service_name: ClassVar[str] = "containerd.services.introspection.v1.Introspection"

    def __init__(self, *plugins: intro.Plugin) -> None:
        self.found = list(plugins)
        self.filters: list[str] = []

    async def plugins(self, request: intro.PluginsRequest) -> intro.PluginsResponse:
        self.filters = list(request.filters)
        return intro.PluginsResponse(plugins=self.found)


class Spaces:
    """The namespaces of a peer."""

    service_name: ClassVar[str] = "containerd.services.namespaces.v1.Namespaces"

    async def list(self, _request: spaces.ListNamespacesRequest) -> spaces.ListNamespacesResponse:
        return spaces.ListNamespacesResponse(namespaces=[spaces.Namespace(name=name) for name in ("ns2", "ns1")])


async def test_without_a_peer_calls_are_unavailable_naming_plugin_and_address(address: str) -> None:
    link = Link(URI, address, LIMITS)
    async with kept(link) as connection:
        with pytest.raises(Unavailable) as failed:
            await ProxySnapshotter(connection, OWNED).stat("ns/1/a")
        assert failed.value.message.startswith(f"plugin {URI} at {address} is absent: ")
        assert "Errno" not in failed.value.message
        assert link.state is State.ABSENT


async def test_a_call_connects_at_once_to_a_peer_that_has_come(address: str) -> None:
    link = Link(URI, address, LIMITS)
    async with kept(link) as connection:
        await becomes(link, State.ABSENT)
        async with serving(address, SnapshotsGrpc(Any1())):
            with pytest.raises(NotFound):
                await ProxySnapshotter(connection, OWNED).stat("ns/1/a")
            assert (link.state, link.reason) == (State.READY, "")


async def test_a_lost_peer_is_seen_and_found_again(address: str) -> None:
    told: list[State] = []
    link = Link(URI, address, LIMITS, changed=lambda link: told.append(link.state))
    async with kept(link) as connection:
        for _ in range(2):
            async with serving(address, SnapshotsGrpc(Any1())):
                await ProxySnapshotter(connection, OWNED).prepare("ns/1/a")
            await becomes(link, State.ABSENT)
        assert link.statistics() == {"connects": 2}
        assert (told.count(State.READY), told[-1]) == (2, State.ABSENT)


async def test_a_peer_that_never_answers_has_failed_and_calls_are_answered_at_once(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 600.0)
    told: list[State] = []
    link = Link(URI, address, limits(connect=0.05, retry=600.0), changed=lambda link: told.append(link.state))
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(address)
        silent.listen()
        async with kept(link) as connection:
            await becomes(link, State.FAILED)
            with pytest.raises(NotReady, match=r"is failed: no answer within 50ms"):
                await ProxySnapshotter(connection, OWNED).stat("a")
            assert told == [State.CONNECTING, State.FAILED], "the call waited for another try"


async def test_the_longest_pause_between_two_tries_is_a_limit_of_the_plugin(address: str) -> None:
    told: list[State] = []
    link = Link(URI, address, limits(retry=0.01), changed=lambda link: told.append(link.state))
    async with kept(link):
        with anyio.fail_after(LIMIT_S):
            while told.count(State.ABSENT) < 8:  # noqa: ASYNC110 - seen from outside, as introspection does
                await anyio.sleep(0.005)


async def test_what_listens_and_is_no_grpc_server_has_failed(address: str) -> None:
    async def hang_up(stream: anyio.abc.SocketStream) -> None:
        await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await stream.aclose()

    link = Link(URI, address, LIMITS)
    async with await anyio.create_unix_listener(address) as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, hang_up)
        async with kept(link):
            await becomes(link, State.FAILED)
            assert link.reason
        group.cancel_scope.cancel()


async def test_a_peer_without_the_services_that_are_asked_is_ready(address: str) -> None:
    link = Link(URI, address, LIMITS)
    async with serving(address, SnapshotsGrpc(Any1())), kept(link):
        await becomes(link, State.READY)
    assert link.peer == Peer()


@pytest.mark.parametrize("good", ["/run/x.sock", "unix:///run/x.sock#overlayfs", "localhost:80", "[::1]:80"])
def test_addresses_are_paths_or_hosts_with_ports(good: str) -> None:
    check_address(good, "k")


@pytest.mark.parametrize("bad", ["", "x.sock", "host", "host:", "host:port", "tcp://host:1"])
def test_other_addresses_are_refused_naming_the_key(bad: str) -> None:
    with pytest.raises(PluginError, match=r"^proxy_plugins\.x\.address is "):
        check_address(bad, "proxy_plugins.x.address")


async def test_a_call_that_takes_too_long_names_plugin_method_limit_and_key(address: str) -> None:
    async with serving(address, Hanging()), kept(Link(URI, address, LIMITS), quick_s=0.2) as connection:
        with anyio.fail_after(LIMIT_S):
            await connection.link.ready()
        with pytest.raises(DeadlineExceeded) as failed:
            await ProxySnapshotter(connection, OWNED).stat("a")
    assert failed.value.message == f"plugin {URI}: Stat took longer than 200ms ({PLUGIN_QUICK.key})"


class Late(Hanging):
    """A service that tells of a deadline of its own."""

    async def stat(self, _request: Any) -> Any:
        raise DeadlineExceeded("the disk did not answer within 1s")


async def test_a_deadline_of_the_plugins_own_is_not_called_ours(address: str) -> None:
    async with serving(address, Late()), kept(Link(URI, address, LIMITS)) as connection:
        with anyio.fail_after(LIMIT_S):
            await connection.link.ready()
        with pytest.raises(DeadlineExceeded, match=r"^the disk did not answer within 1s$"):
            await ProxySnapshotter(connection, OWNED).stat("a")


class LateHealth(HealthGrpc):
    """Answers that something behind it missed a deadline."""

    async def check(self, request: api.health.HealthCheckRequest) -> api.health.HealthCheckResponse:
        raise DeadlineExceeded("something else did not answer within 1s")


async def test_a_process_that_answers_with_a_deadline_has_answered(address: str) -> None:
    async with serving(address, LateHealth()):
        with anyio.fail_after(LIMIT_S):
            assert await pulse._answers(GrpcClient(address), LIMIT_S)


def test_limits_are_those_of_the_plugin_and_0_is_none() -> None:
    written = {f"{PLUGIN_QUICK.key}.{URI}": 3.0, f"{PLUGIN_CONNECT.key}.{URI}": 0.0}
    daemon = SimpleNamespace(timeout_s=written.__getitem__)
    found = limits_of(cast("InitContext[Any]", SimpleNamespace(daemon=daemon, uri=URI)))
    assert (found(PLUGIN_QUICK), found(PLUGIN_CONNECT)) == (3.0, math.inf)


async def test_calls_may_have_no_deadline(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "MARGIN_S", 0.0)
    store = FakeContentStore()
    link = Link(f"{kinds.CONTENT}.x", address, limits(connect=math.inf))
    async with (
        serving(address, ContentGrpc(store), SnapshotsGrpc(Any1()), Spaces()),
        kept(link, quick_s=math.inf, work_s=math.inf) as connection,
    ):
        snapshotter, proxy = ProxySnapshotter(connection, OWNED), ProxyContentStore(connection, OWNED)
        with context.use(namespace="ns1"):
            await snapshotter.prepare("ns1/1/a")
            assert (await snapshotter.stat("ns1/1/a")).name == "ns1/1/a"
            assert [info.name async for info in snapshotter.walk()] == ["ns1/1/a"]
            async with await proxy.writer("ns1/1/ref") as writer:
                await writer.write(b"data")
                await writer.commit(4)
            async with await proxy.reader(digest_of(b"data")) as reader:
                assert await reader.read(4, 0) == b"data"
        assert (await proxy.info(digest_of(b"data"))).size == 4


async def test_a_peer_that_goes_during_a_call_is_unavailable(address: str) -> None:
    link = Link(URI, address, LIMITS)
    async with kept(link) as connection:
        async with serving(address, SnapshotsGrpc(Any1())):
            await connection.peer()
            link.transport.close()
        with pytest.raises(Unavailable, match=f"plugin {URI} at {address}"):
            await ProxySnapshotter(connection, OWNED).stat("a")


async def test_who_waits_when_the_plugin_stops_is_answered(address: str) -> None:
    link = Link(URI, address, LIMITS, gate=anyio.sleep_forever)
    answers: list[str] = []

    async def ask(connection: ProxyConnection) -> None:
        with pytest.raises(NotReady) as failed:
            await ProxySnapshotter(connection, OWNED).prepare("a")
        answers.append(failed.value.message)

    async with anyio.create_task_group() as group, kept(link) as connection:
        group.start_soon(ask, connection)
        await anyio.wait_all_tasks_blocked()
    assert answers == [f"plugin {URI} at {address} is failed: it has been stopped"]


async def test_calls_wait_for_the_gate_and_get_its_reason(address: str) -> None:
    opened = anyio.Event()

    async def gate() -> None:
        await opened.wait()
        raise NotReady("it ended; started again in 1s")

    link = Link(URI, address, LIMITS, gate=gate)
    async with kept(link) as connection, anyio.create_task_group() as group:
        group.start_soon(_open_later, opened)
        with pytest.raises(NotReady, match="is failed: it ended; started again in 1s"):
            await ProxySnapshotter(connection, OWNED).prepare("a")


async def _open_later(event: anyio.Event) -> None:
    await anyio.sleep(0.02)
    event.set()


async def test_namespace_lease_and_the_name_behind_the_address_travel(address: str) -> None:
    peer = Any1()
    async with serving(address, SnapshotsGrpc(peer)), kept(Link(URI, f"{address}#overlayfs", LIMITS)) as connection:
        snapshotter = ProxySnapshotter(connection, OWNED)
        with context.use(namespace="ns1", lease="l"):
            await snapshotter.prepare("ns1/1/a")
        await snapshotter.remove("ns1/1/a")
    assert peer.asked == [("overlayfs", "ns1", "l"), ("overlayfs", "ns1", "")]


async def test_capabilities_are_asked_when_it_connects(address: str) -> None:
    plugins = Plugins(intro.Plugin(type=kinds.SNAPSHOTTER, id="x", capabilities=["rebase"]))
    link = Link(URI, address, LIMITS)
    async with serving(address, plugins), kept(link):
        await becomes(link, State.READY)
    assert link.peer == Peer(capabilities=("rebase",))
    assert plugins.filters == [f'type=="{kinds.SNAPSHOTTER}",id=="x"']


async def test_a_plugin_that_did_not_load_at_the_peer_has_failed(address: str) -> None:
    broken = intro.Plugin(type=kinds.SNAPSHOTTER, id="x", init_err=api.rpc.Status(code=2, message="no overlay"))
    link = Link(URI, address, LIMITS)
    async with serving(address, Plugins(broken)), kept(link):
        await becomes(link, State.FAILED)
        assert link.reason == f"{URI} is not loaded there: no overlay"


async def test_in_a_daemon_ours_are_marked_and_the_others_left_alone(address: str) -> None:
    backend = FakeSnapshotter()
    peer = Any1(backend)
    async with serving(address, SnapshotsGrpc(peer), Spaces()), kept(Link(URI, address, LIMITS)) as connection:
        snapshotter = ProxySnapshotter(connection, OWNED)
        await backend.prepare("other")
        with context.use(namespace="ns1", lease="unknown-there"):
            await snapshotter.prepare("ns1/1/a", labels={"containerd.io/snapshot/x": "y"})
            assert (await snapshotter.stat("ns1/1/a")).labels == {"containerd.io/snapshot/x": "y"}
            await snapshotter.update(
                SnapshotInfo(kind=(await backend.stat("other")).kind, name="ns1/1/a", labels={"k": "v"})
            )
            await snapshotter.commit("ns1/2/b", "ns1/1/a")
        assert backend.infos["ns1/2/b"].labels.keys() == {OWNER, ROOT}
        assert [info.name async for info in snapshotter.walk()] == ["ns1/2/b", "ns1/2/b"]
    assert {(namespace, lease) for _, namespace, lease in peer.asked} == {("ns1", ""), ("ns2", "")}


async def test_content_of_a_daemon_is_found_in_any_namespace_and_kept(address: str) -> None:
    store = FakeContentStore()
    uri = f"{kinds.CONTENT}.x"
    async with serving(address, ContentGrpc(store), Spaces()), kept(Link(uri, address, LIMITS)) as connection:
        proxy = ProxyContentStore(connection, OWNED)
        others = store.put(b"other")
        assert (await proxy.info(others)).size == 5
        async with await proxy.writer("ns1/1/ref") as writer:
            await writer.write(b"data")
            await writer.commit(4)
        digest = digest_of(b"data")
        assert (await store.info(digest)).labels.keys() == {OWNER, ROOT}
        assert [info.digest async for info in proxy.walk()] == [digest]
        async with await proxy.writer("ns1/2/ref") as writer:
            await writer.write(b"other")
            with pytest.raises(AlreadyExists):
                await writer.commit(5)
        assert (await store.info(others)).labels.keys() == {ROOT}
        async with await store.writer("somebody's"), await proxy.writer("ns1/3/ref"):
            assert [status.ref for status in await proxy.statuses()] == ["ns1/3/ref"]
        with pytest.raises(NotFound):
            await proxy.info(digest_of(b"nothing"))


async def test_errors_of_the_peer_are_as_they_were(address: str) -> None:
    class Refusing(FakeSnapshotter):
        async def cleanup(self) -> None:
            raise Unimplemented("snapshotter does not implement Cleanup method")

        async def remove(self, _key: str) -> None:
            raise FailedPrecondition("cannot remove snapshot with child")

    async with serving(address, SnapshotsGrpc(Any1(Refusing()))), kept(Link(URI, address, LIMITS)) as connection:
        snapshotter = ProxySnapshotter(connection, OWNED)
        with pytest.raises(FailedPrecondition, match=r"^cannot remove snapshot with child$"):
            await snapshotter.remove("a")
        with pytest.raises(Unimplemented, match=r"^snapshotter does not implement Cleanup method$"):
            await snapshotter.cleanup()


def test_ownership_narrows_every_filter_to_ours() -> None:
    chosen = compile_filters(OWNED.only_ours(["kind==active", "name==b"]))
    ours = {"kind": "active", "name": "a", f"labels.{OWNER}": "me"}
    assert chosen.matches(lambda path: ours.get(".".join(path)))
    assert not chosen.matches(lambda path: {**ours, f"labels.{OWNER}": "you"}.get(".".join(path)))
    assert without_marks(OWNED.marked({"a": "b"})) == {"a": "b"}


def test_ownership_is_kept_on_disk(tmp_path: Path) -> None:
    first = load(tmp_path / "owner")
    assert load(tmp_path / "owner").owner == first.owner
    assert len(first.owner) == 32
    (tmp_path / "owner").write_text("")
    assert load(tmp_path / "owner").owner not in ("", first.owner)
