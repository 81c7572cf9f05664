"""Start and stop plugins, all of them or one at a time while the others run."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from aiocontainerd import kinds
from aiocontainerd.errors import FailedPrecondition, NotFound
from aiocontainerd.guard import clock
from aiocontainerd.guard.dispatcher import Dispatcher
from aiocontainerd.host import needs
from aiocontainerd.host.init_context import TIMEOUTS, Watcher
from aiocontainerd.host.life import Limits, PluginLife, PluginTasks
from aiocontainerd.host.process_state import Kept
from aiocontainerd.host.readiness import Readiness
from aiocontainerd.host.registration import PluginError, StartRefused
from aiocontainerd.host.state import Plugin, State, is_first_party

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from aiocontainerd.config.plugin import PluginConfig
    from aiocontainerd.host.daemon_info import DaemonInfo
    from aiocontainerd.host.init_context import InitContext
    from aiocontainerd.host.registration import Registration

log = logging.getLogger(__name__)


class Running:
    """The plugins that run, from the start of the daemon to its end.

    `make_context` returns the InitContext of a plugin. `check` raises if an instance cannot be used.
    """

    def __init__(
        self,
        daemon: DaemonInfo,
        group: TaskGroup,
        *,
        config_of: Callable[[Registration], PluginConfig],
        make_context: Callable[[Plugin, PluginConfig, Running, PluginTasks, AsyncExitStack], InitContext[Any]],
        check: Callable[[str, object], object] | None,
    ) -> None:
        self.daemon = daemon
        self.loaded: dict[str, dict[str, Plugin]] = {}
        self.watchers: list[Watcher] = []
        self.lives: dict[str, PluginLife] = {}
        self.readiness = Readiness()
        self._removed: list[PluginLife] = []
        self._stopping = False
        self._group = group
        self._config_of = config_of
        self._make_context = make_context
        self._check = check
        self._dispatcher = Dispatcher(daemon.timeout_s)

    def __repr__(self) -> str:
        return f"<Running {len(self.lives)} plugins, {self._dispatcher!r}>"

    async def start(self, plugin: Plugin, registered: Iterable[Plugin]) -> None:
        """Start a plugin. Its state says what became of it."""
        registered = list(registered)
        cause = _missing_need(plugin, self.loaded, [p for p in registered if p.state == State.FAILED])
        if cause is not None:
            plugin.caused_by = cause.caused_by or cause.uri
            plugin.failed(NotFound(f"requires {cause.uri}, which is not loaded"))
            return
        unknown = _unknown_need(plugin, registered)
        if unknown:
            plugin.failed(NotFound(unknown))
            return
        started = time.perf_counter()
        kept = None if is_first_party(plugin.distribution) else Kept()
        life = self.lives[plugin.uri] = PluginLife(
            plugin.uri,
            partial(self._init, plugin),
            Limits.of(self.daemon.timeout_s, plugin.uri),
            plugin.registration.init.__module__,
        )
        before = clock.running.set(clock.Clock(""))  # its life is nobody's task, whoever asked for it
        self._group.start_soon(life.run, name=f"plugin {plugin.uri}")
        clock.running.reset(before)
        await life.begun()
        if kept is not None:
            kept.undo(f"plugin {plugin.uri}")
            kept.close()
        if self._stopping:
            await life.stop()
        plugin.init_s = time.perf_counter() - started
        if life.failure is None:
            plugin.loaded(self._dispatcher.guard(plugin.health, plugin.kind, life.instance))
            self.loaded.setdefault(plugin.kind, {})[plugin.id] = plugin
        else:
            plugin.failed(life.failure)
            plugin.reason += self._own_socket(plugin.reason)
            if isinstance(life.failure, StartRefused):
                raise life.failure

    def _own_socket(self, reason: str) -> str:
        """Return what to do for an init that called the daemon by its socket, which nobody serves yet; else ""."""
        if not self.daemon.grpc_address or f"connection to {self.daemon.grpc_address}" not in reason:
            return ""
        return (
            ", the daemon's own socket, which is served after every plugin has started: call it in a task, after "
            "`await context.ready()`, or ask the plugins themselves, by `context.get`"
        )

    async def stop(self, plugin: Plugin) -> None:
        """Stop a plugin that no other plugin needs any more."""
        self.loaded.get(plugin.kind, {}).pop(plugin.id, None)
        life = self.lives.pop(plugin.uri, None)
        if life is not None:
            self._removed.append(life)
            await life.stop()
            self._removed = [life for life in self._removed if not life.ended]

    async def stop_all(self) -> None:
        """Stop all plugins in reverse order, or all at the same time if the daemon itself is cancelled."""
        self._stopping = True
        self.readiness.stops()
        lives = [*self.lives.values()]
        try:
            for life in reversed(lives):
                await life.stop()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                for life in reversed(lives):
                    await life.stop_at_once()
            raise

    def stuck(self) -> list[str]:
        """Return the URIs of plugins that were stopped and have not ended."""
        return [life.uri for life in (*self.lives.values(), *self._removed) if not life.ended]

    def tell(self, plugin: Plugin, instance: Any | None) -> None:
        """Tell the watchers of a plugin's kind that it is here, or, with None, that it goes."""
        for watcher in [watcher for watcher in self.watchers if watcher.kind == plugin.kind]:
            try:
                watcher.changed(plugin.id, instance)
            except Exception:  # the edge of a plugin: what it makes of the news is its own
                log.exception("plugin %s does not follow the change of %s", watcher.uri, plugin.uri)

    def set_deadlines(self) -> None:
        """Apply `[timeouts]` as they are now, and tell the plugins that watch them."""
        self._dispatcher.set_deadlines()
        for life in self.lives.values():
            life.limits = Limits.of(self.daemon.timeout_s, life.uri)
        for watcher in [watcher for watcher in self.watchers if watcher.kind == TIMEOUTS]:
            try:
                watcher.changed("", None)
            except Exception:  # the edge of a plugin: it goes on with the deadlines it has
                log.exception("plugin %s does not follow the change of timeouts", watcher.uri)

    def require_unneeded(self, plugin: Plugin) -> None:
        """Raise FailedPrecondition if another plugin uses this one and does not watch its kind."""
        told = {watcher.uri for watcher in self.watchers if watcher.kind == plugin.kind}
        loaded = [other for of_kind in self.loaded.values() for other in of_kind.values()]
        if plugin not in loaded:
            return
        needs = [
            p.uri
            for p in loaded
            if p is not plugin and plugin.kind in (*p.registration.requires, *p.registration.wants)
        ]
        holders = sorted(uri for uri in needs if uri not in told)
        if holders:
            raise FailedPrecondition(f"plugin {plugin.uri} is in use by {', '.join(holders)}: restart needed")

    async def _init(self, plugin: Plugin, tasks: PluginTasks, stack: AsyncExitStack) -> object:
        config = self._config_of(plugin.registration)
        context = self._make_context(plugin, config, self, tasks, stack)
        plugin.health.tasks = tasks.running
        initialised: Any = plugin.registration.init(context)
        if not inspect.isawaitable(initialised):
            raise PluginError(f"init of {plugin.uri} is not async; write `async def init`")
        instance: object = await initialised
        if self._check is not None:
            self._check(plugin.kind, instance)
        return instance


def _unknown_need(plugin: Plugin, registered: Sequence[Plugin]) -> str:
    """Return what is wrong with a required kind that neither the daemon nor any plugin knows, "" if there is none.

    A kind of containerd's without a plugin is no error, as in containerd: the init says whether it can do without.
    """
    rows = [(other.kind, other.uri, other.reason) for other in registered]
    here = {other.kind for other in registered} | needs.KNOWN | {kinds.ALL}
    unknown = [kind for kind in plugin.registration.requires if kind not in here]
    return f"requires {unknown[0]}: {needs.why_none(unknown[0], rows)}" if unknown else ""


def _missing_need(plugin: Plugin, loaded: dict[str, dict[str, Plugin]], failed: Sequence[Plugin]) -> Plugin | None:
    """Return a failed plugin that leaves a required kind without any plugin, None if every need is met."""
    for kind in plugin.registration.requires:
        if kind == kinds.ALL or loaded.get(kind):
            continue
        for other in failed:
            if other.kind == kind:
                return other
    return None
