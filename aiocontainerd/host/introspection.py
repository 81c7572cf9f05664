"""What the daemon says of itself: its plugins and its identity (facts/core 12)."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import anyio

from aiocontainerd import kinds
from aiocontainerd.errors import FailedPrecondition, NotFound, Unimplemented
from aiocontainerd.filters import compile_filters
from aiocontainerd.host.state import READ_ONLY, Plugin, State
from aiocontainerd.interfaces.services import DeprecationLog, PluginInfoProvider, PluginStatus, ServerStatus
from aiocontainerd.oci import platform
from aiocontainerd.typeurl import Any

_FOR_PLATFORMS = (kinds.SNAPSHOTTER, kinds.DIFFER)
"""Kinds that clients ask for a platform before they unpack an image."""


class DaemonIntrospection:
    """An IntrospectionService. `uuid_file` is written at the first call that needs it and never changes."""

    def __init__(self, plugins: Callable[[], Sequence[Plugin]], uuid_file: Path, deprecations: DeprecationLog) -> None:
        self._plugins = plugins
        self._uuid_file = uuid_file
        self._deprecations = deprecations
        self._uuid = ""
        self._uuid_lock = anyio.Lock()

    def plugins(self, filters: Sequence[str] = ()) -> list[PluginStatus]:
        """Return every plugin that is not disabled, in order of starting. Raises InvalidArgument for a bad filter."""
        matching = compile_filters(filters)
        return [
            status(plugin)
            for plugin in self._plugins()
            if plugin.state != State.DISABLED and matching.matches(partial(_field, plugin))
        ]

    async def server(self) -> ServerStatus:
        """Return the daemon's identity, and the deprecated features that were used."""
        return ServerStatus(
            uuid=await self._server_uuid(),
            pid=os.getpid(),
            pidns=_pid_namespace(),
            deprecations=self._deprecations.warnings(),
        )

    async def plugin_info(self, kind: str, plugin_id: str, options: Any | None) -> tuple[PluginStatus, Any | None]:
        """Return a plugin and, with `options`, the extra information of its instance.

        Raises NotFound, FailedPrecondition if the plugin is not loaded, Unimplemented if it has no information.
        """
        plugin = self._find(kind, plugin_id)
        if options is None:
            return status(plugin), None
        if plugin.state != State.LOADED:
            raise FailedPrecondition(f"failed to get plugin instance {plugin.uri}: {plugin.reason or plugin.state}")
        if not isinstance(plugin.instance, PluginInfoProvider):
            raise Unimplemented("plugin does not provided extra information")
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
    """Return a plugin as introspection shows it. A kind that needs a platform has the host's unless it names one."""
    platforms = plugin.platforms or [str(platform.default())] * (plugin.kind in _FOR_PLATFORMS)
    return PluginStatus(
        kind=plugin.kind,
        id=plugin.id,
        requires=plugin.registration.requires,
        platforms=tuple(platforms),
        exports={**plugin.exports, **_condition(plugin)},
        capabilities=tuple(plugin.capabilities),
        code=plugin.code,
        message=_message(plugin) if plugin.code else "",
    )


def _condition(plugin: Plugin) -> dict[str, str]:
    """Return the exports that tell what the status code of a plugin cannot: it is beside the daemon, or not started."""
    condition = plugin.health.condition if plugin.is_loaded else None
    if plugin.state == State.REGISTERED or (now := plugin.condition).state == READ_ONLY:
        condition = now
    if condition is None:
        return {}
    return {"state": condition.state, **({"reason": condition.reason} if condition.reason else {})}


def _message(plugin: Plugin) -> str:
    return f"{plugin.reason}; caused by {plugin.caused_by}" if plugin.caused_by else plugin.reason


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def load_uuid(path: Path) -> str:
    """Return the uuid in a file. Write a random one, atomically, if the file is missing or empty.

    On a read-only file system, the random one is for this process alone.
    """
    try:
        found = path.read_text().strip()
    except FileNotFoundError:
        found = ""
    if found:
        return found
    made = str(uuid.uuid4())
    try:
        _write_uuid(path, made)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
    return made


def _write_uuid(path: Path, made: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("w") as file:
        file.write(made)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _field(plugin: Plugin, path: tuple[str, ...]) -> str | None:
    if path == ("type",):
        return plugin.kind
    return plugin.id if path == ("id",) else None
