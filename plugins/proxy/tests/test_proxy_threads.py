"""A plugin in a thread of its own: the same results, its own blocking, its caller's namespace."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiocontainerd_proxy.plugin import isolate_plugin

from aiocontainerd import api, context, kinds
from aiocontainerd.config.records import Isolation
from aiocontainerd.errors import NotFound
from aiocontainerd.events import EventBus
from aiocontainerd.host.registration import Daemon, State
from aiocontainerd.host.registry import Registry
from aiocontainerd.interfaces.content import ContentStore
from aiocontainerd.plugin import InitContext, PluginConfig, Registration
from aiocontainerd.testing.fakes import FakeContentStore, FakeSnapshotter

pytestmark = pytest.mark.anyio

EVENT = api.event_types.SnapshotRemove(key="k", snapshotter="odd")
IN_THREAD = Isolation(mode="thread", module="")


class Odd(FakeSnapshotter):
    """A snapshotter that tells where it runs, and blocks."""

    def __init__(self, started: InitContext[PluginConfig]) -> None:
        super().__init__()
        self.started = started
        self.closed_in: int | None = None
        self.busy, self.goes_on, self.cancelled = threading.Event(), threading.Event(), threading.Event()

    async def where(self) -> tuple[int, str]:
        return threading.get_ident(), context.namespace()

    async def block(self) -> bool:
        self.busy.set()
        return self.goes_on.wait(20)

    async def hang(self) -> None:
        self.busy.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.cancelled.set()

    async def read(self, digest: str) -> bytes:
        content: ContentStore = self.started.get(kinds.CONTENT, "content")
        async with await content.reader(digest) as reader:
            return await reader.read(reader.size, 0)

    async def lend(self, content: ContentStore) -> list[str]:
        return [info.digest async for info in content.walk()]

    async def fails_midway(self) -> AsyncIterator[int]:
        with anyio.CancelScope():
            yield 1
            raise NotFound("the rest")

    async def cleanup(self) -> None:
        self.forgotten = asyncio.get_running_loop().create_task(asyncio.sleep(60), name="forgotten")

    async def leave(self) -> None:
        raise SystemExit(3)

    async def leaves_midway(self) -> AsyncIterator[int]:
        yield 1
        raise SystemExit(4)

    async def close(self) -> None:
        self.closed_in = threading.get_ident()


def daemon(tmp_path: Path, bus: EventBus) -> Daemon:
    return Daemon(
        root=tmp_path / "root",
        state=tmp_path / "state",
        temp=tmp_path,
        grpc_address="",
        ttrpc_address="",
        bus=bus,
        plugins=list,
        timeout_s=lambda _key: 5.0,
    )


class Setup:
    """A registry with a content store in the daemon and a snapshotter in a thread."""

    def __init__(self, tmp_path: Path) -> None:
        self.content = FakeContentStore()
        self.bus = EventBus()
        self.registry = Registry()
        self.made: list[Odd] = []
        self.registry.add(Registration(kind=kinds.CONTENT, id="content", init=self._content))
        inner = Registration(kind=kinds.SNAPSHOTTER, id="odd", requires=(kinds.CONTENT,), init=self._init)
        moved = isolate_plugin(inner, IN_THREAD)
        assert moved is not None
        self.plugin = self.registry.add(moved)
        self.daemon = daemon(tmp_path, self.bus)

    async def _content(self, _context: InitContext[PluginConfig]) -> object:
        return self.content

    async def _init(self, started: InitContext[PluginConfig]) -> object:
        odd = Odd(started)
        started.on_stop(odd.close)
        self.made.append(odd)
        return odd


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    made = Setup(tmp_path)
    async with made.registry.run(made.daemon, lambda _registration: PluginConfig()):
        assert (made.plugin.state, made.plugin.reason) == (State.LOADED, "")
        yield made


async def test_calls_run_in_the_thread_in_the_namespace_of_their_caller(setup: Setup) -> None:
    with context.use(namespace="ns1"):
        ident, namespace = await setup.plugin.instance.where()
    assert namespace == "ns1"
    assert ident != threading.get_ident()


async def test_results_errors_and_streams_come_back(setup: Setup) -> None:
    snapshotter = setup.plugin.instance
    assert (await snapshotter.prepare("ns/1/a"))[0].source == "fake/ns/1/a"
    assert [info.name async for info in snapshotter.walk()] == ["ns/1/a"]
    with pytest.raises(NotFound, match="snapshot b does not exist"):
        await snapshotter.stat("b")
    numbers = snapshotter.fails_midway()
    assert await anext(numbers) == 1
    with pytest.raises(NotFound, match="the rest"):
        await anext(numbers)


async def test_a_plugin_that_blocks_its_thread_does_not_block_the_daemon(setup: Setup) -> None:
    released: list[bool] = []

    async def block() -> None:
        released.append(await setup.plugin.instance.block())

    async with anyio.create_task_group() as group:
        group.start_soon(block)
        assert await asyncio.to_thread(setup.made[0].busy.wait, 10)
        await anyio.sleep(0.01)
        setup.made[0].goes_on.set()
    assert released == [True]


async def test_who_gives_up_waiting_goes_on_and_the_call_is_cancelled_there(setup: Setup) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(setup.plugin.instance.hang)
        assert await asyncio.to_thread(setup.made[0].busy.wait, 10)
        group.cancel_scope.cancel()
    assert await asyncio.to_thread(setup.made[0].cancelled.wait, 10)


async def test_other_plugins_are_called_in_the_daemons_loop(setup: Setup) -> None:
    digest = setup.content.put(b"layer")
    assert await setup.plugin.instance.read(digest) == b"layer"
    assert await setup.plugin.instance.lend(setup.content) == [digest]


async def test_events_go_both_ways(setup: Setup) -> None:
    bus = setup.made[0].started.bus

    async def publish() -> None:
        bus.publish("/snapshot/remove", EVENT)

    async def hear() -> str:
        with bus.subscribe() as envelopes:
            listening.set()
            async for envelope in envelopes:
                return envelope.topic
        return ""

    listening = threading.Event()
    loop = _loop_of(setup.plugin.instance)
    with setup.bus.subscribe() as heard, context.use(namespace="ns1"):
        asyncio.run_coroutine_threadsafe(publish(), loop)
        envelope = await anext(aiter(heard))
        assert (envelope.topic, envelope.namespace) == ("/snapshot/remove", "ns1")
        hearing = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(hear(), loop))
        assert await asyncio.to_thread(listening.wait, 10)
        setup.bus.publish("/snapshot/remove", EVENT)
        assert await hearing == "/snapshot/remove"


async def test_the_plugin_is_closed_in_its_thread_which_ends(tmp_path: Path) -> None:
    made = Setup(tmp_path)
    before = set(threading.enumerate())
    async with made.registry.run(made.daemon, lambda _registration: PluginConfig()):
        (thread,) = (t for t in set(threading.enumerate()) - before if t.name == f"plugin {made.plugin.uri}")
    assert made.made[0].closed_in == thread.ident
    assert not thread.is_alive()


async def test_what_would_end_the_thread_is_an_error_of_its_call(setup: Setup) -> None:
    snapshotter = setup.plugin.instance
    with pytest.raises(RuntimeError, match=r"^SystemExit: 3$"):
        await snapshotter.leave()
    numbers = snapshotter.leaves_midway()
    assert await anext(numbers) == 1
    with pytest.raises(RuntimeError, match=r"^SystemExit: 4$"):
        await anext(numbers)
    assert (await snapshotter.prepare("ns/1/a"))[0].source == "fake/ns/1/a"


async def test_what_fails_at_the_end_is_logged_and_ends_the_thread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = Setup(tmp_path)
    async with made.registry.run(made.daemon, lambda _registration: PluginConfig()):
        made.made[0].started.on_stop(made.made[0].leave)
    assert f"plugin {made.plugin.uri} failed to stop" in caplog.messages
    assert not _threads_named(f"plugin {made.plugin.uri}")


async def test_a_task_that_outlives_the_plugin_is_told_and_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = Setup(tmp_path)
    async with made.registry.run(made.daemon, lambda _registration: PluginConfig()):
        await made.plugin.instance.cleanup()
    assert made.made[0].forgotten.cancelled()
    assert made.plugin.health.leaked == ["forgotten"]
    assert f"plugin {made.plugin.uri} leaves 1 tasks running at its end: forgotten" in caplog.messages


async def test_a_failing_init_fails_the_plugin_and_ends_the_thread(tmp_path: Path) -> None:
    async def init(_context: InitContext[PluginConfig]) -> object:
        raise OSError("no such disk")

    moved = isolate_plugin(Registration(kind=kinds.SNAPSHOTTER, id="odd", init=init), IN_THREAD)
    assert moved is not None
    registry = Registry()
    plugin = registry.add(moved)
    async with registry.run(daemon(tmp_path, EventBus()), lambda _registration: PluginConfig()):
        assert plugin.state == State.FAILED
        assert "no such disk" in plugin.reason
    assert not _threads_named(f"plugin {plugin.uri}")


def _threads_named(name: str) -> Sequence[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def _loop_of(instance: Any) -> asyncio.AbstractEventLoop:
    target = getattr(instance, "_target", instance)
    loop: asyncio.AbstractEventLoop = (target if hasattr(target, "_loop") else instance)._loop
    return loop
