"""Plugins: what one registers, the order they start in, and what became of each.

A plugin registers a kind, an id, the kinds it requires, a config Struct and an `init` coroutine. `start` runs the inits
in dependency order; an init returns the plugin's instance, raises `SkipPlugin` (expected here, with a reason) or
fails. Whatever depends on a plugin that failed is not started, and says which one caused it. `stop` closes in
reverse order. Nothing here knows what a snapshotter is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio
import msgspec

from aiocontainerd import diagnosis
from aiocontainerd.attribution import Owners, PluginHealth, marking_tasks, package_of
from aiocontainerd.errors import ContainerdError, NotFound, Unknown
from aiocontainerd.ordering import CircularNeedError, dependency_order
from aiocontainerd.running import TIMEOUTS, Running, Watcher, end_left_tasks

if TYPE_CHECKING:
    from aiocontainerd.events import EventBus
    from aiocontainerd.lifecycle import PluginTasks
    from aiocontainerd.reload import Change

log = logging.getLogger(__name__)


class PluginConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every plugin's config: a frozen record of typed keys with defaults. Unknown keys are refused."""


class SkipPlugin(Exception):
    """Raised by an init that finds it has no business here, such as a kernel without overlayfs. The text says why."""


class PluginError(Exception):
    """A registration that cannot be used: a duplicate, a missing required plugin, an instance that is none."""


ConfigT = TypeVar("ConfigT", bound=PluginConfig)


class State(StrEnum):
    """What became of a plugin."""

    REGISTERED = "registered"
    DISABLED = "disabled"
    LOADED = "ok"
    SKIPPED = "skip"
    FAILED = "error"


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin's hook returns. `requires` names kinds; `kinds.ALL` means everything that is not a server.

    `wants` names kinds that start before it and that it can do without, even where all of them fail. An `early`
    plugin starts, with what it requires, before those that are not.
    """

    kind: str
    id: str
    init: Callable[[InitContext[Any]], Awaitable[object]]
    requires: tuple[str, ...] = ()
    config: type[PluginConfig] = PluginConfig
    wants: tuple[str, ...] = ()
    early: bool = False

    @property
    def uri(self) -> str:
        """`<kind>.<id>`: the plugin's name in config files and messages."""
        return f"{self.kind}.{self.id}"


class Plugin:
    """One registration and its state while the daemon runs."""

    def __init__(self, registration: Registration, distribution: str = "") -> None:
        self.registration = registration
        self.distribution = distribution
        self.state = State.REGISTERED
        self.reason = ""
        self.caused_by = ""
        self.code = 0
        self.instance: Any = None
        """What init returned, guarded (`dispatch`)."""
        self.health = PluginHealth(registration.uri)
        self.exports: dict[str, str] = {}
        self.capabilities: list[str] = []
        self.platforms: list[str] = []
        self.init_s = 0.0

    @property
    def kind(self) -> str:
        return self.registration.kind

    @property
    def id(self) -> str:
        return self.registration.id

    @property
    def uri(self) -> str:
        return self.registration.uri

    def packages(self) -> set[str]:
        """The packages of its code, as far as its registration and instance tell."""
        made = (self.registration.init, self.registration.config, type(self.instance))
        return {package_of(one.__module__) for one in made} - {""}

    def loaded(self, instance: object) -> None:
        """Keep what init returned."""
        self.instance, self.state = instance, State.LOADED
        self.caused_by = ""

    def failed(self, error: Exception) -> None:
        """Keep why the plugin was not loaded: skipped or failed (facts/core 12)."""
        if isinstance(error, SkipPlugin):
            self.state, self.reason, self.code = State.SKIPPED, f"{error}: skip plugin", Unknown.code
            return
        self.state, self.reason = State.FAILED, diagnosis.describe(error, self.registration.init.__module__)
        self.code = error.code if isinstance(error, ContainerdError) else Unknown.code
        log.debug("plugin %s failed", self.uri, exc_info=error)

    def __repr__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"<Plugin {self.uri} {self.state}{reason}>"


