"""Finding plugins: the daemon's own, installed entry points, and modules that TOML names."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points

import msgspec

from aiocontainerd import hookspecs, loading
from aiocontainerd.beside import Beside
from aiocontainerd.config.records import PluginPolicy, PythonPlugin
from aiocontainerd.registry import Registration, Registry

log = logging.getLogger(__name__)

BUILT_IN = ("aiocontainerd.servers", "aiocontainerd.sinks")
DECLARED_KIND = "python_plugins"
"""Rows of the plugin table that stand for a module which could not even register."""

_NO_POLICY = PluginPolicy()


class Candidate(msgspec.Struct, frozen=True):
    """A module that may bring plugins: its name in messages, its path, and the distribution it came with."""

    name: str
    module: str
    distribution: str = ""


def candidates(
    installed: Iterable[EntryPoint], declared: Mapping[str, PythonPlugin], policy: PluginPolicy
) -> tuple[list[Candidate], list[Candidate]]:
    """What to load and what the policy denies, in a stable order. Pure."""
    found = [Candidate(name, name) for name in BUILT_IN]
    denied: list[Candidate] = []
    for entry in sorted(installed, key=lambda e: e.name):
        candidate = Candidate(entry.name, entry.value, entry.dist.name if entry.dist else "")
        (found if allows(policy, candidate.distribution) else denied).append(candidate)
    found += [Candidate(name, plugin.module) for name, plugin in sorted(declared.items())]
    return found, denied


def allows(policy: PluginPolicy, distribution: str) -> bool:
    """Whether a distribution may bring plugins: any may, until the allow-list names some."""
    return not policy.allow or any(fnmatch.fnmatchcase(distribution, pattern) for pattern in policy.allow)


def discover(
    registry: Registry, declared: Mapping[str, PythonPlugin], policy: PluginPolicy, beside: Beside | None = None
) -> None:
    """Fill `registry`. A module that cannot be loaded becomes a failed row with one line that names the cause.

    `beside` says which plugins are in other processes, and which are to be.
    """
    beside = Beside() if beside is None else beside
    found, denied = candidates(entry_points(group=hookspecs.ENTRY_POINT_GROUP), declared, policy)
    for candidate in denied:
        log.warning(
            "plugin package %s is installed but plugin_policy.allow does not name it; not loaded",
            candidate.distribution,
        )
    brought: list[tuple[Candidate, Registration]] = []
    for candidate in found:
        with _failures_are_rows(registry, candidate):
            registrations = loading.registrations_of(candidate.module)
            beside.learn(loading.load(candidate.module))
            brought += [(candidate, registration) for registration in registrations]
    for candidate, registration in brought:
        with _failures_are_rows(registry, candidate):
            wanted = None if candidate.distribution else declared.get(candidate.name)
            placed = beside.placed(registration, candidate.module, wanted)
            registry.add(placed, candidate.distribution or candidate.name)
    for name, registration in beside.proxies():
        with _failures_are_rows(registry, Candidate(name, f"proxy_plugins.{name}")):
            registry.add(registration, f"proxy_plugins.{name}")


@contextmanager
def _failures_are_rows(registry: Registry, candidate: Candidate) -> Iterator[None]:
    """The edge of a plugin package: what it raises is a failed row, not the daemon's end."""
    try:
        yield
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        log.error("plugin module %s of %s cannot be loaded: %s", candidate.module, candidate.name, reason)
        log.debug("loading %s failed", candidate.module, exc_info=error)
        registry.add_failed(f"{DECLARED_KIND}.{candidate.name}", reason, candidate.distribution)


def all_registrations(policy: PluginPolicy = _NO_POLICY) -> list[Registration]:
    """The registrations of every installed package that the policy allows."""
    registry = Registry()
    discover(registry, {}, policy)
    return [plugin.registration for plugin in registry.plugins if plugin.kind != DECLARED_KIND]
