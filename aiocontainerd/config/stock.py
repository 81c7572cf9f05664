"""Facts about containerd's own config: its plugins, and keys that it dropped (facts/core 12, 16)."""

from __future__ import annotations

from collections.abc import Sequence

from aiocontainerd import kinds

_IDS = (
    (kinds.CONTENT, "content"),
    (kinds.METADATA, "bolt"),
    (kinds.EVENT, "exchange"),
    (kinds.GC, "scheduler"),
    (kinds.LEASE, "manager"),
    (kinds.STREAMING, "manager"),
    (kinds.WARNING, "deprecations"),
    (kinds.TRANSFER, "local"),
    (kinds.IMAGE_VERIFIER, "bindir"),
    (kinds.SANDBOX_STORE, "local"),
    (kinds.SANDBOX_CONTROLLER, "shim local"),
    (kinds.PODSANDBOX_CONTROLLER, "podsandbox"),
    (kinds.SHIM, "manager"),
    (kinds.RUNTIME, "task shim"),
    ("io.containerd.runtime.v1", "linux"),
    (kinds.TASK_MONITOR, "cgroups"),
    ("io.containerd.monitor.v1", "cgroups"),
    (kinds.CONTAINER_MONITOR, "restart"),
    (kinds.MOUNT_MANAGER, "bolt"),
    (kinds.MOUNT_HANDLER, "erofs"),
    (kinds.SNAPSHOTTER, "overlayfs native erofs blockfile devmapper btrfs zfs aufs windows windows-lcow cimfs"),
    (kinds.DIFFER, "walking erofs windows windows-lcow cimfs"),
    (
        kinds.SERVICE,
        "containers-service content-service diff-service images-service introspection-service namespaces-service "
        "snapshots-service tasks-service leases-service",
    ),
    (
        kinds.GRPC,
        "containers content diff events healthcheck images introspection leases mounts namespaces "
        "sandbox-controllers sandboxes snapshots streaming tasks transfer version cri",
    ),
    (kinds.CRI, "images runtime"),
    (kinds.SERVER, "grpc grpc-tcp ttrpc debug metrics"),
    (kinds.METRICS, "grpc-prometheus grpc-otel"),
    (kinds.HTTP, "pprof"),
    (kinds.TTRPC, "otelttrpc"),
    (kinds.INTERNAL, "opt restart tracing"),
    (kinds.TRACING_PROCESSOR, "otlp"),
    (kinds.NRI, "nri"),
)
PLUGINS = frozenset(f"{kind}.{name}" for kind, names in _IDS for name in names.split())
"""URIs of the plugins that containerd has or had. Any may have a table in a config that containerd starts on."""

KINDS = frozenset(kind for kind, _ in _IDS)

PROXY_TYPES = frozenset(
    {"snapshot", "content", "sandbox", "diff", kinds.SNAPSHOTTER, kinds.CONTENT, kinds.SANDBOX_CONTROLLER, kinds.DIFFER}
)
"""What `type` of a proxy plugin may be."""

DROPPED = frozenset({"subreaper", "no_subreaper", "plugin_dir"})
"""Top-level keys that a containerd before 2.1 read, and none reads now."""

NEVER_READ = frozenset({"enabled_plugins"})
"""Top-level keys that guides tell people to write, and no containerd has ever read."""

DROPPED_OF_PLUGINS = frozenset(
    {
        (f"{kinds.SNAPSHOTTER}.overlayfs", "async_remove"),
        (f"{kinds.RUNTIME}.task", "sched_core"),
    }
)
"""Plugin and key, likewise."""


def is_idle(key: Sequence[str]) -> bool:
    """Return whether a key without effect is no mistake: published files have it."""
    return key[0] in {*DROPPED, *NEVER_READ} or (key[0] == "plugins" and (key[1], key[-1]) in DROPPED_OF_PLUGINS)
