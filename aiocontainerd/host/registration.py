"""What a plugin registers: kind, id, the kinds it needs, its config record, its timeouts and its `init`.

The init is a coroutine. It returns the plugin's instance, raises `SkipPlugin` (expected here, with a reason) or fails.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from aiocontainerd.config.plugin import PluginConfig
from aiocontainerd.config.timeouts import Timeout

Check = Callable[[Path, Any], object]
"""Looks at the plugin's root directory, which may be missing, with its decoded config, and writes nothing."""
Init = Callable[[Any], Awaitable[object]]
"""A coroutine function that is given an `InitContext` and returns the instance."""


class SkipPlugin(Exception):
    """Raised by an init if the plugin is not meant for this host. The text says why, such as `no overlayfs here`."""


class PluginError(Exception):
    """Raised for a plugin that cannot be used: a duplicate id, a missing need, an instance of another form."""


class StartRefused(PluginError):
    """Raised by a check or an init for which the daemon must not start. The text says what to do."""


ConfigT = TypeVar("ConfigT", bound=PluginConfig)


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin as its hook returns it.

    `requires` names kinds that start before it; `kinds.ALL` means everything that is not a server. `wants` names kinds
    that start before it and that it can do without, even where all of them fail. An `early` plugin starts, with what it
    requires, before those that are not. `timeouts` are the keys of `[timeouts]` that it reads by
    `InitContext.timeout_s`. `check` looks at what is on disk before anything is written anywhere: what it raises fails
    the plugin, and StartRefused keeps the daemon from starting.
    """

    kind: str
    id: str
    init: Init
    requires: tuple[str, ...] = ()
    config: type[PluginConfig] = PluginConfig
    wants: tuple[str, ...] = ()
    early: bool = False
    timeouts: tuple[Timeout, ...] = ()
    check: Check | None = None

    @property
    def uri(self) -> str:
        """`<kind>.<id>`: the plugin's name in config files and messages."""
        return f"{self.kind}.{self.id}"
