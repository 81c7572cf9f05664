"""What a plugin is given to start with: its config and directories, other plugins, tasks, clean-up, readiness."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

import anyio
import msgspec

from aiocontainerd import kinds
from aiocontainerd.config.timeouts import Timeout, seconds_for
from aiocontainerd.errors import NotFound
from aiocontainerd.host import needs
from aiocontainerd.host.life import require_async
from aiocontainerd.host.registration import ConfigT, PluginError
from aiocontainerd.host.state import Plugin, State, is_first_party

if TYPE_CHECKING:
    from aiocontainerd.events import EventBus
    from aiocontainerd.host.daemon_info import DaemonInfo
    from aiocontainerd.host.life import PluginTasks
    from aiocontainerd.host.readiness import Readiness

TIMEOUTS = "timeouts"
"""The `kind` of a watcher that follows `[timeouts]`."""


class Watcher(msgspec.Struct, frozen=True):
    """A plugin that is told when plugins of a kind come and go."""

    uri: str
    kind: str
    changed: Callable[[str, Any | None], object]


class InitContext(Generic[ConfigT]):
    """What an init gets.

    `config` is the plugin's decoded config. `root` and `state` are directories of its own. `bus` is the event bus.
    `tasks` starts tasks that end with the plugin. `log` is the plugin's logger. `daemon` has facts about the daemon.
    `exports`, `capabilities` and `platforms` are what introspection shows of the plugin; the init may change them.
    """

    def __init__(
        self,
        plugin: Plugin,
        config: ConfigT,
        *,
        daemon: DaemonInfo,
        loaded: Mapping[str, Mapping[str, Plugin]],
        tasks: PluginTasks,
        stack: AsyncExitStack,
        registered: Callable[[str], Plugin | None],
        watchers: list[Watcher],
        readiness: Readiness,
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
        self._readiness = readiness
        self._home = anyio.get_current_task().id
        self.health = plugin.health
        """Counters and state of this plugin. A plugin in another process reports its memory here."""

    @property
    def uri(self) -> str:
        """`<kind>.<id>` of this plugin."""
        return self._plugin.uri

    @property
    def root(self) -> Path:
        """Persistent directory of this plugin, `<root>/<kind>.<id>`. It is made at the first use."""
        directory = _made(self.daemon.root / self._plugin.uri)
        self._plugin.root = str(directory)
        return directory

    @property
    def state(self) -> Path:
        """Directory of this plugin that a reboot may empty, `<state>/<kind>.<id>`. It is made at the first use."""
        return _made(self.daemon.state / self._plugin.uri)

    def get(self, kind: str, plugin_id: str) -> Any:
        """Return the instance of a required plugin. Raises NotFound, which names it and why it is not loaded."""
        plugin = self._loaded.get(kind, {}).get(plugin_id)
        if plugin is None:
            raise NotFound(f"plugin {self._why_absent(kind, f'{kind}.{plugin_id}')}")
        self._check_named(kind)
        return plugin.instance

    def _why_absent(self, kind: str, uri: str) -> str:
        """Return the URI and why the plugin is not loaded. Note it as the cause in case this plugin fails too."""
        absent = self._registered(uri)
        if absent is None:
            others = sorted(self._loaded.get(kind, {}))
            near = difflib.get_close_matches(uri.removeprefix(f"{kind}."), others, n=1)
            return f"{uri}; did you mean {kind}.{near[0]}?" if near else f"{uri} ({self._none_of(kind)})"
        self._plugin.caused_by = uri
        if absent.state == State.REGISTERED and not self._names(kind):
            return f"{uri} ({self._unnamed(kind)})"
        return f"{uri} ({absent.reason})" if absent.reason else uri

    def _none_of(self, kind: str) -> str:
        loaded = self._loaded.get(kind)
        if loaded:
            return f"plugins of this kind: {', '.join(sorted(loaded))}"
        return needs.why_none(kind, [(other.kind, other.uri, other.reason) for other in self.daemon.plugins()])

    def _names(self, kind: str) -> bool:
        """Return whether this plugin requires or wants a kind."""
        registration = self._plugin.registration
        return not {kind, kinds.ALL}.isdisjoint((*registration.requires, *registration.wants))

    def _unnamed(self, kind: str) -> str:
        return f"not started yet: {self.uri} does not name {kind} in requires"

    def _check_named(self, kind: str) -> None:
        """Log a warning if an init finds plugins of a kind by luck: it does not name the kind, and started later."""
        if self._plugin.state == State.REGISTERED and not self._names(kind) and kind != self._plugin.kind:
            self.log.warning(
                "plugin %s uses %s in its init and does not name it in requires: the order of starting is luck",
                self.uri,
                kind,
            )

    def get_single(self, kind: str) -> Any:
        """Return the instance of the only plugin of a kind. Raises NotFound without one, PluginError for several."""
        found = self.get_all(kind)
        if not found:
            raise NotFound(f"no plugins registered for {kind}: {self._none_of(kind)}")
        if len(found) > 1:
            raise PluginError(
                f"several plugins of kind {kind} are loaded ({', '.join(sorted(found))}), one is needed"
                f"{self._to_disable(kind)}"
            )
        return next(iter(found.values()))

    def _to_disable(self, kind: str) -> str:
        """Return the line that leaves one plugin of a kind: one of another package, where there is exactly one."""
        loaded = self._loaded.get(kind, {}).values()
        ours = sorted(plugin.uri for plugin in loaded if is_first_party(plugin.distribution))
        if len(ours) != len(loaded) - 1:
            return "; name the others in disabled_plugins"
        return f"; to use the other: disabled_plugins = [{', '.join(json.dumps(uri) for uri in ours)}]"

    def get_all(self, kind: str) -> dict[str, Any]:
        """Return every loaded instance of a kind by id.

        Raises NotFound in an init that does not name the kind in `requires` or `wants`, if plugins of it start later.
        """
        if self._plugin.state == State.REGISTERED and not self._names(kind) and self._starts_later(kind):
            raise NotFound(f"plugins of {kind} are {self._unnamed(kind)}")
        if self._loaded.get(kind):
            self._check_named(kind)
        return {plugin_id: plugin.instance for plugin_id, plugin in self._loaded.get(kind, {}).items()}

    def _starts_later(self, kind: str) -> bool:
        others = (plugin for plugin in self.daemon.plugins() if plugin.kind == kind and plugin is not self._plugin)
        return any(plugin.state == State.REGISTERED for plugin in others)

    def watch(self, kind: str, changed: Callable[[str, Any | None], object]) -> None:
        """Call `changed(id, instance)` when a plugin of a kind is added while the daemon runs, with None when one goes.

        A plugin that uses instances of a kind and does not watch it keeps them from being removed without a restart.
        """
        watcher = Watcher(self.uri, kind, changed)
        self._watchers.append(watcher)
        self._stack.callback(self._watchers.remove, watcher)

    async def ready(self) -> bool:
        """Wait until the daemon serves. Return True then, and False where it stops before it ever did.

        For tasks of the plugin (`context.tasks`): the daemon serves only when every init has ended. Raises PluginError
        in an init that would wait for itself. A plugin that is added while the daemon runs does not wait.
        """
        if not self._readiness.decided and anyio.get_current_task().id == self._home:
            raise PluginError(f"init of {self.uri} waits for itself; await context.ready() in a task of context.tasks")
        return await self._readiness.wait()

    def timeout_s(self, timeout: Timeout) -> float:
        """Return the seconds of a key of `[timeouts]` that this plugin declares; 0 means no limit.

        Raises PluginError for a key that its registration does not declare.
        """
        if timeout not in self._plugin.registration.timeouts:
            raise PluginError(f"{self.uri} reads {timeout.key}, but its registration does not declare it in timeouts")
        return self.daemon.timeout_s(timeout.key)

    def timeouts(self) -> dict[str, float]:
        """Return the seconds of each key that this plugin may read, the daemon's own among them."""
        return seconds_for(self.uri, self._plugin.registration.timeouts, self.daemon.timeout_s)

    def watch_timeouts(self, changed: Callable[[], object]) -> None:
        """Call `changed` when a reload changed `[timeouts]`: for a plugin that keeps what `timeout_s` returned."""
        self.watch(TIMEOUTS, lambda _id, _instance: changed())

    def reject(self, uri: str, reason: str) -> None:
        """Mark another plugin as failed because this one cannot use it, and log the reason."""
        self.log.error("plugin %s: %s", uri, reason)
        plugin = self._registered(uri)
        if plugin is not None:
            plugin.failed(PluginError(reason))

    def on_stop(self, callback: Callable[[], Awaitable[object]]) -> None:
        """Run `callback` when the plugin stops, also after a failed init. The last one registered runs first.

        Raises PluginError for what is not an async function.
        """
        require_async(callback, "context.on_stop")
        self._stack.push_async_callback(callback)


def _made(directory: Path) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory
