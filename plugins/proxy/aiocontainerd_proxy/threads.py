"""`isolation = "thread"`: a plugin in an event loop and a thread of its own.

What blocks there blocks nobody else: a call is handed over and awaited, and whoever gives up waiting goes on. Calls
carry their namespace and lease, and a cancelled call is cancelled over there. What the plugin gets from the daemon,
other plugins and the event bus, is handed over the other way round.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import uvloop

from aiocontainerd.guard.owners import marking_tasks
from aiocontainerd.host.life import FAILURES, PluginTasks
from aiocontainerd.host.running import end_left_tasks
from aiocontainerd.plugin import InitContext, Registration
from aiocontainerd_proxy.handover import LoopBus, carried, run_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiocontainerd.guard.health import PluginHealth
    from aiocontainerd.guard.owners import Owners

log = logging.getLogger(__name__)

POLL_S = 0.002


async def open_in_thread(context: InitContext[Any], registration: Registration) -> object:
    """Start the thread, run the plugin's init there; the instance as others may call it from here."""
    home = Home(context.uri, context.health, context.daemon.owners)
    context.on_stop(home.aclose)
    await home.start()
    context.exports["isolation"] = "thread"
    inside = ThreadContext(context, home, asyncio.get_running_loop())
    instance = await run_in(home.loop, registration.init, inside)
    return carried(instance, home.loop)


class Home:
    """A thread with an event loop, and what a plugin has in it: tasks, and what to do at the end.

    It is made, started and closed in the daemon's loop.
    """

    def __init__(self, uri: str, health: PluginHealth, owners: Callable[[], Owners]) -> None:
        self.uri = uri
        self._health = health
        self._owners = owners
        self.loop = uvloop.new_event_loop()
        self.stack = AsyncExitStack()
        self.tasks: PluginTasks | None = None
        self._leave: asyncio.Event | None = None
        self._outer = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        # A thread that hangs must not keep the daemon from ending.
        self._thread = threading.Thread(target=self._run, name=f"plugin {uri}", daemon=True)

    def __repr__(self) -> str:
        return f"<Home of {self.uri} {'running' if self._thread.is_alive() else 'ended'}>"

    async def start(self) -> None:
        """Start the thread and wait for its loop."""
        self._thread.start()
        await self._ready.wait()

    async def aclose(self) -> None:
        """End the plugin in its thread, then the thread. One that hangs is waited for until the caller gives up."""
        if self._thread.is_alive() and self._leave is not None:
            self.loop.call_soon_threadsafe(self._leave.set)
            while self._thread.is_alive():  # noqa: ASYNC110 - the end of a thread sets no event, joining it blocks
                await anyio.sleep(POLL_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._live())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self.loop.close()

    async def _live(self) -> None:
        self._leave = asyncio.Event()
        with marking_tasks(self.loop):
            await self._live_until(self._leave)
            await end_left_tasks(self._owners(), {self.uri: self._health})

    async def _live_until(self, leave: asyncio.Event) -> None:
        async with anyio.create_task_group() as group:
            self.tasks = PluginTasks(self.uri, group)
            try:
                async with self.stack:
                    self._outer.call_soon_threadsafe(self._ready.set)
                    await leave.wait()
            except FAILURES:  # the edge of a plugin, as in the daemon's own loop
                log.exception("plugin %s failed to stop", self.uri)
            group.cancel_scope.cancel()


class ThreadContext(InitContext[Any]):
    """The context of an init that runs in a thread of its own. `outer` is the one of the daemon's loop."""

    def __init__(self, outer: InitContext[Any], home: Home, daemon_loop: asyncio.AbstractEventLoop) -> None:
        assert home.tasks is not None
        daemon = msgspec.structs.replace(outer.daemon, bus=LoopBus(outer.bus, daemon_loop))
        super().__init__(
            outer._plugin,
            outer.config,
            daemon=daemon,
            loaded=outer._loaded,
            tasks=home.tasks,
            stack=home.stack,
            registered=outer._registered,
            watchers=outer._watchers,
        )
        self._loop = daemon_loop

    def get(self, kind: str, plugin_id: str) -> Any:
        """As InitContext's; the instance may be called from the plugin's thread."""
        return carried(super().get(kind, plugin_id), self._loop)

    def get_single(self, kind: str) -> Any:
        """As InitContext's; the instance may be called from the plugin's thread."""
        return carried(super().get_single(kind), self._loop)

    def get_all(self, kind: str) -> dict[str, Any]:
        """As InitContext's; the instances may be called from the plugin's thread."""
        return {plugin_id: carried(instance, self._loop) for plugin_id, instance in super().get_all(kind).items()}

    def watch(self, kind: str, changed: Callable[[str, Any | None], object]) -> None:
        """As InitContext's; `changed` is called in the plugin's thread."""
        home = asyncio.get_running_loop()

        def told(plugin_id: str, instance: Any | None) -> None:
            given = None if instance is None else carried(instance, self._loop)
            home.call_soon_threadsafe(changed, plugin_id, given)

        super().watch(kind, told)
