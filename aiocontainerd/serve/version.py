"""The Version service (facts/core 13).

Clients parse the answer as a semantic version: dockerd and nerdctl compare it with containerd's releases to decide what
they may use. So it names the release whose API is served. Our own version is build metadata, which comparisons ignore.
`revision` is the commit of containerd's source; it stays empty here.
"""

from __future__ import annotations

from typing import ClassVar

import aiocontainerd
from aiocontainerd import api

CONTAINERD_VERSION = "2.4.0"


class VersionGrpc:
    """`containerd.services.version.v1.Version`."""

    service_name: ClassVar[str] = "containerd.services.version.v1.Version"

    async def version(self, _request: api.protobuf.Empty) -> api.version.VersionResponse:
        """Return the release whose API is served, and our own version."""
        return api.version.VersionResponse(version=f"{CONTAINERD_VERSION}+aiocontainerd.{aiocontainerd.__version__}")
