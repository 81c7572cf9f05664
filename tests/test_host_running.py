"""Plugins that come and go while the others run, and what they leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from aiocontainerd.errors import FailedPrecondition, NotFound
from aiocontainerd.events import EventBus
from aiocontainerd.host import leftovers
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.registry import Registry
from aiocontainerd.plugin import InitContext, PluginConfig, PluginError, Registration, State, kinds

pytestmark = pytest.mark.anyio

Init = Callable[[InitContext[Any]], Awaitable[object]]
SNAPSHOTTER, METADATA = kinds.SNAPSHOTTER, kinds.METADATA


class Acme:
    """A snapshotter of one method."""

    async def stat(self, key: str) -> str:
        return key


async def init(_context: InitContext[Any]) -> object:
    return Acme()


def registration(plugin_id: str, *requires: str, kind: str = SNAPSHOTTER, init: Init = init) -> Registration:
    return Registration(kind=kind, id=plugin_id, requires=requires, init=init)


@asynccontextmanager
async def run(
    directory: Path,
    *registrations: Registration,
    stuck: list[str] | None = None,
    timeout_s: Callable[[str], float] = lambda _key: 5.0,
) -> AsyncIterator[Registry]:
    registry = Registry()
    for one in registrations:
        registry.add(one, "acme")
    daemon = DaemonInfo(
        root=directory / "root",
        state=directory / "state",
        temp=directory,
        grpc_address="",
        ttrpc_address="",
        bus=EventBus(),
        plugins=lambda: registry.plugins,
        timeout_s=timeout_s,
    )
    left = stuck if stuck is not None else []
    async with registry.run(daemon, lambda r: r.config(), last_resort=lambda uris, _failure: left.extend(uris)):
        yield registry
    assert stuck is not None or not left


class Watching:
    """A plugin that follows the snapshotters."""

    def __init__(self, *, watches: bool = True) -> None:
        self.watches = watches
        self.news: list[tuple[str, object]] = []

    async def init(self, context: InitContext[PluginConfig]) -> object:
        if self.watches:
            context.watch(SNAPSHOTTER, lambda plugin_id, instance: self.news.append((plugin_id, instance)))
        return self

    def registration(self) -> Registration:
        return registration("m", SNAPSHOTTER, kind=METADATA, init=self.init)


async def test_a_plugin_added_while_running_is_told_with_its_guarded_instance(tmp_path: Path) -> None:
    watching = Watching()
    async with run(tmp_path, watching.registration()) as registry:
        plugin = await registry.add_running(registration("late"), "late-package")
        assert (plugin.state, plugin.distribution) == (State.LOADED, "late-package")
        assert watching.news == [("late", plugin.instance)]
        assert await plugin.instance.stat("k") == "k"
        assert plugin.health.methods["stat"].calls == 1
        assert registry.plugins[-1] is plugin


async def test_a_plugin_that_fails_when_it_is_added_has_a_row_and_nobody_is_told(tmp_path: Path) -> None:
    async def broken(_context: InitContext[Any]) -> object:
        raise OSError("no disk")

    watching = Watching()
    async with run(tmp_path, watching.registration()) as registry:
        plugin = await registry.add_running(registration("late", init=broken))
        assert (plugin.state, watching.news) == (State.FAILED, [])
        assert "no disk" in plugin.reason


async def test_a_removed_plugin_is_told_stopped_and_forgotten_and_may_come_again(tmp_path: Path) -> None:
    stopped: list[str] = []

    async def stoppable(context: InitContext[Any]) -> object:
        async def stop() -> None:
            stopped.append(context.uri)

        context.on_stop(stop)
        return Acme()

    watching = Watching()
    async with run(tmp_path, watching.registration(), registration("a", init=stoppable)) as registry:
        uri = f"{SNAPSHOTTER}.a"
        await registry.remove_running(uri)
        assert (watching.news, stopped) == ([("a", None)], [uri])
        assert registry.get(uri) is None
        assert uri not in [plugin.uri for plugin in registry.plugins]
        assert (await registry.add_running(registration("a"))).state == State.LOADED


async def test_a_plugin_that_somebody_holds_unwatched_stays(tmp_path: Path) -> None:
    async with run(tmp_path, Watching(watches=False).registration(), registration("a")) as registry:
        with pytest.raises(FailedPrecondition) as refused:
            await registry.remove_running(f"{SNAPSHOTTER}.a")
        assert str(refused.value) == f"plugin {SNAPSHOTTER}.a is in use by {METADATA}.m: restart needed"
        assert registry[f"{SNAPSHOTTER}.a"].state == State.LOADED


async def test_what_is_unknown_or_taken_is_refused(tmp_path: Path) -> None:
    async with run(tmp_path, registration("a")) as registry:
        with pytest.raises(NotFound):
            await registry.remove_running(f"{SNAPSHOTTER}.b")
        with pytest.raises(PluginError, match="registered twice"):
            await registry.add_running(registration("a"), "other")
    with pytest.raises(PluginError, match="the daemon is not running"):
        await registry.add_running(registration("b"))


async def test_a_watcher_that_fails_keeps_nobody_from_the_news(tmp_path: Path) -> None:
    async def broken(context: InitContext[Any]) -> object:
        def fail(_id: str, _instance: object) -> None:
            raise OSError("no ears")

        context.watch(SNAPSHOTTER, fail)
        return object()

    watching = Watching()
    first = registration("m0", SNAPSHOTTER, kind=METADATA, init=broken)
    async with run(tmp_path, first, watching.registration()) as registry:
        await registry.add_running(registration("late"))
        assert [plugin_id for plugin_id, _ in watching.news] == ["late"]


async def linger() -> None:
    await asyncio.sleep(3600)


async def test_a_task_that_outlives_its_plugin_is_told_and_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks: list[asyncio.Task[None]] = []

    async def leaking(context: InitContext[Any]) -> object:
        tasks.append(asyncio.get_running_loop().create_task(linger(), name=f"{context.uri}: forgotten"))
        return Acme()

    async with run(tmp_path, registration("a", init=leaking)) as registry:
        pass
    assert tasks[0].cancelled()
    (leaked,) = registry[f"{SNAPSHOTTER}.a"].health.leaked
    assert leaked.startswith(f"{SNAPSHOTTER}.a: forgotten (linger at {__file__}:")
    assert "leaves 1 tasks running at its end" in caplog.text


async def test_a_task_that_cannot_be_ended_is_the_last_resorts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "LEFT_TASKS_S", 0.05)
    over = anyio.Event()
    stuck: list[str] = []

    async def deaf() -> None:
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                continue

    async def leaking(context: InitContext[Any]) -> object:
        tasks.append(asyncio.get_running_loop().create_task(deaf(), name=f"{context.uri}: deaf"))
        return Acme()

    tasks: list[asyncio.Task[None]] = []
    async with run(tmp_path, registration("a", init=leaking), stuck=stuck):
        await asyncio.sleep(0)
    assert stuck == [f"{SNAPSHOTTER}.a"]
    over.set()
    await tasks[0]


async def test_deadlines_that_change_hold_for_calls_lives_and_who_keeps_some(tmp_path: Path) -> None:
    seconds = {"now": 5.0}
    told: list[float] = []

    async def keeping(context: InitContext[Any]) -> object:
        context.watch_timeouts(lambda: told.append(context.daemon.timeout_s("any")))
        context.watch_timeouts(lambda: 1 // 0)
        return Acme()

    async with run(tmp_path, registration("a", init=keeping), timeout_s=lambda _key: seconds["now"]) as registry:
        seconds["now"] = 7.0
        registry.set_deadlines()
        assert registry._running is not None
        (life,) = registry._running.lives.values()
        assert (life.limits.init_s, life.limits.stop_s, told) == (7.0, 7.0, [7.0])
        assert registry[f"{SNAPSHOTTER}.a"].health.methods["stat"].limit_s == 7.0
    registry.set_deadlines()
    assert told == [7.0], "a plugin that has gone is told nothing"
