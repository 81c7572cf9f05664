"""The Health service (facts/core 13). It knows only the service "", the daemon as a whole, which always serves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import ClassVar

import anyio

from aiocontainerd import api
from aiocontainerd.errors import NotFound


class HealthGrpc:
    """`grpc.health.v1.Health`."""

    service_name: ClassVar[str] = "grpc.health.v1.Health"

    async def check(self, request: api.health.HealthCheckRequest) -> api.health.HealthCheckResponse:
        """Return SERVING for the service "". Raises NotFound for another one."""
        if request.service:
            raise NotFound("unknown service", complete=True)
        return api.health.HealthCheckResponse(status=api.health.HealthCheckResponseServingStatus.SERVING)

    async def watch(self, request: api.health.HealthCheckRequest) -> AsyncIterator[api.health.HealthCheckResponse]:
        """Send the status now and at every change. An unknown name is no error here, as it may become known."""
        status = api.health.HealthCheckResponseServingStatus
        yield api.health.HealthCheckResponse(status=status.SERVICE_UNKNOWN if request.service else status.SERVING)
        await anyio.sleep_forever()
