"""Plugins: what one registers, the order they start in, and what became of each.

A plugin registers a kind, an id, the kinds it requires, a config Struct and an `init` coroutine. `start` runs the inits
in dependency order; an init returns the plugin's instance, raises `SkipPlugin` (expected here, with a reason) or
fails. Whatever depends on a plugin that failed is not started, and says which one caused it. `stop` closes in
reverse order. Nothing here knows what a snapshotter is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio
import msgspec

from aiocontainerd import kinds
from aiocontainerd.errors import ContainerdError, NotFound

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from aiocontainerd.events import EventBus

log = logging.getLogger(__name__)


class PluginConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every plugin's config: a frozen record of typed keys with defaults. Unknown keys are refused."""


class SkipPlugin(Exception):
    """Raised by an init that finds it has no business here, such as a kernel without overlayfs. The text says why."""


class PluginError(Exception):
    """A registration that cannot be used: a duplicate, a circular need, a missing required plugin."""


ConfigT = TypeVar("ConfigT", bound=PluginConfig)


class State(StrEnum):
    """What became of a plugin."""

    REGISTERED = "registered"
    DISABLED = "disabled"
    LOADED = "ok"
    SKIPPED = "skip"
    FAILED = "error"


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin's hook returns. `requires` names kinds; `kinds.ALL` means everything that is not a server."""

    kind: str
    id: str
    init: Callable[[InitContext[Any]], Awaitable[object]]
    requires: tuple[str, ...] = ()
    config: type[PluginConfig] = PluginConfig

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
            raise NotFound(f"plugin {kind}.{plugin_id}")
        return plugin.instance

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

    def on_stop(self, callback: Callable[[], Awaitable[object]]) -> None:
        """Run `callback` when the plugin stops; last registered runs first."""
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


class Registry:
    """All registrations of one daemon."""

    def __init__(self) -> None:
        self._plugins: dict[str, Plugin] = {}
        self._order: list[Plugin] = []

    def __repr__(self) -> str:
        return f"<Registry {self.statistics()}>"

    def statistics(self) -> dict[str, int]:
        """How many plugins are in each state."""
        counts: dict[str, int] = {}
        for plugin in self._plugins.values():
            counts[plugin.state] = counts.get(plugin.state, 0) + 1
        return counts

    def add(self, registration: Registration, distribution: str = "") -> Plugin:
        """Take a registration. Raises PluginError where its URI is taken."""
        present = self._plugins.get(registration.uri)
        if present is not None:
            raise PluginError(
                f"plugin {registration.uri} is registered twice: by {present.distribution or 'the daemon'} "
                f"and by {distribution or 'the daemon'}"
            )
        plugin = Plugin(registration, distribution)
        self._plugins[registration.uri] = plugin
        return plugin

    def add_failed(self, uri: str, reason: str, distribution: str = "") -> Plugin:
        """Keep a row for something that could not even register, so that it is seen in the table."""
        kind, _, plugin_id = uri.rpartition(".")
        plugin = Plugin(Registration(kind=kind, id=plugin_id, init=_never), distribution)
        plugin.state, plugin.reason, plugin.code = State.FAILED, reason, 2
        self._plugins[uri] = plugin
        return plugin

    @property
    def plugins(self) -> Sequence[Plugin]:
        """Every plugin; those that were started come first, in the order they started."""
        rest = [p for p in self._plugins.values() if p not in self._order]
        return [*self._order, *rest]

    def __getitem__(self, uri: str) -> Plugin:
        return self._plugins[uri]

    def get(self, uri: str) -> Plugin | None:
        """The plugin of a URI, if it is registered."""
        return self._plugins.get(uri)

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
        """The plugins to start, each after everything it requires. Raises PluginError for a circular need."""
        enabled = {u: p for u, p in self._plugins.items() if p.state == State.REGISTERED}
        return _dependency_order(enabled)

    @asynccontextmanager
    async def run(
        self,
        daemon: Daemon,
        config_of: Callable[[Registration], PluginConfig],
        required: Sequence[str] = (),
    ) -> AsyncIterator[None]:
        """Start every plugin, run the block, stop them in reverse order.

        `config_of` gives a registration its decoded config; what it raises fails that plugin. A required plugin that
        is missing or did not load raises PluginError after everything that did start is stopped.
        """
        loaded: dict[str, dict[str, Plugin]] = {}
        async with AsyncExitStack() as stack:
            self._order = self.order()
            for plugin in self._order:
                await self._start_one(plugin, daemon, config_of, loaded, stack)
            self._check_required(required)
            yield

    async def _start_one(
        self,
        plugin: Plugin,
        daemon: Daemon,
        config_of: Callable[[Registration], PluginConfig],
        loaded: dict[str, dict[str, Plugin]],
        stack: AsyncExitStack,
    ) -> None:
        started = time.perf_counter()
        own = AsyncExitStack()
        try:
            cause = self._missing_need(plugin, loaded)
            if cause is not None:
                plugin.caused_by = cause.uri
                raise NotFound(f"requires {cause.uri}, which is not loaded")
            tasks = await own.enter_async_context(_plugin_tasks(plugin))
            context = InitContext(
                plugin, config_of(plugin.registration), daemon=daemon, loaded=loaded, tasks=tasks, stack=own
            )
            plugin.instance = await plugin.registration.init(context)
        except SkipPlugin as skip:
            plugin.state, plugin.reason, plugin.code = State.SKIPPED, f"{skip}: skip plugin", 2
        except Exception as error:  # the edge of a plugin: whatever it raises is its outcome
            plugin.state, plugin.reason = State.FAILED, str(error) or type(error).__name__
            plugin.code = error.code if isinstance(error, ContainerdError) else 2
            log.debug("plugin %s failed", plugin.uri, exc_info=error)
        else:
            plugin.state = State.LOADED
            loaded.setdefault(plugin.kind, {})[plugin.id] = plugin
            stack.push_async_exit(own)
            return
        finally:
            plugin.init_s = time.perf_counter() - started
        await own.aclose()

    def _missing_need(self, plugin: Plugin, loaded: Mapping[str, Mapping[str, Plugin]]) -> Plugin | None:
        """A plugin that failed and leaves a required kind without any; None where every need is met or optional."""
        for kind in plugin.registration.requires:
            if kind == kinds.ALL or loaded.get(kind):
                continue
            candidates = [p for p in self._plugins.values() if p.kind == kind]
            failed = [p for p in candidates if p.state == State.FAILED]
            if failed:
                return failed[0]
        return None

    def _check_required(self, required: Sequence[str]) -> None:
        for uri in required:
            plugin = self._plugins.get(uri)
            if plugin is None:
                raise PluginError(f"required plugin {uri} is not installed")
            if plugin.state != State.LOADED:
                raise PluginError(f"required plugin {uri} is not loaded ({plugin.state}): {plugin.reason}")


