"""The plugins of a daemon, as the service `aiocontainerd.plugins.v1.Plugins` shows them.

The daemon gives the service one `PluginRow` for each plugin, also for those that did not load. It also gives a function
that reads the config again and returns a `Change` for each thing that it did, and one that returns the values of the
config that it runs by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import msgspec

HealthT_co = TypeVar("HealthT_co", covariant=True)


class PluginCondition(Protocol):
    """What a plugin is now, and why. Introspection, `explain` and `health` all show this."""

    @property
    def state(self) -> str:
        """`registered`, `disabled`, `ok`, `skip` or `error`; `absent`, `connecting`, `hangs` or `failed` beside us."""
        ...

    @property
    def reason(self) -> str:
        """Why it did not load, or cannot be used now."""
        ...


class PluginRow(Protocol[HealthT_co]):
    """One plugin and what became of it. `health` is what the guard noted of it (`guard/health.py`)."""

    @property
    def kind(self) -> str: ...

    @property
    def id(self) -> str: ...

    @property
    def uri(self) -> str:
        """`<kind>.<id>`."""
        ...

    @property
    def distribution(self) -> str:
        """The package that brought it; "" for the daemon's own."""
        ...

    @property
    def condition(self) -> PluginCondition:
        """What the plugin is now, and why."""
        ...

    @property
    def is_loaded(self) -> bool:
        """Whether its init succeeded."""
        ...

    @property
    def caused_by(self) -> str:
        """The URI of the plugin that it failed because of, or ""."""
        ...

    @property
    def requires(self) -> Sequence[str]:
        """Kinds that it requires."""
        ...

    @property
    def init_s(self) -> float:
        """Seconds that its init took."""
        ...

    @property
    def instance(self) -> Any:
        """What its init returned, guarded; None before that."""
        ...

    @property
    def health(self) -> HealthT_co: ...


class Change(msgspec.Struct, frozen=True):
    """What a reload did about one plugin (its URI) or one key of the config.

    `outcome` is `added`, `removed`, `replaced`, `applied`, `failed` or `restart needed`.
    """

    subject: str
    outcome: str
    detail: str = ""


class ConfigValue(msgspec.Struct, frozen=True):
    """A value of the config that a daemon runs by, fit to be shown.

    `key` is whole, `value` is JSON or `(not set)`, secrets are redacted. `origin` is file and line, a flag or
    `default`. `doc` says what the value does, or is "".
    """

    key: str
    value: str
    origin: str
    doc: str = ""

    def __str__(self) -> str:
        return f"{self.key} = {self.value}  # {self.origin}{f'; {self.doc}' if self.doc else ''}"
