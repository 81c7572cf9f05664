"""What the dispatcher guards of each plugin kind, and the deadline class of every method.

A class is a key of `[timeouts]`: *quick* for what answers from memory or an index, *work* for what touches disks or
other processes, *long* for what moves whole layers. A stream has its deadline for each item. Objects that are nothing
but a view of other plugins (namespaced content and snapshots, the services behind the API) are not listed: the plugin
below them is guarded, so that a hang is told under its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from aiocontainerd import kinds

PREFIX = "io.containerd.timeout.plugin."
QUICK, WORK, LONG = f"{PREFIX}quick", f"{PREFIX}work", f"{PREFIX}long"
UNLIMITED = ""
"""No deadline: the method waits for what may never happen, such as the exit of a sandbox, or has named
deadlines of its own within."""

_NONE: Mapping[str, str] = MappingProxyType({})


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """One Protocol as the dispatcher sees it. Methods that are not named pass through.

    `returns` maps methods to the interface of the resource they give, which its user closes; `parts` maps attributes
    to the interface of the object they are.
    """

    protocol: str
    """`module:Name` below `aiocontainerd.interfaces`."""
    quick: tuple[str, ...] = ()
    work: tuple[str, ...] = ()
    long: tuple[str, ...] = ()
    unlimited: tuple[str, ...] = ()
    streams: Mapping[str, str] = _NONE
    """Method that gives an asynchronous iterator -> class of its deadline for each item."""
    returns: Mapping[str, str] = _NONE
    parts: Mapping[str, str] = _NONE
    breaks: bool = True
    """Whether its methods have breakers. What drives many programs has none: one failure says nothing of the next."""

    def calls(self) -> dict[str, str]:
        """Deadline class of each awaited method."""
        classes = ((QUICK, self.quick), (WORK, self.work), (LONG, self.long), (UNLIMITED, self.unlimited))
        return {method: timeout for timeout, methods in classes for method in methods}


READER = Interface(protocol="content:Reader", work=("read", "close", "__aenter__", "__aexit__"))
WRITER = Interface(
    protocol="content:Writer",
    quick=("status",),
    work=("write", "truncate", "close", "__aenter__", "__aexit__"),
    long=("commit",),
)
NAMESPACES = Interface(protocol="metadata:NamespaceStore", work=("create", "get", "update", "list", "delete"))
CONTAINERS = Interface(protocol="metadata:ContainerStore", work=("get", "list", "create", "update", "delete"))
IMAGES = Interface(protocol="metadata:ImageStore", work=("get", "list", "create", "update", "delete"))
LEASES = Interface(
    protocol="metadata:LeaseStore",
    work=("create", "delete", "list", "add_resource", "delete_resource", "resources"),
)

NAMED: Mapping[str, Interface] = MappingProxyType(
    {
        "reader": READER,
        "writer": WRITER,
        "namespaces": NAMESPACES,
        "containers": CONTAINERS,
        "images": IMAGES,
        "leases": LEASES,
    }
)
"""Interfaces of what other interfaces give."""

BY_KIND: Mapping[str, Interface] = MappingProxyType(
    {
        kinds.SNAPSHOTTER: Interface(
            protocol="snapshotter:Snapshotter",
            quick=("stat", "mounts"),
            work=("update", "usage", "prepare", "view", "commit", "remove"),
            long=("cleanup",),
            streams={"walk": WORK},
        ),
        kinds.CONTENT: Interface(
            protocol="content:ContentStore",
            quick=("info", "status"),
            work=("update", "delete", "reader", "writer", "statuses", "abort"),
            streams={"walk": WORK},
            returns={"reader": "reader", "writer": "writer"},
        ),
        kinds.DIFFER: Interface(protocol="differ:Differ", long=("apply", "compare")),
        kinds.METADATA: Interface(
            protocol="metadata:MetadataStore",
            parts={name: name for name in ("namespaces", "containers", "images", "leases")},
        ),
        kinds.GC: Interface(protocol="gc:GCScheduler", unlimited=("schedule_and_wait",)),
        kinds.RUNTIME: Interface(
            protocol="runtime:TaskRuntime",
            work=("get", "list", "plugin_info"),
            unlimited=("create",),
            breaks=False,
        ),
        kinds.SHIM_LAUNCHER: Interface(protocol="shim:ShimLauncher", unlimited=("start", "delete"), breaks=False),
        kinds.EVENT_SINK: Interface(protocol="event_sink:EventSink", work=("deliver",)),
        kinds.IMAGE_VERIFIER: Interface(protocol="verifier:ImageVerifier", work=("verify",)),
        kinds.CREDENTIALS: Interface(protocol="credentials:CredentialsProvider", work=("credentials",)),
        kinds.STREAM_PROCESSOR: Interface(protocol="stream_processor:StreamProcessor", streams={"process": LONG}),
        kinds.MOUNT_HANDLER: Interface(protocol="mount_handler:MountHandler", work=("mount", "unmount")),
        kinds.TASK_MONITOR: Interface(protocol="task_monitor:TaskMonitor", work=("monitor", "stop")),
        kinds.SANDBOX_CONTROLLER: Interface(
            protocol="sandbox_controller:SandboxController",
            quick=("platform", "status"),
            work=("create", "start", "stop", "shutdown", "metrics", "update"),
            unlimited=("wait",),
        ),
    }
)
"""What is guarded, by plugin kind. Instances of any other kind are given to others as they are."""