def _dependency_order(enabled: Mapping[str, Plugin]) -> list[Plugin]:
    by_kind: dict[str, list[Plugin]] = {}
    for plugin in enabled.values():
        by_kind.setdefault(plugin.kind, []).append(plugin)
    done: dict[str, Plugin] = {}
    trail: list[str] = []

    def needs(plugin: Plugin) -> Iterable[Plugin]:
        for kind in plugin.registration.requires:
            if kind == kinds.ALL:
                yield from (p for p in enabled.values() if kinds.ALL not in p.registration.requires)
            else:
                yield from by_kind.get(kind, ())

    def visit(plugin: Plugin) -> None:
        if plugin.uri in done:
            return
        if plugin.uri in trail:
            circle = " -> ".join([*trail[trail.index(plugin.uri) :], plugin.uri])
            raise PluginError(f"plugins require each other in a circle: {circle}")
        trail.append(plugin.uri)
        for need in needs(plugin):
            if need is not plugin:
                visit(need)
        trail.pop()
        done[plugin.uri] = plugin

    for uri in sorted(enabled):
        visit(enabled[uri])
    return list(done.values())


class PluginTasks:
    """Tasks that end with their plugin. One that fails is logged under the plugin's name and harms nothing else."""

    def __init__(self, plugin: Plugin, group: TaskGroup) -> None:
        self._plugin = plugin
        self._group = group
        self.running: set[str] = set()

    def __repr__(self) -> str:
        return f"<PluginTasks of {self._plugin.uri}: {len(self.running)} running>"

    def start_soon(self, function: Callable[..., Awaitable[object]], *args: object, name: str = "") -> None:
        """Start `function(*args)`; `name` is what logs and dumps call it."""
        label = f"{self._plugin.uri}:{name or getattr(function, '__name__', 'task')}"
        self._group.start_soon(self._guarded, function, args, label, name=label)

    async def _guarded(self, function: Callable[..., Awaitable[object]], args: tuple[object, ...], label: str) -> None:
        self.running.add(label)
        try:
            await function(*args)
        except Exception:  # the edge of a task: a plugin's failure is its own
            log.exception("task %s of plugin %s failed", label, self._plugin.uri)
        finally:
            self.running.discard(label)


@asynccontextmanager
async def _plugin_tasks(plugin: Plugin) -> AsyncIterator[PluginTasks]:
    async with anyio.create_task_group() as group:
        try:
            yield PluginTasks(plugin, group)
        finally:
            group.cancel_scope.cancel()


def _made(directory: Path) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


async def _never(_context: InitContext[Any]) -> object:
    raise PluginError("this plugin could not be loaded")
