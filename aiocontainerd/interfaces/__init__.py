"""The contract of every plugin kind, one file each: prose on top, then the Protocol, whose methods carry their rules.

`PROTOCOLS` and `SERVICES` say which Protocol the instance of a plugin must have, `protocol_of` imports it. A new kind
is one file here and its line in `PROTOCOLS`. `rules` has the decorators that say how a method is guarded: its deadline
class, whether a circuit breaker may refuse it, whether it is a stream. Imports the words only.
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
        kinds.EVENT: "event_exchange:EventExchange",
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
        kinds.SHIM: "shim:ShimManager",
        kinds.SHIM_LAUNCHER: "shim:ShimLauncher",
        kinds.SNAPSHOTTER: "snapshotter:Snapshotter",
        kinds.STREAM_PROCESSOR: "stream_processor:StreamProcessor",
        kinds.TASK_MONITOR: "task_monitor:TaskMonitor",
        kinds.TTRPC: "rpc_service:Service",
        kinds.WARNING: "warning:DeprecationLog",
    }
)
"""Kind -> module of this package and Protocol in it."""

SERVICES: Mapping[str, str] = MappingProxyType(
    {
        "containers-service": "metadata:ContainerStore",
        "content-service": "content:ContentStore",
        "diff-service": "differ:Differ",
        "images-service": "services:ImageService",
        "introspection-service": "services:IntrospectionService",
        "namespaces-service": "metadata:NamespaceStore",
        "snapshots-service": "services:SnapshotsService",
        "tasks-service": "services:TaskService",
    }
)
"""The same for plugins of kind `io.containerd.service.v1`, each of which has a contract of its own, by id."""

WITHOUT_PROTOCOL: Mapping[str, str] = MappingProxyType(
    {
        kinds.CONTAINER_MONITOR: "no plugin of this kind yet",
        kinds.CRI: "no plugin of this kind yet",
        kinds.HTTP: "no plugin of this kind yet",
        kinds.INTERNAL: "each plugin of this kind is a thing of its own",
        kinds.METRICS: "no plugin of this kind yet",
        kinds.MOUNT_MANAGER: "no plugin of this kind yet",
        kinds.NRI: "no plugin of this kind yet",
        kinds.PODSANDBOX_CONTROLLER: "no plugin of this kind yet",
        kinds.SANDBOX_STORE: "no plugin of this kind yet",
        kinds.SERVICE: "the contract depends on the id: `SERVICES`",
        kinds.STREAMING: "no plugin of this kind yet",
        kinds.TRACING_PROCESSOR: "no plugin of this kind yet",
        kinds.TRANSFER: "no plugin of this kind yet",
    }
)
"""Kind without a contract of one Protocol -> why. Plugins of these kinds are guarded by what their class has."""


@cache
def protocol_of(kind: str, plugin_id: str = "") -> type | None:
    """Return the Protocol of a kind's instances, or of one service's; None where there is none."""
    found = SERVICES.get(plugin_id) if kind == kinds.SERVICE else PROTOCOLS.get(kind)
    if found is None:
        return None
    module, _, name = found.partition(":")
    protocol: type = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return protocol
