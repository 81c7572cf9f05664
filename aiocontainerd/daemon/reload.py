"""Read the config again while the daemon runs, and follow what changed.

- Plugins outside the daemon's process are added, removed and replaced (`wanted.py`).
- Changed `[timeouts]` hold for the calls that begin from then on.
- Every other difference is reported as `restart needed`, at this reload and each later one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import anyio
import anyio.to_thread

from aiocontainerd.config import Config, ConfigError
from aiocontainerd.config.plugin import PluginConfig
from aiocontainerd.daemon.in_force import explained
from aiocontainerd.daemon.wanted import (
    ADDED,
    APPLIED,
    FAILED,
    REPLACED,
    RESTART,
    Plan,
    Wanted,
    changed_settings,
    changed_timeouts,
    failures,
    plan_for,
    steps,
)
from aiocontainerd.errors import FailedPrecondition, InvalidArgument, NotFound, text_of
from aiocontainerd.host.registration import PluginError, Registration
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import State
from aiocontainerd.interfaces.plugins import Change, ConfigValue

log = logging.getLogger(__name__)


class Reloader:
    """Keeps the config that is in force, and replaces it.

    `load` reads the config file, with the daemon's flags on top. `started_with` is the plan of plugins that the daemon
    started with; without it, the first reload makes it from `config`.
    """

    def __init__(
        self, registry: Registry, config: Config, load: Callable[[], Config] | None, started_with: Plan | None = None
    ) -> None:
        self._registry = registry
        self._first = config
        self._config = config
        self._load = load
        self._started_with = started_with
        self._in_force = started_with
        self._lock = anyio.Lock()

    def __repr__(self) -> str:
        return f"<Reloader of {self._config!r}>"

    def timeout_s(self, key: str) -> float:
        """Return the seconds of a key of `[timeouts]` as they are now; 0 means no limit."""
        return self._config.timeout_s(key)

    def config_of(self, registration: Registration) -> PluginConfig:
        """Return the decoded config of a plugin. Raises ConfigError."""
        return self._config.plugin_config(registration)

    def explain(self, key: str) -> Sequence[ConfigValue]:
        """Return the values at and below a key that the daemon runs by, every value for "". Raises NotFound.

        A value that waits for a restart is not in force yet: the one that the daemon started with is returned.
        """
        found = explained(self._first, self._config, self._registry.plugins, self._in_force or {}, key)
        if not found:
            raise NotFound(f"key {key} in the config of the daemon")
        return found

    async def reload(self) -> Sequence[Change]:
        """Read the config and follow it; return and log what was done, and what needs a restart.

        Raises InvalidArgument for a config that cannot be used, and FailedPrecondition for a daemon without a config
        file: nothing changes then. Once it begins to change plugins it finishes, even if its caller goes away.
        """
        if self._load is None:
            raise FailedPrecondition("the daemon was started without a config file that could be read again")
        async with self._lock:
            if self._started_with is None:
                self._started_with = self._in_force = await anyio.to_thread.run_sync(partial(plan_for, self._first))
            try:
                config = await anyio.to_thread.run_sync(self._load)
                after = await anyio.to_thread.run_sync(partial(plan_for, config))
            except (ConfigError, OSError, ValueError) as error:
                raise InvalidArgument(f"the config is not reloaded: {text_of(error)}") from error
            with anyio.CancelScope(shield=True):
                changes = await self._follow(config, self._in_force or {}, after)
        _log(changes)
        return changes + failures(self._started_with, after)  # which discovery has logged

    async def _follow(self, config: Config, before: Plan, after: Plan) -> list[Change]:
        """Put a config in force: timeouts first, then each plugin that differs."""
        timeouts = changed_timeouts(self._config, config)
        self._config = config
        if timeouts:
            self._registry.set_deadlines()
        failed = {uri for uri in after if self._state_of(uri) == State.FAILED}
        changes = [await self._take(uri, outcome, after) for uri, outcome in steps(before, after, failed)]
        self._in_force = _in_force(before, after, changes)
        if timeouts:
            changes.append(Change("timeouts", APPLIED, ", ".join(timeouts)))
        settings = changed_settings(self._first.settings, config.settings)
        return changes + [Change(key, RESTART, "read when the daemon starts") for key in settings]

    async def _take(self, uri: str, outcome: str, after: Plan) -> Change:
        """Add, remove or replace one plugin; return what became of it."""
        if outcome == RESTART:
            return Change(uri, RESTART, "it is part of the daemon's process")
        try:
            if self._state_of(uri) is not None:  # there is also a row of a plugin that was disabled at the start
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

    def _state_of(self, uri: str) -> State | None:
        plugin = self._registry.get(uri)
        return None if plugin is None else plugin.state


def _in_force(before: Plan, after: Plan, changes: Sequence[Change]) -> dict[str, Wanted]:
    """Return the plan that the daemon now runs by: `after`, but `before` for what waits for a restart."""
    waiting = {change.subject for change in changes if change.outcome == RESTART}
    kept = {uri: wanted for uri, wanted in before.items() if uri in waiting}
    return {**{uri: wanted for uri, wanted in after.items() if uri not in waiting}, **kept}


def _log(changes: Sequence[Change]) -> None:
    for change in changes:
        level = logging.ERROR if change.outcome == FAILED else logging.INFO
        detail = f": {change.detail}" if change.detail else ""
        log.log(level, "reload: %s: %s%s", change.subject, change.outcome, detail)
