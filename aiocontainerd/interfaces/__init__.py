"""The contract of every plugin kind, one file each: prose on top, then the Protocol.

`PROTOCOLS` says which Protocol the instance of a plugin must have, `protocol_of` imports it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from aiocontainerd import kinds

PROTOCOLS: Mapping[str, str] = MappingProxyType(
    {
        kinds.CONTENT: "content:ContentStore",
        kinds.CREDENTIALS: "credentials:CredentialsProvider",
        kinds.DIFFER: "differ:Differ",
        kinds.EVENT_SINK: "event_sink:EventSink",
        kinds.GC: "gc:GCScheduler",
        kinds.GRPC: "rpc_service:Service",
        kinds.IMAGE_VERIFIER: "verifier:ImageVerifier",
        kinds.LEASE: "services:LeaseManager",
        kinds.METADATA: "metadata:MetadataStore",
        kinds.MOUNT_HANDLER: "mount_handler:MountHandler",
        kinds.RUNTIME: "runtime:TaskRuntime",
        kinds.SANDBOX_CONTROLLER: "sandbox_controller:SandboxController",
        kinds.SERVER: "server:Server",
        kinds.SHIM_LAUNCHER: "shim:ShimLauncher",
        kinds.SNAPSHOTTER: "snapshotter:Snapshotter",
        kinds.STREAM_PROCESSOR: "stream_processor:StreamProcessor",
        kinds.TASK_MONITOR: "task_monitor:TaskMonitor",
        kinds.TTRPC: "rpc_service:Service",
        kinds.WARNING: "warning:DeprecationLog",
    }
)
"""Kind -> module of this package and Protocol in it. A kind that is not here has no contract of one Protocol."""


@cache
def protocol_of(kind: str) -> type | None:
    """The Protocol of a kind's instances, None for a kind without one."""
    found = PROTOCOLS.get(kind)
    if found is None:
        return None
    module, _, name = found.partition(":")
    protocol: type = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return protocol
