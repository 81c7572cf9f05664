"""The Version service (facts/core 13).

Clients parse the answer as a semantic version and gate features on it: dockerd and nerdctl compare it with
containerd's releases. So it names the release whose API is served, and ours as build metadata, which every
comparison ignores. `revision` is the commit of containerd's own source, which has no counterpart here.
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
        """The release whose API this is, and our own version."""
        return api.version.VersionResponse(version=f"{CONTAINERD_VERSION}+aiocontainerd.{aiocontainerd.__version__}")
