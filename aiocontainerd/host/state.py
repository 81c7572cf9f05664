"""The state of a plugin while the daemon runs: what became of its registration, and why."""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import Any

from aiocontainerd.errors import ContainerdError, ReadOnlyFileSystem, Unknown
from aiocontainerd.guard import diagnosis
from aiocontainerd.guard.health import READY, Condition, PluginHealth
from aiocontainerd.guard.owners import package_of
from aiocontainerd.host.registration import Registration, SkipPlugin

log = logging.getLogger(__name__)

READ_ONLY = "read-only"
"""Condition of a plugin that works, but for changes."""


class State(StrEnum):
    """What became of a plugin."""

    REGISTERED = "registered"
    DISABLED = "disabled"
    LOADED = "ok"
    SKIPPED = "skip"
    FAILED = "error"


class Plugin:
    """A registration and its state while the daemon runs: the row of `actr plugins ls`."""

    def __init__(self, registration: Registration, distribution: str = "") -> None:
        self.registration = registration
        self.distribution = distribution
        self.state = State.REGISTERED
        self.reason = ""
        self.caused_by = ""
        self.code = 0
        self.instance: Any = None
        """What init returned, guarded (`guard/dispatcher.py`)."""
        self.health = PluginHealth(registration.uri)
        self.exports: dict[str, str] = {}
        self.root = ""
        """The plugin's directory below the daemon's root, "" if it asked for none."""
        self.capabilities: list[str] = []
        self.platforms: list[str] = []
        self.init_s = 0.0

    @property
    def kind(self) -> str:
        return self.registration.kind

    @property
    def id(self) -> str:
        return self.registration.id

    @property
    def uri(self) -> str:
        return self.registration.uri

    @property
    def requires(self) -> tuple[str, ...]:
        return self.registration.requires

    @property
    def is_loaded(self) -> bool:
        return self.state == State.LOADED

    @property
    def condition(self) -> Condition:
        """What every view shows of the plugin: its state, or what a plugin beside the daemon is now, and why."""
        beside = self.health.condition
        if self.is_loaded and beside is not None and beside.state != READY:
            return beside
        if self.is_loaded and self.health.read_only:
            where = min(self.health.refused_in, default=self.home)
            return Condition(READ_ONLY, f"{where}: {ReadOnlyFileSystem.text}" if where else ReadOnlyFileSystem.text)
        return Condition(str(self.state), self.reason)

    @property
    def home(self) -> str:
        """Where the plugin keeps its data; "" if it keeps none here. A plugin beside the daemon exports its peer's."""
        return self.exports.get("root", self.root) if self.health.condition is None else self.root

    def packages(self) -> set[str]:
        """Return the packages of its code, as far as registration and instance tell."""
        made = (self.registration.init, self.registration.config, type(self.instance))
        return {package_of(one.__module__) for one in made} - {""}

    def loaded(self, instance: object) -> None:
        """Note the instance that init returned."""
        self.instance, self.state = instance, State.LOADED
        self.caused_by = self.reason = ""

    def failed(self, error: BaseException) -> None:
        """Note why the plugin is not loaded: skipped or failed (facts/core 12)."""
        if isinstance(error, SkipPlugin):
            why = diagnosis.said(error) or "no reason given"
            self.state, self.reason, self.code = State.SKIPPED, f"{why}: skip plugin", Unknown.code
            return
        self.state, self.reason = State.FAILED, diagnosis.describe(error, self.registration.init.__module__)
        self.code = error.code if isinstance(error, ContainerdError) else Unknown.code
        log.debug("plugin %s failed", self.uri, exc_info=error)

    def __repr__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"<Plugin {self.uri} {self.state}{reason}>"


def is_first_party(distribution: str) -> bool:
    """Return whether a distribution is one of ours: the core (which may have no name here) or a first-party plugin."""
    return distribution in ("", "aiocontainerd") or distribution.startswith("aiocontainerd-")
