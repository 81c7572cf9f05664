"""Open targets in this process: a plugin with what a daemon would give it, and no other part of a daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiocontainerd import kinds
from aiocontainerd.config import Config
from aiocontainerd.config.plugin import PluginConfig
from aiocontainerd.host import authoring, conformance, loading
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.init_context import InitContext
from aiocontainerd.host.needs import KNOWN
from aiocontainerd.host.registration import PluginError, Registration
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import Plugin, State
from aiocontainerd.testing import stand_ins
from aiocontainerd.testing.target import Target, TargetError, TargetSkippedError, replaced
from aiocontainerd.wire.events import message_bus

_METHODS_OF = {kinds.SNAPSHOTTER: ("prepare", "commit", "mounts"), kinds.CONTENT: ("writer", "reader", "abort")}


class PluginBench:
    """Opens a plugin again and again. See `target.Bench`."""

    remote = False

    def __init__(self, target: Target, directory: Path) -> None:
        self._target = target
        self._directory = directory
        self._capabilities: frozenset[str] = frozenset()

    @asynccontextmanager
    async def open(self, kind: str, root: Path, needs: Mapping[str, Any]) -> AsyncIterator[Any]:
        """See `target.Bench`. A plugin that skips skips the test, one that does not load fails it, in a line."""
        try:
            async with self._opened(kind, root, needs) as instance:
                yield instance
        except TargetSkippedError as error:
            import pytest

            pytest.skip(str(error))
        except TargetError as error:
            import pytest

            pytest.fail(str(error), pytrace=False)

    @asynccontextmanager
    async def _opened(self, kind: str, root: Path, needs: Mapping[str, Any]) -> AsyncIterator[Any]:
        registry = Registry()
        plugin = registry.add(registration_of(self._target.path, kind, self._target.name))
        brought = {one.kind: registry.add(one) for path in self._target.needs for one in loading.registrations_of(path)}
        for needed, instance in needs.items():
            if needed not in brought and needed != kind:
                registry.add(_stand_in(needed, instance))
        records = needs.get(kinds.METADATA)
        for other in stand_ins.needed_by(plugin.registration, without={kind, *needs, *brought}, metadata=records):
            registry.add(other)

        def check(one: str, instance: object) -> None:
            if one == kind or one in brought:  # what stands in for a plugin need not be a whole one
                conformance.check(one, instance)

        async with registry.run(_daemon(root, registry), self._config(plugin).plugin_config, check=check):
            _check_loaded(plugin)
            self._capabilities = frozenset(plugin.capabilities)
            if getattr(plugin.instance, "can_rebase", False):
                self._capabilities |= {"rebase"}
            yield plugin.instance

    async def capabilities(self, kind: str) -> frozenset[str]:  # noqa: ARG002 - the Protocol's signature
        """See `target.Bench`."""
        return self._target.capabilities | self._capabilities

    def _config(self, plugin: Plugin) -> Config:
        return Config({"plugins": {plugin.uri: replaced(dict(self._target.config), self._directory)}}, {})


def registration_of(path: str, kind: str, plugin_id: str = "") -> Registration:
    """Return the plugin of a kind in `module` or `module:Name`. A class that registers nothing is a plugin itself.

    Raise TargetError if there is none, or several and no id.
    """
    found = [r for r in _registrations(path, kind, plugin_id) if r.kind == kind and plugin_id in ("", r.id)]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(r.id for r in found)
        raise TargetError(f"{path} has several plugins of kind {kind}; choose one with {path}#<id>: {ids}")
    named = f" with id {plugin_id}" if plugin_id else ""
    raise TargetError(f"{path} has no plugin of kind {kind}{named}")


def has_kind(path: str, kind: str, plugin_id: str = "") -> bool:
    """Return whether a path brings a plugin of a kind. A class that registers nothing is known by its methods."""
    target = loaded(path)
    if _is_bare(target):
        return all(hasattr(target, method) for method in _METHODS_OF.get(kind, ("",)))
    return any(r.kind == kind and plugin_id in ("", r.id) for r in _registrations(path, kind, plugin_id))


def _registrations(path: str, kind: str, plugin_id: str) -> Sequence[Registration]:
    target = loaded(path)
    try:
        if not _is_bare(target):
            return loading.registrations_of(path)
        requires = (kinds.METADATA,) if kind == kinds.DIFFER else ()
        authoring.register(kind, plugin_id or target.__name__.lower(), requires=requires)(target)
    except PluginError as error:
        raise TargetError(f"--target {path}: {error}") from error
    bare = authoring.carried(target)[-1:]
    delattr(target, authoring.CARRIER)
    return bare


def loaded(path: str) -> Any:
    """Return the module or object of a path. Raise TargetError."""
    try:
        return loading.load(path)
    except (ImportError, PluginError) as error:
        raise TargetError(f"--target {path}: {error}") from error


def _is_bare(target: Any) -> bool:
    """Return whether it is a class that registers nothing."""
    return isinstance(target, type) and not authoring.carried(target) and not hasattr(target, "register_plugins")


def _check_loaded(plugin: Plugin) -> None:
    if plugin.state == State.SKIPPED:
        raise TargetSkippedError(f"{plugin.uri} is not for this host: {plugin.reason}")
    if plugin.state != State.LOADED:
        raise TargetError(f"plugin {plugin.uri} is not loaded: {plugin.reason}{_remedy(plugin)}")


def _remedy(plugin: Plugin) -> str:
    """Return what to do about a plugin that its init looks for and does not find, "" if the reason is another one."""
    named = {*plugin.registration.requires, *plugin.registration.wants}
    told = [kind for kind in sorted({*KNOWN, *named} - {plugin.kind}) if kind in plugin.reason]
    if not told:
        return ""
    if told[0] in named:
        return "; a suite has a stand-in of this kind: bring the real plugin with --target-needs MODULE"
    return f"; name {told[0]} in requires or wants: a suite has a stand-in for each kind there"


def _stand_in(kind: str, instance: Any) -> Registration:
    """Return a plugin of `kind`, under containerd's own id of it."""
    plugin_id = {kinds.METADATA: "bolt", kinds.CONTENT: "content", kinds.EVENT: "exchange"}[kind]

    async def init(_context: InitContext[PluginConfig]) -> object:
        return instance

    return Registration(kind=kind, id=plugin_id, init=init)


def _daemon(root: Path, registry: Registry) -> DaemonInfo:
    for directory in (root, root / "run", root / "temp"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return DaemonInfo(
        root=root,
        state=root / "run",
        temp=root / "temp",
        grpc_address="",
        ttrpc_address="",
        bus=message_bus(),
        plugins=lambda: registry.plugins,
        timeout_s=Config({}, {}).timeout_s,
    )
