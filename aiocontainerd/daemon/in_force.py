"""The values of the config that a daemon runs by, after reloads that did not put all of it in force."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from aiocontainerd.config import Config
from aiocontainerd.config.explain import explain
from aiocontainerd.daemon.wanted import COMPARED_ELSEWHERE, Plan
from aiocontainerd.interfaces.plugins import ConfigValue

if TYPE_CHECKING:
    from aiocontainerd.config.source import KeyPath
    from aiocontainerd.host.state import Plugin


def explained(
    first: Config, now: Config, plugins: Iterable[Plugin], in_force: Plan, key: str = ""
) -> list[ConfigValue]:
    """Return the values at and below a key: those of `now` that a reload puts in force, the others of `first`. Pure."""
    registrations = [plugin.registration for plugin in plugins]
    started_with = {value.key: value for value in explain(first, registrations, key)}
    read = {value.key: value for value in explain(now, registrations, key)}
    chosen = ((key, read if _is_followed(key, in_force) else started_with) for key in {**read, **started_with})
    return [values[key].rendered() for key, values in chosen if key in values]


def _is_followed(key: KeyPath, in_force: Plan) -> bool:
    """Return whether a reload puts the value in force: the plugin runs outside the daemon, or the key is read then."""
    if key[0] == "plugins" and len(key) > 1:
        return key[1] in in_force and in_force[key[1]].outside is not None
    return key[0] in COMPARED_ELSEWHERE