class InitContext(Generic[ConfigT]):
    """What a plugin is given to start with.

    `root` and `state` are directories of its own (made on first use), `bus` the event bus, `tasks` starts tasks that
    live no longer than the plugin, `exports` / `capabilities` / `platforms` what introspection shows of it.
    """

    def __init__(
        self,
        plugin: Plugin,
        config: ConfigT,
        *,
        daemon: Daemon,
        loaded: Mapping[str, Mapping[str, Plugin]],
        tasks: PluginTasks,
        stack: AsyncExitStack,
        registered: Callable[[str], Plugin | None],
        watchers: list[Watcher],
    ) -> None:
        self.config = config
        self.daemon = daemon
        self.bus: EventBus = daemon.bus
        self.tasks = tasks
        self.log = logging.getLogger(f"aiocontainerd.plugin.{plugin.uri.removeprefix('io.containerd.')}")
        self.exports = plugin.exports
        self.capabilities = plugin.capabilities
        self.platforms = plugin.platforms
        self._plugin = plugin
        self._loaded = loaded
        self._stack = stack
        self._registered = registered
        self._watchers = watchers
        self.health = plugin.health
        """What the daemon notes of this plugin; one that runs elsewhere tells its memory there."""

    @property
    def uri(self) -> str:
        """`<kind>.<id>` of this plugin."""
        return self._plugin.uri

    @property
    def root(self) -> Path:
        """Persistent directory of this plugin, `<root>/<kind>.<id>`; made when first asked for."""
        return _made(self.daemon.root / self._plugin.uri)

    @property
    def state(self) -> Path:
        """Directory of this plugin that a reboot may empty, `<state>/<kind>.<id>`; made when first asked for."""
        return _made(self.daemon.state / self._plugin.uri)

    def get(self, kind: str, plugin_id: str) -> Any:
        """The instance of a required plugin. Raises NotFound naming it and, where it failed, why."""
        plugin = self._loaded.get(kind, {}).get(plugin_id)
        if plugin is None:
            raise NotFound(f"plugin {self._why_absent(f'{kind}.{plugin_id}')}")
        return plugin.instance

    def _why_absent(self, uri: str) -> str:
        """The URI and, for a plugin that did not load, why; it is then the cause where this plugin fails, too."""
        absent = self._registered(uri)
        if absent is None:
            return uri
        self._plugin.caused_by = uri
        needed = (*self._plugin.registration.requires, *self._plugin.registration.wants)
        if absent.state == State.REGISTERED and absent.kind not in needed:
            return f"{uri} (not started yet: {self.uri} does not name {absent.kind} in requires)"
        return f"{uri} ({absent.reason})" if absent.reason else uri

    def get_single(self, kind: str) -> Any:
        """The instance of the one plugin of a kind. Raises NotFound where there is none, PluginError for several."""
        found = self._loaded.get(kind, {})
        if not found:
            raise NotFound(f"no plugins registered for {kind}")
        if len(found) > 1:
            raise PluginError(f"several plugins of kind {kind} are loaded ({', '.join(sorted(found))}), one is needed")
        return next(iter(found.values())).instance

    def get_all(self, kind: str) -> dict[str, Any]:
        """Every loaded instance of a kind by id; empty where there is none."""
        return {plugin_id: plugin.instance for plugin_id, plugin in self._loaded.get(kind, {}).items()}

    def watch(self, kind: str, changed: Callable[[str, Any | None], object]) -> None:
        """Call `changed(id, instance)` when a plugin of a kind is added while the daemon runs; None when it goes.

        Who holds instances of a kind and does not watch it keeps the daemon from removing one without a restart.
        """
        watcher = Watcher(self.uri, kind, changed)
        self._watchers.append(watcher)
        self._stack.callback(self._watchers.remove, watcher)

    def watch_timeouts(self, changed: Callable[[], object]) -> None:
        """Call `changed` when a reload brought other `[timeouts]`: for what keeps seconds of `Daemon.timeout_s`."""
        self.watch(TIMEOUTS, lambda _id, _instance: changed())

    def reject(self, uri: str, reason: str) -> None:
        """Say of another plugin that this one cannot use it: it has failed, its row and a log record say why."""
        self.log.error("plugin %s: %s", uri, reason)
        plugin = self._registered(uri)
        if plugin is not None:
            plugin.failed(PluginError(reason))

    def on_stop(self, callback: Callable[[], Awaitable[object]]) -> None:
        """Run `callback` when the plugin stops, also after a failed init; last registered runs first."""
        self._stack.push_async_callback(callback)


