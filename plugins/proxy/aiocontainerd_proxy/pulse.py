"""Ask the process of an isolated plugin now and then whether it answers, and have it ended when it does not.

A process whose event loop is blocked answers nothing. It is asked three times per `io.containerd.timeout.plugin.hang`.
One question without an answer shows the plugin as `hangs`. Three in a row end the process.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import anyio

from aiocontainerd import api
from aiocontainerd.config.timeouts import PLUGIN_HANG
from aiocontainerd.errors import ContainerdError, LocalDeadline
from aiocontainerd.rpc.grpc_client import GrpcClient, Unreachable
from aiocontainerd_proxy.limits import Limits
from aiocontainerd_proxy.link import Link, State

QUESTIONS = 3
"""How many questions in a row are left unanswered by a process that hangs."""
UNLIMITED_PAUSE_S = 10.0
"""How long to wait for a limit that a reload may set."""
_HEALTH = "grpc.health.v1.Health"


async def keep(link: Link, limits: Limits, hung: Callable[[float], Awaitable[object]]) -> None:
    """Ask until cancelled. Await `hung` with the seconds in which the process answered nothing."""
    unanswered = 0
    while True:
        part_s = limits(PLUGIN_HANG) / QUESTIONS
        if math.isinf(part_s) or link.state not in (State.READY, State.HANGS):
            unanswered = 0
            await anyio.sleep(min(part_s, UNLIMITED_PAUSE_S))
            continue
        if await _answers(link.transport, part_s):
            unanswered = 0
            link.answers(0.0)
            await anyio.sleep(part_s)
            continue
        unanswered += 1
        link.answers(round(unanswered * part_s, 2))
        if unanswered == QUESTIONS:
            await hung(round(unanswered * part_s, 2))
            unanswered = 0


async def _answers(transport: GrpcClient, limit_s: float) -> bool:
    """Return whether the process answers within the limit. A connection that is lost is the supervisor's business."""
    try:
        await transport.unary(_HEALTH, "Check", api.health.HealthCheckRequest(), timeout_s=limit_s)
    except LocalDeadline:
        return False
    except Unreachable:
        await anyio.sleep(limit_s)
    except ContainerdError:
        return True
    return True
