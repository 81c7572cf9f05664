"""A plugin as the config sees it: the record of its keys, and its keys of `[timeouts]`."""

from __future__ import annotations

from typing import Protocol

import msgspec

from aiocontainerd.config.timeouts import Timeout


class PluginConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every plugin's config: a frozen record of typed keys with defaults. Unknown keys are told."""


class Configured(Protocol):
    """What a registration tells the config. `uri` names the plugin's table, `config` is the record of its keys."""

    @property
    def uri(self) -> str: ...

    @property
    def config(self) -> type[PluginConfig]: ...

    @property
    def timeouts(self) -> tuple[Timeout, ...]: ...
