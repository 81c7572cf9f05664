"""All plugins of one daemon, and what became of each.

`run` starts them in the order of need. A plugin that needs one that failed is not started, and names the cause. At the
end `run` stops them in reverse order.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from aiocontainerd.config.hints import nearest_uri
from aiocontainerd.config.plugin import PluginConfig
from aiocontainerd.config.timeouts import CORE
from aiocontainerd.errors import NotFound, Unknown
from aiocontainerd.guard.health import PluginHealth
from aiocontainerd.guard.owners import Owners
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.init_context import InitContext
from aiocontainerd.host.leftovers import end_left_tasks, left_threads
from aiocontainerd.host.order import CircularNeedError, dependency_order
from aiocontainerd.host.registration import PluginError, Registration, StartRefused
from aiocontainerd.host.running import Running
from aiocontainerd.host.state import Plugin, State, is_first_party

if TYPE_CHECKING:
    from aiocontainerd.host.life import PluginTasks


class Registry:
    """All plugins of one daemon. `replaceable` are URIs of its own plugins that another package may take over."""

    def __init__(self, replaceable: Iterable[str] = ()) -> None:
        self.replaceable = frozenset(replaceable)
        self._plugins: dict[str, Plugin] = {}
        self._order: list[Plugin] = []
        self._running: Running | None = None
        self.threads = threading.enumerate()
        """Threads that are no plugin's: none of their modules is loaded yet."""

    def __repr__(self) -> str:
        return f"<Registry {self.statistics()}>"

    def statistics(self) -> dict[str, int]:
        """Return how many plugins are in each state."""
        counts: dict[str, int] = {}
        for plugin in self._plugins.values():
            counts[plugin.state.value] = counts.get(plugin.state.value, 0) + 1
        return counts

    def add(self, registration: Registration, distribution: str = "") -> Plugin:
        """Add a registration. Raises PluginError if its URI is taken, or a timeout is declared in another way.

        If `replaceable` names the URI, a plugin of another package replaces the daemon's own, whichever comes first.
        """
        present = self._plugins.get(registration.uri)
        if present is not None:
            ours = (is_first_party(present.distribution), is_first_party(distribution))
            if ours[0] == ours[1] or registration.uri not in self.replaceable:
                raise PluginError(_twice(registration.uri, present.distribution, distribution, ours[0] != ours[1]))
            if ours[1]:
                return present
        self._check_timeouts(registration)
        plugin = Plugin(registration, distribution)
        self._plugins[registration.uri] = plugin
        return plugin

    def _check_timeouts(self, registration: Registration) -> None:
        """Raise PluginError where a key of `[timeouts]` is declared by another plugin with other words or default."""
        taken = [("the daemon", timeout) for timeout in CORE]
        for plugin in self._plugins.values():
            taken += [(plugin.uri, timeout) for timeout in plugin.registration.timeouts]
        for timeout in registration.timeouts:
            others = [by for by, other in taken if other.key == timeout.key and other != timeout]
            for by in others[:1]:
                raise PluginError(f"plugin {registration.uri} declares {timeout.key} in another way than {by} does")

    def add_failed(
        self, kind: str, plugin_id: str, reason: str, distribution: str = "", *, state: State = State.FAILED
    ) -> Plugin:
        """Add a row for something that could not register, so that the table shows it."""
        plugin = Plugin(Registration(kind=kind, id=plugin_id, init=_never), distribution)
        plugin.state, plugin.reason, plugin.code = state, reason, Unknown.code
        self._plugins[plugin.uri] = plugin
        return plugin

    @property
    def plugins(self) -> Sequence[Plugin]:
        """Every plugin. Those that were started come first, in the order of starting."""
        rest = [p for p in list(self._plugins.values()) if p not in self._order]  # the watchdog's thread asks, too
        return [*self._order, *rest]

    def __getitem__(self, uri: str) -> Plugin:
        return self._plugins[uri]

    def get(self, uri: str) -> Plugin | None:
        """Return the plugin of a URI, None if there is none."""
        return self._plugins.get(uri)

    def health(self, uri: str) -> PluginHealth | None:
        """Return the health of the plugin of a URI, None if there is none."""
        plugin = self._plugins.get(uri)
        return None if plugin is None else plugin.health

    def disable(self, uris: Iterable[str]) -> list[str]:
        """Mark plugins so that they are not started. Return the URIs that no plugin has."""
        unknown = []
        for uri in uris:
            plugin = self._plugins.get(uri)
            if plugin is None:
                unknown.append(uri)
            else:
                plugin.state, plugin.reason = State.DISABLED, "disabled by configuration"
        return unknown

    def check_first(self, root: Path, config_of: Callable[[Registration], PluginConfig]) -> None:
        """Let every plugin look at its part of the daemon's root before anything is written.

        What a check raises fails its plugin. Raises StartRefused if the daemon must not start on this root.
        """
        for plugin in self._plugins.values():
            check = plugin.registration.check
            if check is None or plugin.state != State.REGISTERED:
                continue
            try:
                check(root / plugin.uri, config_of(plugin.registration))
            except StartRefused:
                raise
            except BaseException as error:  # noqa: BLE001 - the edge of a plugin: what it raises is its outcome
                plugin.failed(error)

    def order(self) -> list[Plugin]:
        """Return the plugins to start, each after everything it requires.

        In a circle of plugins that require each other, those of other packages fail; if all are ours, all fail.
        """
        while True:
            enabled = {u: p for u, p in self._plugins.items() if p.state == State.REGISTERED}
            try:
                return dependency_order(enabled)
            except CircularNeedError as error:
                strangers = [plugin for plugin in error.circle if not is_first_party(plugin.distribution)]
                for plugin in strangers or error.circle:
                    plugin.failed(error)

    @asynccontextmanager
    async def run(
        self,
        daemon: DaemonInfo,
        config_of: Callable[[Registration], PluginConfig],
        required: Sequence[str] = (),
        *,
        last_resort: Callable[[list[str], Exception | None], object] | None = None,
        check: Callable[[str, object], object] | None = None,
    ) -> AsyncIterator[None]:
        """Start every plugin, run the block, stop them in reverse order.

        `config_of` returns the decoded config of a registration; what it raises fails that plugin. `check` takes kind
        and instance of each plugin and raises if the instance cannot be used. `last_resort` is called at the end with
        the plugins that cannot be ended, or whose threads cannot, and with the block's error; without it, they are
        waited for. Raises PluginError, after everything is stopped, if a `required` plugin is missing or not loaded,
        and StartRefused as soon as an init does.
        """
        self._order = self.order()
        failure: Exception | None = None
        async with anyio.create_task_group() as group:
            running = Running(daemon, group, config_of=config_of, make_context=self._context, check=check)
            self._running = running
            try:
                for plugin in self._order:
                    await running.start(plugin, self._plugins.values())
                self._check_required(required)
                yield
            except Exception as error:  # noqa: BLE001 - raised again below: inside of the group it would be wrapped
                failure = error
            finally:
                self._running = None
                await running.stop_all()
                owners, healths = self.owners(), {plugin.uri: plugin.health for plugin in self._order}
                stuck = running.stuck() + await end_left_tasks(owners, healths)
                if last_resort is not None:
                    stuck += await left_threads(owners, healths, self.threads)
                    if stuck:
                        last_resort(list(dict.fromkeys(stuck)), failure)
        if failure is not None:
            raise failure

    def serves(self) -> None:
        """Tell the plugins that the sockets accept: `InitContext.ready` returns."""
        self._required_running().readiness.serves()

    async def add_running(self, registration: Registration, distribution: str = "") -> Plugin:
        """Register and start a plugin while the daemon runs, and tell the watchers of its kind.

        The plugin's state says what became of it. Raises PluginError if its URI is taken or the daemon does not run.
        """
        running = self._required_running()
        plugin = self.add(registration, distribution)
        self._order.append(plugin)
        await running.start(plugin, self._plugins.values())
        if plugin.state == State.LOADED:
            running.tell(plugin, plugin.instance)
        return plugin

    async def remove_running(self, uri: str) -> None:
        """Tell the watchers of a plugin's kind, stop the plugin while the daemon runs, and forget it.

        Raises NotFound, and FailedPrecondition if another plugin uses it and does not watch its kind.
        """
        running = self._required_running()
        plugin = self._plugins.get(uri)
        if plugin is None:
            raise NotFound(f"plugin {uri}")
        running.require_unneeded(plugin)
        if plugin.state == State.LOADED:
            running.tell(plugin, None)
        await running.stop(plugin)
        del self._plugins[uri]
        self._order = [other for other in self._order if other is not plugin]

    def set_deadlines(self) -> None:
        """Apply what `DaemonInfo.timeout_s` returns now to the calls that begin from now on."""
        if self._running is not None:
            self._running.set_deadlines()

    def owners(self) -> Owners:
        """Return which plugins the modules of this process belong to."""
        packages: dict[str, list[str]] = {}
        for plugin in self.plugins:
            for package in plugin.packages():
                packages.setdefault(package, []).append(plugin.uri)
        return Owners(packages)

    def _required_running(self) -> Running:
        if self._running is None:
            raise PluginError("the daemon is not running: plugins cannot come or go")
        return self._running

    def _context(
        self, plugin: Plugin, config: PluginConfig, running: Running, tasks: PluginTasks, stack: AsyncExitStack
    ) -> InitContext[Any]:
        return InitContext(
            plugin,
            config,
            daemon=running.daemon,
            loaded=running.loaded,
            tasks=tasks,
            stack=stack,
            registered=self.get,
            watchers=running.watchers,
            readiness=running.readiness,
        )

    def _check_required(self, required: Sequence[str]) -> None:
        for uri in required:
            plugin = self._plugins.get(uri)
            if plugin is None:
                raise PluginError(f"required plugin {uri} is not installed{nearest_uri(uri, self._plugins)}")
            if plugin.state != State.LOADED:
                raise PluginError(f"required plugin {uri} is not loaded ({plugin.state}): {plugin.reason}")


def _twice(uri: str, one: str, other: str, may_replace: bool) -> str:
    hint = f", or name {uri} in plugin_policy.replace" if may_replace else ""
    by = f" by {one}" if one == other and one else f": by {one or 'the daemon'} and by {other or 'the daemon'}"
    return f"plugin {uri} is registered twice{by}; choose another id{hint}"


async def _never(_context: InitContext[Any]) -> object:
    raise PluginError("this plugin could not be loaded")
