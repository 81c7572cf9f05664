"""Watch while the daemon runs which plugins have their data on a read-only file system."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.to_thread

from aiocontainerd.errors import ReadOnlyFileSystem
from aiocontainerd.host.registry import Registry
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
    noted = {plugin.home: plugin.health.read_only for plugin in registry.plugins if plugin.is_loaded and plugin.home}
    thoroughly = quiet or any(noted.values())
    found = await anyio.to_thread.run_sync(look_at, list(noted), thoroughly, abandon_on_cancel=True)
    for plugin in registry.plugins:
        if plugin.home in found:
            plugin.health.read_only = found[plugin.home]
        elif not any(found.values()):  # it keeps nothing, but works with what others keep
            plugin.health.read_only = False
    if quiet:
        return
    for home, now in found.items():
        if now and not noted[home]:
            log.warning("%s: %s; changes are refused", home, ReadOnlyFileSystem.text)
        elif noted[home] and not now:
            log.warning("%s can be written again", home)


def look_at(homes: Sequence[str], thoroughly: bool) -> dict[str, bool]:
    """Return which directories are on read-only file systems. Blocking.

    The flag of a file system tells, unless it is damaged. `thoroughly` makes a file in each directory besides.
    """
    look = read_only.is_read_only if thoroughly else read_only.has_flag
    return {home: look(Path(home)) for home in homes}


async def _can_be_opened() -> bool:
    if not read_only.waiting():
        return False
    return await anyio.to_thread.run_sync(read_only.some_can_be_written, abandon_on_cancel=True)
