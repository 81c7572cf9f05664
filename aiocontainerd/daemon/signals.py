"""Signals: SIGTERM and SIGINT stop the daemon, SIGHUP reads the config again, SIGUSR1 writes a dump."""

from __future__ import annotations

import logging
import signal

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from aiocontainerd.daemon import dump
from aiocontainerd.daemon.reload import Reloader
from aiocontainerd.errors import ContainerdError
from aiocontainerd.host.registry import Registry

log = logging.getLogger(__name__)

_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


async def handle(stop: anyio.Event, registry: Registry, reloader: Reloader, everything: TaskGroup) -> None:
    """Handle signals until cancelled. The first SIGTERM or SIGINT sets `stop`, the second cancels `everything`."""
    with anyio.open_signal_receiver(*_HANDLED) as received:
        async for number in received:
            if number == signal.SIGUSR1:
                await _dump(registry)
            elif number == signal.SIGHUP:
                everything.start_soon(_reload, reloader, name="reload")
            elif stop.is_set():
                log.warning("stopping at once on a second %s", signal.Signals(number).name)
                everything.cancel_scope.cancel()
            else:
                log.info("stopping on %s; containers run on", signal.Signals(number).name)
                stop.set()


async def _reload(reloader: Reloader) -> None:
    try:
        changes = await reloader.reload()
    except ContainerdError as error:
        log.error("%s", error)
    else:
        log.info("reloaded the config: %d changes", len(changes))


async def _dump(registry: Registry) -> None:
    text = dump.render(registry.plugins)
    log.info("%s", text)
    try:
        log.info("stacks are in %s", await anyio.to_thread.run_sync(dump.write, text))
    except OSError as error:
        log.warning("stacks are in this log only: %s", error)