class Daemon(msgspec.Struct, frozen=True, kw_only=True):
    """What every plugin may know of the daemon it runs in. Addresses are socket paths, empty where not served."""

    root: Path
    state: Path
    temp: Path
    grpc_address: str
    ttrpc_address: str
    bus: EventBus
    plugins: Callable[[], Sequence[Plugin]]
    timeout_s: Callable[[str], float]
    """Seconds of a key of `[timeouts]`, such as `io.containerd.timeout.task.state`."""
    debug: bool = False
    owners: Callable[[], Owners] = Owners.nobody
    """Whose the modules and tasks of this process are."""
    reload: Callable[[], Awaitable[Sequence[Change]]] | None = None
    """Read the config anew; None where that cannot be done. See `reload.Reloader.reload`."""


class Registry:
    """All registrations of one daemon. `replaceable` are the URIs that may be taken from the daemon's own plugins."""

    def __init__(self, replaceable: Iterable[str] = ()) -> None:
        self.replaceable = frozenset(replaceable)
        self._plugins: dict[str, Plugin] = {}
        self._order: list[Plugin] = []
        self._running: Running | None = None

    def __repr__(self) -> str:
        return f"<Registry {self.statistics()}>"

    def statistics(self) -> dict[str, int]:
        """How many plugins are in each state."""
        counts: dict[str, int] = {}
        for plugin in self._plugins.values():
            counts[plugin.state.value] = counts.get(plugin.state.value, 0) + 1
        return counts

    def add(self, registration: Registration, distribution: str = "") -> Plugin:
        """Take a registration. Raises PluginError where its URI is taken.

        Of a plugin of the daemon's own and another one, the other one has the URI where `replaceable` names it.
        """
        present = self._plugins.get(registration.uri)
        if present is not None:
            ours = (is_first_party(present.distribution), is_first_party(distribution))
            if ours[0] == ours[1] or registration.uri not in self.replaceable:
                raise PluginError(_twice(registration.uri, present.distribution, distribution, ours[0] != ours[1]))
            if ours[1]:
                return present
        plugin = Plugin(registration, distribution)
        self._plugins[registration.uri] = plugin
        return plugin

    def add_failed(
        self, kind: str, plugin_id: str, reason: str, distribution: str = "", *, state: State = State.FAILED
    ) -> Plugin:
        """Keep a row for something that could not even register, so that it is seen in the table."""
        plugin = Plugin(Registration(kind=kind, id=plugin_id, init=_never), distribution)
        plugin.state, plugin.reason, plugin.code = state, reason, Unknown.code
        self._plugins[plugin.uri] = plugin
        return plugin

    @property
    def plugins(self) -> Sequence[Plugin]:
        """Every plugin; those that were started come first, in the order they started."""
        rest = [p for p in list(self._plugins.values()) if p not in self._order]  # the watchdog's thread asks, too
        return [*self._order, *rest]

    def __getitem__(self, uri: str) -> Plugin:
        return self._plugins[uri]

    def get(self, uri: str) -> Plugin | None:
        """The plugin of a URI, if it is registered."""
        return self._plugins.get(uri)

    def health(self, uri: str) -> PluginHealth | None:
        """What is noted of a plugin, if it is registered."""
        plugin = self._plugins.get(uri)
        return None if plugin is None else plugin.health

    def disable(self, uris: Iterable[str]) -> list[str]:
        """Mark plugins so that they are not started; returns the URIs that name none of ours."""
        unknown = []
        for uri in uris:
            plugin = self._plugins.get(uri)
            if plugin is None:
                unknown.append(uri)
            else:
                plugin.state, plugin.reason = State.DISABLED, "disabled by configuration"
        return unknown

    def order(self) -> list[Plugin]:
        """The plugins to start, each after everything it requires.

        Of plugins that require each other in a circle, those that are not the daemon's own have failed; all where
        none is another's.
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
        daemon: Daemon,
        config_of: Callable[[Registration], PluginConfig],
        required: Sequence[str] = (),
        *,
        last_resort: Callable[[list[str], Exception | None], object] | None = None,
        check: Callable[[str, object], object] | None = None,
    ) -> AsyncIterator[None]:
        """Start every plugin, run the block, stop them in reverse order.

        `config_of` gives a registration its decoded config; what it raises fails that plugin. A required plugin that
        is missing or did not load raises PluginError after everything that did start is stopped. `last_resort` is
        called at the end with the plugins that cannot be ended, and the block's error; without it they are waited for.
        `check` is given the kind and instance of each plugin and raises where the instance cannot be used.
        """
        self._order = self.order()
        failure: Exception | None = None
        async with AsyncExitStack() as whole:
            whole.enter_context(marking_tasks(asyncio.get_running_loop()))
            group = await whole.enter_async_context(anyio.create_task_group())
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
                left = await end_left_tasks(self.owners(), {plugin.uri: plugin.health for plugin in self._order})
                stuck = running.stuck() + left
                if stuck and last_resort is not None:
                    last_resort(stuck, failure)
        if failure is not None:
            raise failure

    async def add_running(self, registration: Registration, distribution: str = "") -> Plugin:
        """Register and start a plugin while the daemon runs, and tell who watches its kind.

        The plugin's state says what became of it. Raises PluginError where its URI is taken or nothing runs.
        """
        running = self._required_running()
        plugin = self.add(registration, distribution)
        self._order.append(plugin)
        await running.start(plugin, self._plugins.values())
        if plugin.state == State.LOADED:
            running.tell(plugin, plugin.instance)
        return plugin

    async def remove_running(self, uri: str) -> None:
        """Stop a plugin while the daemon runs and forget it; who watches its kind is told before.

        Raises NotFound; FailedPrecondition where a plugin needs it that cannot do without until the next start.
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
        """Have the calls that begin from now on keep the deadlines that `Daemon.timeout_s` gives now."""
        if self._running is not None:
            self._running.set_deadlines()

    def owners(self) -> Owners:
        """Which plugins the modules of the daemon belong to."""
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
        )

    def _check_required(self, required: Sequence[str]) -> None:
        for uri in required:
            plugin = self._plugins.get(uri)
            if plugin is None:
                raise PluginError(f"required plugin {uri} is not installed")
            if plugin.state != State.LOADED:
                raise PluginError(f"required plugin {uri} is not loaded ({plugin.state}): {plugin.reason}")


def is_first_party(distribution: str) -> bool:
    """Whether a distribution is one of the daemon's own: the core, which may be without a name here, or its plugins."""
    return distribution in ("", "aiocontainerd") or distribution.startswith("aiocontainerd-")


def _twice(uri: str, one: str, other: str, may_replace: bool) -> str:
    hint = f", or name {uri} in plugin_policy.replace" if may_replace else ""
    by = f" by {one}" if one == other and one else f": by {one or 'the daemon'} and by {other or 'the daemon'}"
    return f"plugin {uri} is registered twice{by}; choose another id{hint}"


def _made(directory: Path) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


async def _never(_context: InitContext[Any]) -> object:
    raise PluginError("this plugin could not be loaded")
