"""Watch while the daemon runs which plugins have their data on a read-only file system."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.to_thread

from aiocontainerd.errors import ReadOnlyFileSystem
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import Plugin
from aiocontainerd.sys import read_only

log = logging.getLogger(__name__)

INTERVAL_S = 1.0


async def watch(registry: Registry, again: anyio.Event) -> None:
    """Look once a second what is read-only, until cancelled. The plugins show it.

    `again` is set when a database that was opened as a copy can be opened in its place: that takes a new start. All
    else tries each change anyway.
    """
    await _note(registry, quiet=bool(read_only.waiting()))
    while True:
        await anyio.sleep(INTERVAL_S)
        if await _can_be_opened():
            homes = ", ".join(str(path.parent) for path in read_only.waiting())
            log.warning("%s can be written again; starting anew, containers run on", homes)
            again.set()
            return
        await _note(registry)


async def _note(registry: Registry, *, quiet: bool = False) -> None:
    """Note of each plugin whether its file system is read-only, and log what has changed unless `quiet`."""
    loaded = [plugin for plugin in registry.plugins if plugin.is_loaded]
    places = {plugin.uri: {plugin.home, *plugin.health.refused_in} - {""} for plugin in loaded}
    thoroughly = quiet or any(plugin.health.read_only for plugin in loaded)
    everywhere = sorted(set().union(*places.values()))
    found = await anyio.to_thread.run_sync(look_at, everywhere, thoroughly, abandon_on_cancel=True)
    for plugin in loaded:
        _note_one(plugin, any(found[place] for place in places[plugin.uri]), quiet=quiet)


def _note_one(plugin: Plugin, now: bool, *, quiet: bool) -> None:
    before, plugin.health.read_only = plugin.health.read_only, now
    where = min(plugin.health.refused_in, default=plugin.home)
    if not now:
        plugin.health.refused_in.clear()
    if now == before or quiet:
        return
    text = f"refuses changes: {where}: {ReadOnlyFileSystem.text}" if now else f"takes changes again: {where}"
    log.warning("plugin %s %s", plugin.uri, text)


def look_at(directories: Sequence[str], thoroughly: bool) -> dict[str, bool]:
    """Return which directories are on read-only file systems. Blocking.

    The flag of a file system tells, unless it is damaged. `thoroughly` makes a file in each directory besides.
    """
    look = read_only.is_read_only if thoroughly else read_only.has_flag
    return {directory: look(Path(directory)) for directory in directories}


async def _can_be_opened() -> bool:
    if not read_only.waiting():
        return False
    return await anyio.to_thread.run_sync(read_only.some_can_be_written, abandon_on_cancel=True)
