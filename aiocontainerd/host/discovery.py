"""Find plugins: built-in modules, entry points of installed packages, and modules that TOML names."""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any

import msgspec

from aiocontainerd.config import Config, ConfigError, hints
from aiocontainerd.config.records import PluginPolicy, PythonPlugin
from aiocontainerd.guard import diagnosis
from aiocontainerd.guard.clock import at_work
from aiocontainerd.host import hookspecs, loading, process_state, trial
from aiocontainerd.host.placement import Placement
from aiocontainerd.host.policy import EVERYTHING, Admission, admit, header
from aiocontainerd.host.registration import PluginError, Registration
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.slow_loads import SlowLoads
from aiocontainerd.host.state import State

log = logging.getLogger(__name__)

BUILT_IN = ("aiocontainerd.daemon.servers", "aiocontainerd.daemon.event_sinks")
DECLARED_KIND = "python_plugins"
"""Kind of the rows that stand for modules which could not register anything."""

_NEAR = 0.85
_NO_POLICY = PluginPolicy()
_NONE_DECLARED: Mapping[str, PythonPlugin] = MappingProxyType({})


class Candidate(msgspec.Struct, frozen=True):
    """A module that may bring plugins: its name in messages, its path, the package it came with, what it may bring.

    `isolated`: its plugins get a process of their own, so it is imported in a trial process before the daemon.
    """

    name: str
    module: str
    distribution: str = ""
    admission: Admission = EVERYTHING
    isolated: bool = False

    @property
    def bringer(self) -> str:
        """What names the module: a package, or a table of the config."""
        return self.distribution or (self.name if self.name in BUILT_IN else f"python_plugins.{self.name}")


def candidates(
    installed: Iterable[EntryPoint], declared: Mapping[str, PythonPlugin], policy: PluginPolicy
) -> tuple[list[Candidate], list[Candidate]]:
    """Return what to load and what is refused, in a stable order. Modules that the config names are never refused."""
    found = [Candidate(name, name) for name in BUILT_IN]
    refused: list[Candidate] = []
    named = [(entry, header(entry.dist, "Name")) for entry in installed]
    for entry, name in sorted(named, key=lambda one: (one[0].name, one[1])):
        candidate = Candidate(entry.name, entry.value, name, admit(policy, name, entry.dist))
        (refused if candidate.admission.refusal else found).append(candidate)
    found += [
        Candidate(name, plugin.module, isolated=plugin.isolation == "process")
        for name, plugin in sorted(declared.items())
    ]
    return found, refused


def discover(
    registry: Registry, declared: Mapping[str, PythonPlugin], policy: PluginPolicy, placement: Placement | None = None
) -> None:
    """Fill `registry`. A module that cannot be loaded becomes a failed row, with one line that names the cause.

    `placement` says which plugins run in other processes.
    """
    placement = Placement() if placement is None else placement
    installed: Any = entry_points()  # its type is another one since Python 3.12; both have what is used here
    _tell_misspelled_groups(installed)
    found, refused = candidates(installed.select(group=hookspecs.ENTRY_POINT_GROUP), declared, policy)
    for candidate in refused:
        _refuse(registry, candidate, candidate.name, candidate.admission.refusal)
    brought: list[tuple[Candidate, Registration]] = []
    named: dict[str, Candidate] = {}
    with SlowLoads() as slow, process_state.interruptible() as interrupted, process_state.Kept() as kept:
        for candidate in found:
            with _failures_are_rows(registry, candidate, interrupted=interrupted):
                _check_unnamed(candidate, named.setdefault(candidate.module, candidate))
                if candidate.isolated:
                    trial.require_importable(candidate.module, placement.import_limit_s)
                with slow.watch(candidate.module, candidate.bringer), at_work(candidate.bringer):
                    registrations = loading.registrations_of(candidate.module)
                    placement.learn(loading.load(candidate.module))
                brought += [(candidate, registration) for registration in registrations]
            kept.undo(f"plugin module {candidate.module} of {candidate.bringer}")
    for candidate, registration in brought:
        if not candidate.admission.allows(registration.kind):
            reason = f"plugin_policy.allow names {candidate.distribution}, but not for {registration.kind}"
            _refuse(registry, candidate, f"{candidate.name}:{registration.uri}", reason)
            continue
        with _failures_are_rows(registry, candidate, registration.uri):
            wanted = None if candidate.distribution else declared.get(candidate.name)
            placed = placement.placed(registration, candidate.module, wanted)
            registry.add(placed, candidate.distribution or candidate.name)
    for name in placement.proxies:
        with _failures_are_rows(registry, Candidate(name, f"proxy_plugins.{name}")):
            proxy = placement.proxy(name)
            if proxy is not None:
                registry.add(proxy, f"proxy_plugins.{name}")
    for name in placement.programs:
        with _failures_are_rows(registry, Candidate(name, f"stream_processors.{name}")):
            program = placement.program(name)
            if program is not None:
                registry.add(program, f"stream_processors.{name}")


