"""The lease under which a block works, so that nothing it makes is collected meanwhile (facts/core 9)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from aiocontainerd import context, labels, timestamps
from aiocontainerd.errors import NotFound
from aiocontainerd.interfaces.metadata import Lease, LeaseStore

CLEANUP_S = 10.0
LEASE_S = 24 * 3600
"""How long a lease outlives whoever made it and died (facts/core 9)."""


@asynccontextmanager
async def held(leases: LeaseStore, *, expire_s: float = LEASE_S) -> AsyncIterator[Lease]:
    """Make a lease, run the block under it and delete it, whatever happens.

    The lease expires after `expire_s` seconds should this process die.
    """
    until = timestamps.format_rfc3339(timestamps.now_ns() + int(expire_s) * timestamps.NANOSECONDS)
    lease = await leases.create("", {labels.GC_EXPIRE: until})
    try:
        with context.use(lease=lease.id):
            yield lease
    finally:
        with anyio.move_on_after(CLEANUP_S, shield=True):
            try:
                await leases.delete(lease.id)
            except NotFound:
                pass
