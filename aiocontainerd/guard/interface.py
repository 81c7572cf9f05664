"""What the dispatcher guards of each plugin kind, and the deadline class and breaker of every method.

A class is a key of `[timeouts]`: *quick* for what answers from memory or an index, *work* for what touches disks or
other processes, *long* for what moves whole layers, *task* for what asks a shim. A stream has its deadline for each
item. While a method waits for another plugin its clock stands still (`dispatch_clock`), so that views of other plugins,
such as namespaced content, need no longer deadlines than what they show.

A kind that is not named here is guarded all the same, by what its instance has: every public `async def` is *work*, and
the first word of its name says whether it ends, frees or looks at something.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from inspect import isasyncgenfunction, iscoroutinefunction
from types import MappingProxyType

import msgspec

from aiocontainerd import kinds

PREFIX = "io.containerd.timeout.plugin."
QUICK, WORK, LONG, TASK = f"{PREFIX}quick", f"{PREFIX}work", f"{PREFIX}long", f"{PREFIX}task"
UNLIMITED = ""
"""No deadline: the method waits for what may never happen."""

_SHIM = "io.containerd.timeout.shim."
WITHIN_TASK = (
    f"{_SHIM}start", f"{_SHIM}load", f"{_SHIM}create", *(f"{_SHIM}cleanup",) * 3, f"{_SHIM}shutdown",
)  # fmt: skip
"""Deadlines that one call of class *task* may use up one after the other: its own is never shorter than all of them."""
TASK_MARGIN_S = 30.0
"""What a call of class *task* has at least beside them."""

_NONE: Mapping[str, str] = MappingProxyType({})


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """One Protocol as the dispatcher sees it. Methods that are not named pass through.

    What methods give is guarded, too, as the interface of a role (`NAMED`): `returns` of awaited methods, `each` of
    awaited methods that give several, `gives` of methods that are not awaited, `parts` of attributes.

    Each method has a breaker. It counts missed deadlines and exceptions that are no ContainerdError. `always` names
    methods that an open breaker lets through: what ends or frees something is never refused, nor what looks at it, for
    that is how one gets out of trouble. Where `late_counts` is False a DeadlineExceeded that the plugin itself raises
    does not count: it names the shim or sandbox that does not answer, which says nothing of the next one.
    """

    protocol: str = ""
    """`module:Name` below `aiocontainerd.interfaces`."""
    quick: tuple[str, ...] = ()
    work: tuple[str, ...] = ()
    long: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    unlimited: Mapping[str, str] = _NONE
    """Method without a deadline -> why it has none."""
    streams: Mapping[str, str] = _NONE
    """Method that gives an asynchronous iterator -> class of its deadline for each item."""
    returns: Mapping[str, str] = _NONE
    each: Mapping[str, str] = _NONE
    gives: Mapping[str, str] = _NONE
    parts: Mapping[str, str] = _NONE
    always: tuple[str, ...] = ()
    late_counts: bool = True

    def calls(self) -> dict[str, str]:
        """Deadline class of each awaited method."""
        classes = ((QUICK, self.quick), (WORK, self.work), (LONG, self.long), (TASK, self.task))
        limited = {method: timeout for timeout, methods in classes for method in methods}
        return {**limited, **dict.fromkeys(self.unlimited, UNLIMITED)}

    def closes(self) -> bool:
        """Whether what has this interface is a resource that its user closes."""
        return "close" in self.calls()


_EXIT = MappingProxyType({"wait": "the exit of a process is waited for as long as it runs"})

READER = Interface(
    protocol="content:Reader",
    work=("read", "close", "__aenter__", "__aexit__"),
    always=("close", "__aexit__"),
)
WRITER = Interface(
    protocol="content:Writer",
    quick=("status",),
    work=("write", "truncate", "close", "__aenter__", "__aexit__"),
    long=("commit",),
    always=("close", "__aexit__"),
)
_RECORDS = ("create", "get", "update", "list", "delete")
NAMESPACES = Interface(protocol="metadata:NamespaceStore", work=_RECORDS, always=("delete",))
CONTAINERS = Interface(protocol="metadata:ContainerStore", work=_RECORDS, always=("delete",))
IMAGES = Interface(protocol="metadata:ImageStore", work=_RECORDS, always=("delete",))
LEASES = Interface(
    protocol="metadata:LeaseStore",
    work=("create", "delete", "list", "add_resource", "delete_resource", "resources"),
    always=("delete", "delete_resource"),
)
SNAPSHOTS = Interface(
    protocol="snapshotter:Snapshotter",
    quick=("stat", "mounts"),
    work=("update", "usage", "prepare", "view", "commit", "remove"),
    long=("cleanup",),
    streams={"walk": WORK},
    always=("remove", "cleanup"),
)
CONTENT = Interface(
    protocol="content:ContentStore",
    quick=("info", "status"),
    work=("update", "delete", "reader", "writer", "statuses", "abort"),
    streams={"walk": WORK},
    returns={"reader": "reader", "writer": "writer"},
    always=("delete", "abort"),
)
PROCESS = Interface(
    protocol="runtime:Process",
    task=("start", "state", "kill", "resize_pty", "close_io", "delete"),
    unlimited=_EXIT,
    always=("state", "kill", "wait", "delete"),
    late_counts=False,
)
RUNNING_TASK = Interface(
    protocol="runtime:Task",
    task=(*PROCESS.task, "exec", "pause", "resume", "pids", "checkpoint", "update", "stats"),
    unlimited=_EXIT,
    returns={"exec": "process"},
    gives={"process": "process"},
    always=(*PROCESS.always, "pids", "stats"),
    late_counts=False,
)
LAUNCHER = Interface(protocol="shim:ShimLauncher", task=("start", "delete"), always=("delete",), late_counts=False)

NAMED: Mapping[str, Interface] = MappingProxyType(
    {
        "reader": READER,
        "writer": WRITER,
        "namespaces": NAMESPACES,
        "containers": CONTAINERS,
        "images": IMAGES,
        "leases": LEASES,
        "content": CONTENT,
        "snapshotter": SNAPSHOTS,
        "task": RUNNING_TASK,
        "process": PROCESS,
        "launcher": LAUNCHER,
    }
)
"""Interfaces of what other interfaces give."""

BY_KIND: Mapping[str, Interface] = MappingProxyType(
    {
        kinds.SNAPSHOTTER: SNAPSHOTS,
        kinds.CONTENT: CONTENT,
        kinds.DIFFER: Interface(protocol="differ:Differ", long=("apply", "compare")),
        kinds.METADATA: Interface(
            protocol="metadata:MetadataStore",
            long=("collect",),
            parts={name: name for name in ("namespaces", "containers", "images", "leases", "content")},
            gives={"snapshotter": "snapshotter"},
        ),
        kinds.LEASE: Interface(protocol="services:LeaseManager", work=LEASES.work, always=LEASES.always),
        kinds.GC: Interface(protocol="gc:GCScheduler", long=("schedule_and_wait",)),
        kinds.RUNTIME: Interface(
            protocol="runtime:TaskRuntime",
            work=("get", "list"),
            task=("create", "plugin_info"),
            returns={"create": "task", "get": "task"},
            each={"list": "task"},
            always=("get", "list", "plugin_info"),
            late_counts=False,
        ),
        kinds.SHIM: Interface(
            protocol="shim:ShimManager",
            work=("launcher",),
            task=("start", "connect", "clean_up", "info"),
            returns={"launcher": "launcher"},
            gives={"launcher_of": "launcher"},
            always=("connect", "clean_up", "info"),
            late_counts=False,
        ),
        kinds.SHIM_LAUNCHER: LAUNCHER,
        kinds.EVENT_SINK: Interface(protocol="event_sink:EventSink", work=("deliver",)),
        kinds.IMAGE_VERIFIER: Interface(protocol="verifier:ImageVerifier", work=("verify",)),
        kinds.CREDENTIALS: Interface(protocol="credentials:CredentialsProvider", work=("credentials",)),
        kinds.STREAM_PROCESSOR: Interface(protocol="stream_processor:StreamProcessor", streams={"process": LONG}),
        kinds.MOUNT_HANDLER: Interface(
            protocol="mount_handler:MountHandler", work=("mount", "unmount"), always=("unmount",)
        ),
        kinds.TASK_MONITOR: Interface(protocol="task_monitor:TaskMonitor", work=("monitor", "stop"), always=("stop",)),
        kinds.SANDBOX_CONTROLLER: Interface(
            protocol="sandbox_controller:SandboxController",
            quick=("platform", "status"),
            work=("create", "start", "stop", "shutdown", "metrics", "update"),
            unlimited={"wait": "the end of a sandbox is waited for as long as it lives"},
            always=("platform", "status", "stop", "shutdown", "metrics", "wait"),
            late_counts=False,
        ),
    }
)
"""What is guarded, by plugin kind."""

NOT_GUARDED: Mapping[str, str] = MappingProxyType(
    {
        kinds.GRPC: "no plugin calls it: the front end does, under its client's deadline, and counts its calls",
        kinds.TTRPC: "no plugin calls it: the front end does, under its client's deadline, and counts its calls",
        kinds.SERVER: "no plugin calls it: the daemon does, when it starts and when it ends",
        kinds.EVENT: "nothing of it is awaited but the next event",
        kinds.WARNING: "nothing of it is awaited",
    }
)
"""Kinds whose instances are given to others as they are -> why."""


_WAY_OUT = frozenset(
    {
        "abort",
        "aclose",
        "clean",
        "cleanup",
        "close",
        "delete",
        "get",
        "info",
        "kill",
        "list",
        "metrics",
        "pids",
        "release",
    }
    | {"remove", "shutdown", "state", "stats", "status", "stop", "unmount", "wait"}
)
"""First words of methods that end, free or look at something, of kinds without an interface."""


def interface_of(kind: str, instance: type) -> Interface | None:
    """What to guard of a plugin; None for a kind that is not guarded."""
    if kind in NOT_GUARDED:
        return None
    return BY_KIND.get(kind) or found_in(instance)


@cache
def found_in(instance: type) -> Interface:
    """The interface of a kind without one: every public method of the class that is awaited, or iterated."""
    functions = {name: getattr(instance, name, None) for name in dir(instance) if not name.startswith("_")}
    awaited = tuple(name for name, function in functions.items() if iscoroutinefunction(function))
    return Interface(
        work=awaited,
        always=tuple(name for name in awaited if name.partition("_")[0] in _WAY_OUT),
        streams={name: WORK for name, function in functions.items() if isasyncgenfunction(function)},
    )
