"""The daemon seen from inside: its plugins, its identity (facts/core 12)."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import anyio

from aiocontainerd import kinds
from aiocontainerd.errors import FailedPrecondition, NotFound, Unimplemented
from aiocontainerd.filters import compile_filters
from aiocontainerd.host.state import Plugin, State
from aiocontainerd.interfaces.services import DeprecationLog, PluginInfoProvider, PluginStatus, ServerStatus
from aiocontainerd.oci import platform
from aiocontainerd.typeurl import Any

_FOR_PLATFORMS = (kinds.SNAPSHOTTER, kinds.DIFFER)
"""Kinds whose plugins are for some platform: clients ask which before they unpack an image for one."""


class DaemonIntrospection:
    """An IntrospectionService. `uuid_file` is made at the first call that needs it and never changes again."""

    def __init__(self, plugins: Callable[[], Sequence[Plugin]], uuid_file: Path, deprecations: DeprecationLog) -> None:
        self._plugins = plugins
        self._uuid_file = uuid_file
        self._deprecations = deprecations
        self._uuid = ""
        self._uuid_lock = anyio.Lock()

    def plugins(self, filters: Sequence[str] = ()) -> list[PluginStatus]:
        """Every plugin that was to start, in the order they started. Raises InvalidArgument for a bad filter."""
        matching = compile_filters(filters)
        return [
            status(plugin)
            for plugin in self._plugins()
            if plugin.state != State.DISABLED and matching.matches(partial(_field, plugin))
        ]

    async def server(self) -> ServerStatus:
        """The daemon's identity and the deprecated things it was asked for."""
        return ServerStatus(
            uuid=await self._server_uuid(),
            pid=os.getpid(),
            pidns=_pid_namespace(),
            deprecations=self._deprecations.warnings(),
        )

    async def plugin_info(self, kind: str, plugin_id: str, options: Any | None) -> tuple[PluginStatus, Any | None]:
        """A plugin and, where `options` ask for it, what its instance says of itself.

        Raises NotFound, FailedPrecondition for a plugin that did not load, Unimplemented for one with nothing to say.
        """
        plugin = self._find(kind, plugin_id)
        if options is None:
            return status(plugin), None
        if plugin.state != State.LOADED:
            raise FailedPrecondition(f"failed to get plugin instance {plugin.uri}: {plugin.reason or plugin.state}")
        if not isinstance(plugin.instance, PluginInfoProvider):
            raise Unimplemented(f"plugin {plugin.uri} does not provide extra information")
        return status(plugin), await plugin.instance.plugin_info(options)

    def _find(self, kind: str, plugin_id: str) -> Plugin:
        for plugin in self._plugins():
            if (plugin.kind, plugin.id) == (kind, plugin_id):
                return plugin
        raise NotFound(f"plugin {kind}.{plugin_id} not found")

    async def _server_uuid(self) -> str:
        async with self._uuid_lock:
            if not self._uuid:
                self._uuid = await anyio.to_thread.run_sync(load_uuid, self._uuid_file)
        return self._uuid


def status(plugin: Plugin) -> PluginStatus:
    """A plugin as introspection shows it. Where its kind needs a platform and it names none, it is for the host's."""
    platforms = plugin.platforms or [str(platform.default())] * (plugin.kind in _FOR_PLATFORMS)
    return PluginStatus(
        kind=plugin.kind,
        id=plugin.id,
        requires=plugin.registration.requires,
        platforms=tuple(platforms),
        exports=dict(plugin.exports),
        capabilities=tuple(plugin.capabilities),
        code=plugin.code,
        message=_message(plugin) if plugin.code else "",
    )


def _message(plugin: Plugin) -> str:
    return f"{plugin.reason}; caused by {plugin.caused_by}" if plugin.caused_by else plugin.reason


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def load_uuid(path: Path) -> str:
    """The uuid in a file, which is made with a random one where it is missing or empty: whole or not at all."""
    try:
        found = path.read_text().strip()
    except FileNotFoundError:
        found = ""
    if found:
        return found
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = str(uuid.uuid4())
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("w") as file:
        file.write(made)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    return made


def _field(plugin: Plugin, path: tuple[str, ...]) -> str | None:
    if path == ("type",):
        return plugin.kind
    return plugin.id if path == ("id",) else None
