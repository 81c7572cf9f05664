"""Reading the config anew while the daemon runs: plugins beside the daemon come and go, the rest waits for a restart.

Proxy plugins and plugins that are isolated in a process share nothing with the daemon but a socket, so they are added,
removed, or both where their settings changed. `[timeouts]` hold for the calls that begin from then on; a plugin in a
process of its own, which keeps its deadlines there, is started anew where they changed. Whatever else differs from what
the daemon started with is told as `restart needed`, at every reload, and left as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import anyio
import anyio.to_thread
import msgspec

from aiocontainerd import discovery, durations
from aiocontainerd.beside import Beside
from aiocontainerd.config import Config, ConfigError
from aiocontainerd.config.records import PLUGIN_TIMEOUTS, TIMEOUTS, Isolation
from aiocontainerd.errors import FailedPrecondition, InvalidArgument
from aiocontainerd.registration import Change, PluginConfig, PluginError, Registration, State
from aiocontainerd.registry import Registry

log = logging.getLogger(__name__)

ADDED, REMOVED, REPLACED, APPLIED = "added", "removed", "replaced", "applied"
FAILED, RESTART = "failed", "restart needed"
_FOLLOWED = frozenset(
    {"proxy_plugins", "python_plugins", "plugin_isolation", "disabled_plugins", "timeouts", "imports", "version"}
)
"""Top-level keys that are compared by the plugins and deadlines they make."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin that a config asks for. `beside` are the settings of one beside the daemon; `table` its config."""

    registration: Registration
    distribution: str
    beside: object = None
    table: object = None


class Apart(msgspec.Struct, frozen=True):
    """How a plugin is kept apart in a process, and the deadlines, in seconds by class, that it keeps there."""

    isolation: Isolation
    timeouts: Mapping[str, float]


Plan = Mapping[str, Wanted]


def wanted_by(config: Config) -> dict[str, Wanted]:
    """Every plugin a config asks for, by URI. Imports what it names. Raises ConfigError."""
    settings = config.settings
    registry, beside = (
        Registry(settings.plugin_policy.replace),
        Beside(settings.proxy_plugins, settings.plugin_isolation),
    )
    discovery.discover(registry, settings.python_plugins, settings.plugin_policy, beside)
    found = [plugin for plugin in registry.plugins if plugin.state == State.REGISTERED]
    config.check_plugins(plugin.registration for plugin in found)
    return {
        plugin.uri: Wanted(
            registration=plugin.registration,
            distribution=plugin.distribution,
            beside=_with_deadlines(beside.outside.get(plugin.uri), plugin.uri, config),
            table=config.plugin_tables.get(plugin.uri),
        )
        for plugin in found
        if plugin.uri not in settings.disabled_plugins
    }


def _with_deadlines(outside: object, uri: str, config: Config) -> object:
    if not isinstance(outside, Isolation):
        return outside
    classes = [key for key in TIMEOUTS if key.startswith(PLUGIN_TIMEOUTS)]
    return Apart(outside, {key: config.timeout_s(f"{key}.{uri}") for key in classes})


def changed_timeouts(before: Config, after: Config) -> list[str]:
    """`key = value` of every deadline that differs. Pure."""
    keys = sorted({*TIMEOUTS, *before.settings.timeouts, *after.settings.timeouts})
    changed = [key for key in keys if before.timeout_s(key) != after.timeout_s(key)]
    return [f"{key} = {durations.render(after.timeout_s(key))}" for key in changed]


def steps(before: Plan, after: Plan) -> list[tuple[str, str]]:
    """What becomes of each plugin that differs: URI and outcome, removals first. Pure."""
    found: list[tuple[str, str]] = []
    for uri in sorted({*before, *after}):
        old, new = before.get(uri), after.get(uri)
        outcome = _outcome(old, new)
        if outcome:
            found.append((uri, outcome))
    return sorted(found, key=lambda step: step[1] != REMOVED)


def _outcome(old: Wanted | None, new: Wanted | None) -> str:
    if old is None or new is None:
        only = old if new is None else new
        if only is None or only.beside is None:
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
    """The config in force, and `reload`. `load` reads the config file with the flags of the daemon on top."""

    def __init__(self, registry: Registry, config: Config, load: Callable[[], Config] | None) -> None:
        self._registry = registry
        self._started_with = config
        self._config = config
        self._load = load
        self._wanted: dict[str, Wanted] | None = None
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
        """Read the config and follow it. Raises InvalidArgument for a config that cannot be used: nothing changes."""
        if self._load is None:
            raise FailedPrecondition("the daemon was started without a config file that could be read again")
        async with self._lock:
            before = self._wanted
            if before is None:
                before = await anyio.to_thread.run_sync(partial(wanted_by, self._started_with))
            try:
                config = await anyio.to_thread.run_sync(self._load)
                after = await anyio.to_thread.run_sync(partial(wanted_by, config))
            except (ConfigError, OSError, ValueError) as error:
                raise InvalidArgument(f"the config is not reloaded: {error}") from error
            timeouts = changed_timeouts(self._config, config)
            self._config = config
            if timeouts:
                self._registry.set_deadlines()
            changes = [await self._follow(uri, outcome, after) for uri, outcome in steps(before, after)]
            self._wanted = _in_force(before, after, changes)
            changes += [Change("timeouts", APPLIED, ", ".join(timeouts))] if timeouts else []
            settings = (self._started_with.settings, config.settings)
            changes += [Change(key, RESTART, "read when the daemon starts") for key in changed_keys(*settings)]
        for change in changes:
            log.info("reload: %s: %s%s", change.subject, change.outcome, f": {change.detail}" if change.detail else "")
        return changes

    async def _follow(self, uri: str, outcome: str, after: Plan) -> Change:
        if outcome == RESTART:
            return Change(uri, RESTART, "it is part of the daemon's process")
        try:
            if outcome in (REMOVED, REPLACED):
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
