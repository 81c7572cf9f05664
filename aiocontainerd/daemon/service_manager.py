"""Tell the service manager what the daemon does."""

from __future__ import annotations

import logging

import anyio.to_thread

from aiocontainerd.sys import systemd

log = logging.getLogger(__name__)


async def tell(state: str, limit_s: float) -> None:
    """Send `state` within `limit_s` seconds, 0 for no limit. A failure is logged and stops nothing."""
    try:
        await anyio.to_thread.run_sync(systemd.notify, state, limit_s)
    except OSError as error:
        log.warning("cannot tell the service manager %s: %s", state, error)
