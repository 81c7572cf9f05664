"""The plugins that a config asks for, and what has to be done to get from one config to another. Nothing is started.

A plugin in the daemon's process can only change at a restart. A plugin outside of it (a proxy plugin, or one with
`isolation = "process"`) shares only a socket with the daemon, so it can be added, removed and replaced at any time.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping

import msgspec

from aiocontainerd import durations
from aiocontainerd.config import Config
from aiocontainerd.config.records import Isolation, Settings
from aiocontainerd.host import discovery
from aiocontainerd.host.placement import Placement
from aiocontainerd.host.registration import Registration
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import State
from aiocontainerd.interfaces.plugins import Change

ADDED, REMOVED, REPLACED, APPLIED = "added", "removed", "replaced", "applied"
FAILED, RESTART = "failed", "restart needed"
"""Outcomes of a reload."""

COMPARED_ELSEWHERE = frozenset(
    {"proxy_plugins", "python_plugins", "plugin_isolation", "disabled_plugins", "timeouts", "imports", "version"}
)
"""Top-level keys that `changed_settings` leaves out: `steps` and `changed_timeouts` compare what they lead to."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin that a config asks for.

    `outside` has the settings of a plugin outside the daemon's process, None for one inside. `table` is its config as
    written. `failure` is the reason of a module that could not register anything.
    """

    registration: Registration
    distribution: str
    outside: object = None
    table: object = None
    failure: str = ""


class IsolatedProcess(msgspec.Struct, frozen=True):
    """An isolated plugin, and the deadlines in seconds that its process is started with."""

    isolation: Isolation
    timeouts: Mapping[str, float]


Plan = Mapping[str, Wanted]
"""Plugins by URI."""


def plan_for(config: Config) -> dict[str, Wanted]:
    """Find the plugins that a config asks for, which imports their modules. Raises ConfigError."""
    settings = config.settings
    registry = Registry(settings.plugin_policy.replace)
    placement = Placement.of(config)
    importlib.invalidate_caches()  # packages may have been installed since the last look
    discovery.discover(registry, settings.python_plugins, settings.plugin_policy, placement)
    discovery.check_config(registry, config)
    return plan_of(registry, placement, config)


def plan_of(registry: Registry, placement: Placement, config: Config) -> dict[str, Wanted]:
    """Return the plan of a config whose plugins are found already and not started yet."""
    return {
        plugin.uri: Wanted(
            registration=plugin.registration,
            distribution=plugin.distribution,
            outside=_with_timeouts(placement.outside(plugin.registration), plugin.registration, config),
            table=config.plugin_tables.get(plugin.uri),
            failure=plugin.reason,
        )
        for plugin in registry.plugins
        if plugin.state in (State.REGISTERED, State.FAILED) and plugin.uri not in config.settings.disabled_plugins
    }


def steps(before: Plan, after: Plan, failed: Collection[str] = ()) -> list[tuple[str, str]]:
    """Return URI and outcome of each plugin that differs, removals first. Pure.

    A plugin outside the daemon whose URI is in `failed` is replaced even if nothing differs: it is tried again.
    """
    found: list[tuple[str, str]] = []
    for uri in sorted({*before, *after}):
        old, new = _registered(before.get(uri)), _registered(after.get(uri))
        outcome = _outcome(old, new)
        if not outcome and new is not None and new.outside is not None and uri in failed:
            outcome = REPLACED
        if outcome:
            found.append((uri, outcome))
    return sorted(found, key=lambda step: step[1] != REMOVED)


def failures(started: Plan, after: Plan) -> list[Change]:
    """Return the modules that cannot register anything, except those that already failed so at the start. Pure."""
    return [
        Change(uri, FAILED, wanted.failure)
        for uri, wanted in sorted(after.items())
        if wanted.failure and (uri not in started or started[uri].failure != wanted.failure)
    ]


def changed_timeouts(before: Config, after: Config) -> list[str]:
    """Return `key = value` for every key of `[timeouts]` whose value differs. Pure."""
    keys = sorted({*after.timeouts, *before.settings.timeouts, *after.settings.timeouts})
    changed = [key for key in keys if before.timeout_s(key) != after.timeout_s(key)]
    return [f"{key} = {durations.render(after.timeout_s(key))}" for key in changed]


def changed_settings(before: Settings, after: Settings) -> list[str]:
    """Return the top-level keys that differ and that are read only when the daemon starts. Pure."""
    names = [field.name for field in msgspec.structs.fields(Settings)]
    return [n for n in names if n not in COMPARED_ELSEWHERE and getattr(before, n) != getattr(after, n)]


def _with_timeouts(outside: object, registration: Registration, config: Config) -> object:
    if not isinstance(outside, Isolation):
        return outside
    return IsolatedProcess(outside, config.timeouts_of(registration))


def _registered(wanted: Wanted | None) -> Wanted | None:
    return None if wanted is None or wanted.failure else wanted


def _outcome(old: Wanted | None, new: Wanted | None) -> str:
    if old is None or new is None:
        only = old if new is None else new
        if only is None:
            return ""
        if only.outside is None:
            return RESTART
        return REMOVED if new is None else ADDED
    if old.outside == new.outside and old.table == new.table:
        return ""
    return REPLACED if old.outside is not None and new.outside is not None else RESTART