def _tell_misspelled_groups(installed: Any) -> None:
    """Log a warning for a package that names its plugins in a group where nobody looks for them."""
    right = hookspecs.ENTRY_POINT_GROUP
    for group in sorted(installed.groups - {right}):
        if difflib.get_close_matches(group, [right], cutoff=_NEAR):
            for entry in installed.select(group=group):
                named = (entry.name, header(entry.dist, "Name"), group, right)
                log.warning("entry point %s of %s is in the group %s; plugins are in %s", *named)


def _check_unnamed(candidate: Candidate, first: Candidate) -> None:
    """Raise PluginError if another candidate names the same module: its plugins would be registered twice."""
    if candidate is first:
        return
    if candidate.bringer == first.bringer:
        raise PluginError(
            f"{first.bringer} names module {candidate.module} twice, as {first.name} and {candidate.name}"
        )
    file = getattr(sys.modules.get(candidate.module.partition(":")[0]), "__file__", None) or "not imported"
    remedy = "uninstall one of them" if candidate.distribution else f"remove the table {candidate.bringer}"
    raise PluginError(
        f"{first.bringer} and {candidate.bringer} name the same module {candidate.module}, of which there is one, "
        f"{file}: {remedy}"
    )


def _refuse(registry: Registry, candidate: Candidate, row: str, reason: str) -> None:
    log.warning("plugin package %s is not loaded: %s", candidate.distribution or candidate.name, reason)
    registry.add_failed(DECLARED_KIND, row, f"{reason}: skip plugin", candidate.distribution, state=State.SKIPPED)


@contextmanager
def _failures_are_rows(
    registry: Registry, candidate: Candidate, uri: str = "", *, interrupted: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Turn whatever a plugin package raises into a failed row, except Ctrl-C when `interrupted` tells that it came."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and interrupted():
            raise
        reason = diagnosis.describe(error, candidate.module)
        log.error("plugin module %s of %s cannot be loaded: %s", candidate.module, candidate.name, reason)
        log.debug("loading %s failed", candidate.module, exc_info=error)
        row = f"{candidate.name}:{uri}" if uri else candidate.name
        registry.add_failed(DECLARED_KIND, row, reason, candidate.distribution)


def check_config(registry: Registry, config: Config) -> None:
    """Check the config against what was found. Raises ConfigError naming file, line and key.

    If a module could not be loaded, unknown keys of `[timeouts]` are only warnings: that module may read them.
    """
    found = [plugin.registration for plugin in registry.plugins if plugin.state == State.REGISTERED]
    config.check_plugins(found, complete=not _is_broken(registry))


def _is_broken(registry: Registry) -> bool:
    """Return whether a module could not be loaded."""
    return any(plugin.kind == DECLARED_KIND and plugin.state == State.FAILED for plugin in registry.plugins)


def check_required(registry: Registry, config: Config) -> None:
    """Raise ConfigError with file and line for a required plugin that no package has, before anything starts.

    A module that cannot be loaded may have it: then the row of that module says why.
    """
    if _is_broken(registry):
        return
    known = [plugin.uri for plugin in registry.plugins]
    for uri in config.settings.required_plugins:
        if uri not in known:
            near = hints.nearest_uri(uri, known)
            raise ConfigError(f"{config.origin('required_plugins')}: required plugin {uri} is not installed{near}")


def checked_registrations(config: Config) -> list[Registration]:
    """Find the plugins of a config and check it against them. Raises ConfigError."""
    registry = Registry(config.settings.plugin_policy.replace)
    discover(registry, config.settings.python_plugins, config.settings.plugin_policy)
    check_config(registry, config)
    return [plugin.registration for plugin in registry.plugins if plugin.state == State.REGISTERED]


def problems(config: Config) -> tuple[list[str], bool]:
    """Find the plugins of a config; return its warnings, and whether every module could be loaded.

    The log has the reason of each that could not. Raises ConfigError for what stops a start.
    """
    registry = Registry(config.settings.plugin_policy.replace)
    placement = Placement.of(config)
    discover(registry, config.settings.python_plugins, config.settings.plugin_policy, placement)
    check_config(registry, config)
    check_required(registry, config)
    return config.warnings, not _is_broken(registry)


def all_registrations(
    policy: PluginPolicy = _NO_POLICY, declared: Mapping[str, PythonPlugin] = _NONE_DECLARED
) -> list[Registration]:
    """Return the registrations of every package that the policy allows, and of declared modules."""
    registry = Registry(policy.replace)
    discover(registry, declared, policy)
    return [plugin.registration for plugin in registry.plugins if plugin.state == State.REGISTERED]
