"""Reading the config anew while the daemon runs: plugins beside the daemon come and go, the rest waits for a restart.

Proxy plugins and plugins that are isolated in a process share nothing with the daemon but a socket, so they are added,
removed, or both where their settings changed. `[timeouts]` hold for the calls that begin from then on; a plugin in a
process of its own, which keeps its deadlines there, is started anew where they changed. Whatever else differs from what
the daemon started with is told as `restart needed`, at every reload, and left as it is.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import anyio
import anyio.to_thread
import msgspec

from aiocontainerd import durations
from aiocontainerd.config import Config, ConfigError
from aiocontainerd.config.records import Isolation
from aiocontainerd.errors import FailedPrecondition, InvalidArgument
from aiocontainerd.host import discovery
from aiocontainerd.host.placement import Placement
from aiocontainerd.host.registration import PluginConfig, PluginError, Registration
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import State
from aiocontainerd.interfaces.plugins import Change

log = logging.getLogger(__name__)

ADDED, REMOVED, REPLACED, APPLIED = "added", "removed", "replaced", "applied"
FAILED, RESTART = "failed", "restart needed"
_FOLLOWED = frozenset(
    {"proxy_plugins", "python_plugins", "plugin_isolation", "disabled_plugins", "timeouts", "imports", "version"}
)
"""Top-level keys that are compared by the plugins and deadlines they make."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin that a config asks for. `beside` are the settings of one beside the daemon; `table` its config.

    With `failure` it is the row of a module that could not even register, and why.
    """

    registration: Registration
    distribution: str
    beside: object = None
    table: object = None
    failure: str = ""


class Apart(msgspec.Struct, frozen=True):
    """How a plugin is kept apart in a process, and the deadlines, in seconds by class, that it keeps there."""

    isolation: Isolation
    timeouts: Mapping[str, float]


Plan = Mapping[str, Wanted]


def wanted_by(config: Config) -> dict[str, Wanted]:
    """Every plugin a config asks for, by URI. Imports what it names. Raises ConfigError."""
    settings = config.settings
    registry = Registry(settings.plugin_policy.replace)
    placement = Placement(settings.proxy_plugins, settings.plugin_isolation, config.stream_processors)
    importlib.invalidate_caches()  # of directories in which packages were installed since
    discovery.discover(registry, settings.python_plugins, settings.plugin_policy, placement)
    discovery.check_config(registry, config)
    return plan_of(registry, placement, config)


def plan_of(registry: Registry, placement: Placement, config: Config) -> dict[str, Wanted]:
    """What discovery found for a config, by URI, before any of it is started."""
    return {
        plugin.uri: Wanted(
            registration=plugin.registration,
            distribution=plugin.distribution,
            beside=_with_deadlines(placement.outside(plugin.registration), plugin.registration, config),
            table=config.plugin_tables.get(plugin.uri),
            failure=plugin.reason,
        )
        for plugin in registry.plugins
        if plugin.state in (State.REGISTERED, State.FAILED) and plugin.uri not in config.settings.disabled_plugins
    }


def _with_deadlines(outside: object, registration: Registration, config: Config) -> object:
    if not isinstance(outside, Isolation):
        return outside
    return Apart(outside, config.timeouts_of(registration))


def changed_timeouts(before: Config, after: Config) -> list[str]:
    """`key = value` of every deadline that differs. Pure."""
    keys = sorted({*after.timeouts, *before.settings.timeouts, *after.settings.timeouts})
    changed = [key for key in keys if before.timeout_s(key) != after.timeout_s(key)]
    return [f"{key} = {durations.render(after.timeout_s(key))}" for key in changed]


def steps(before: Plan, after: Plan, failed: Collection[str] = ()) -> list[tuple[str, str]]:
    """What becomes of each plugin that differs: URI and outcome, removals first. Pure.

    Plugins beside the daemon that are among the URIs of `failed` are tried again.
    """
    found: list[tuple[str, str]] = []
    for uri in sorted({*before, *after}):
        old, new = _registered(before.get(uri)), _registered(after.get(uri))
        outcome = _outcome(old, new)
        if not outcome and new is not None and new.beside is not None and uri in failed:
            outcome = REPLACED
        if outcome:
            found.append((uri, outcome))
    return sorted(found, key=lambda step: step[1] != REMOVED)


def _registered(wanted: Wanted | None) -> Wanted | None:
    return None if wanted is None or wanted.failure else wanted


def failures(started: Plan, after: Plan) -> list[Change]:
    """The modules that cannot register anything, but for those that the daemon has told of since its start. Pure."""
    return [
        Change(uri, FAILED, wanted.failure)
        for uri, wanted in sorted(after.items())
        if wanted.failure and (uri not in started or started[uri].failure != wanted.failure)
    ]


def _outcome(old: Wanted | None, new: Wanted | None) -> str:
    if old is None or new is None:
        only = old if new is None else new
        if only is None:
            return ""
        if only.beside is None:
            return RESTART
        return REMOVED if new is None else ADDED
    if old.beside == new.beside and old.table == new.table:
        return ""
    return REPLACED if old.beside is not None and new.beside is not None else RESTART


def changed_keys(before: object, after: object) -> list[str]:
    """Top-level keys of the config that differ and that only a restart reads. Pure."""
    names = [field.name for field in msgspec.structs.fields(type(before))]  # type: ignore[arg-type]  # a Struct's class
    return [n for n in names if n not in _FOLLOWED and getattr(before, n) != getattr(after, n)]


class Reloader:
    """The config in force, and `reload`. `load` reads the config file with the flags of the daemon on top.

    `started` is the plan that the daemon started by; without it, what its config asks for when it is first needed.
    """

    def __init__(
        self, registry: Registry, config: Config, load: Callable[[], Config] | None, started: Plan | None = None
    ) -> None:
        self._registry = registry
        self._started_with = config
        self._config = config
        self._load = load
        self._started = started
        self._wanted = started
        self._lock = anyio.Lock()

    def __repr__(self) -> str:
        return f"<Reloader of {self._config!r}>"

    def timeout_s(self, key: str) -> float:
        """The deadline of a key of `[timeouts]` in seconds, as it is now; 0 means none."""
        return self._config.timeout_s(key)

    def config_of(self, registration: Registration) -> PluginConfig:
        """The decoded config of a plugin. Raises ConfigError."""
        return self._config.plugin_config(registration)

    async def reload(self) -> Sequence[Change]:
        """Read the config and follow it. Raises InvalidArgument for a config that cannot be used: nothing changes.

        What it began it ends, also where its caller goes away.
        """
        if self._load is None:
            raise FailedPrecondition("the daemon was started without a config file that could be read again")
        async with self._lock:
            if self._started is None:
                self._started = self._wanted = await anyio.to_thread.run_sync(partial(wanted_by, self._started_with))
            try:
                config = await anyio.to_thread.run_sync(self._load)
                after = await anyio.to_thread.run_sync(partial(wanted_by, config))
            except (ConfigError, OSError, ValueError) as error:
                raise InvalidArgument(f"the config is not reloaded: {error}") from error
            with anyio.CancelScope(shield=True):
                changes = await self._apply(config, self._wanted or {}, after)
        changes += failures(self._started, after)
        for change in changes:
            level = logging.ERROR if change.outcome == FAILED else logging.INFO
            log.log(
                level, "reload: %s: %s%s", change.subject, change.outcome, f": {change.detail}" if change.detail else ""
            )
        return changes

    async def _apply(self, config: Config, before: Plan, after: Plan) -> list[Change]:
        timeouts = changed_timeouts(self._config, config)
        self._config = config
        if timeouts:
            self._registry.set_deadlines()
        failed = {uri for uri in after if self._state_of(uri) == State.FAILED}
        changes = [await self._follow(uri, outcome, after) for uri, outcome in steps(before, after, failed)]
        self._wanted = _in_force(before, after, changes)
        changes += [Change("timeouts", APPLIED, ", ".join(timeouts))] if timeouts else []
        settings = (self._started_with.settings, config.settings)
        return changes + [Change(key, RESTART, "read when the daemon starts") for key in changed_keys(*settings)]

    def _state_of(self, uri: str) -> State | None:
        plugin = self._registry.get(uri)
        return None if plugin is None else plugin.state

    async def _follow(self, uri: str, outcome: str, after: Plan) -> Change:
        if outcome == RESTART:
            return Change(uri, RESTART, "it is part of the daemon's process")
        try:
            if self._state_of(uri) is not None:  # also the row of one that was disabled when the daemon started
                await self._registry.remove_running(uri)
            if outcome in (ADDED, REPLACED):
                plugin = await self._registry.add_running(after[uri].registration, after[uri].distribution)
                if plugin.state != State.LOADED:
                    return Change(uri, FAILED, plugin.reason)
        except FailedPrecondition as error:
            return Change(uri, RESTART, error.message)
        except PluginError as error:
            return Change(uri, FAILED, str(error))
        return Change(uri, outcome)


def _in_force(before: Plan, after: Plan, changes: Sequence[Change]) -> dict[str, Wanted]:
    """What the daemon now runs by: the new plan, but for what only a restart changes."""
    waiting = {change.subject for change in changes if change.outcome == RESTART}
    kept = {uri: wanted for uri, wanted in before.items() if uri in waiting}
    return {**{uri: wanted for uri, wanted in after.items() if uri not in waiting}, **kept}
