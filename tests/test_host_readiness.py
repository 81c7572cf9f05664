"""`context.ready`: when it returns, what it returns, and where it must not be awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from aiocontainerd import kinds
from aiocontainerd.events import EventBus
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.registry import Registry
from aiocontainerd.plugin import InitContext, PluginError, Registration, State
from aiocontainerd.testing import host

pytestmark = pytest.mark.anyio


class Waiting:
    """A plugin with a task that waits for the daemon to serve."""

    def __init__(self) -> None:
        self.waits, self.answered = anyio.Event(), anyio.Event()
        self.answer: bool | None = None

    async def init(self, context: InitContext[Any]) -> object:
        async def wait() -> None:
            self.waits.set()
            self.answer = await context.ready()
            self.answered.set()

        context.tasks.start_soon(wait)
        context.on_stop(self.answered.wait)
        return self

    def registration(self, name: str = "acme") -> Registration:
        return Registration(kind=kinds.INTERNAL, id=name, init=self.init)


@asynccontextmanager
async def run(directory: Path, *registrations: Registration) -> AsyncIterator[Registry]:
    registry = Registry()
    for one in registrations:
        registry.add(one)
    daemon = DaemonInfo(
        root=directory, state=directory, temp=directory, grpc_address="", ttrpc_address="", bus=EventBus(),
        plugins=lambda: registry.plugins, timeout_s=lambda _key: 5.0,
    )  # fmt: skip
    async with registry.run(daemon, lambda one: one.config()):
        yield registry


async def test_it_returns_when_the_sockets_accept_and_not_before(tmp_path: Path) -> None:
    waiting = Waiting()
    async with run(tmp_path, waiting.registration()) as registry:
        await waiting.waits.wait()
        await anyio.wait_all_tasks_blocked()
        assert waiting.answer is None
        registry.serves()
        await waiting.answered.wait()
        assert waiting.answer is True


async def test_it_is_false_where_the_daemon_stops_before_it_served(tmp_path: Path) -> None:
    waiting = Waiting()
    async with run(tmp_path, waiting.registration()):
        await waiting.waits.wait()
    assert waiting.answer is False


async def test_a_plugin_that_comes_while_the_daemon_serves_does_not_wait(tmp_path: Path) -> None:
    answers: list[bool] = []

    async def init(context: InitContext[Any]) -> object:
        answers.append(await context.ready())
        return object()

    async with run(tmp_path) as registry:
        registry.serves()
        plugin = await registry.add_running(Registration(kind=kinds.INTERNAL, id="late", init=init))
        assert (plugin.state, answers) == (State.LOADED, [True])


async def test_an_init_that_would_wait_for_itself_fails_in_words(tmp_path: Path) -> None:
    async def init(context: InitContext[Any]) -> object:
        return await context.ready()

    async with run(tmp_path, Registration(kind=kinds.INTERNAL, id="acme", init=init)) as registry:
        assert registry.plugins[0].reason == (
            "init of io.containerd.internal.v1.acme waits for itself; await context.ready() in a task of context.tasks"
        )


async def test_nothing_serves_where_nothing_runs() -> None:
    with pytest.raises(PluginError, match="not running"):
        Registry().serves()


async def test_a_plugin_in_a_test_host_sees_it_serve(tmp_path: Path) -> None:
    waiting = Waiting()
    async with host.running(tmp_path, waiting.registration()):
        await waiting.answered.wait()
        assert waiting.answer is True
