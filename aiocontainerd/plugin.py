"""The one import of a plugin author.

    from aiocontainerd.plugin import PluginConfig, Secret, kinds, register

    class Config(PluginConfig, frozen=True):
        token: Secret = Secret()

    @register(kinds.EVENT_SINK, "acme", config=Config)
    class Acme:
        filters = ("topic~=^/tasks/",)

        def __init__(self, config: Config) -> None: ...

        async def deliver(self, envelope: Envelope) -> None: ...

The package names the module in its entry points (group `aiocontainerd.plugins`). Where a class is too little, a
module has a function `register_plugins` under `@hookimpl`, which returns a list of `Registration`.

`Duration`, `Secret`, `Checked` and the other types of config keys are told with file and line where they do not fit.
`call` tells namespace and lease of the current call, `errors` has what a plugin may raise, `typeurl` decodes payloads,
`durations` and `timestamps` read and write `1m30s` and RFC 3339 times, `programs` runs one with a deadline.
`deadline`, `unlimited` and `items` say how a method of a kind without a contract is guarded (`interfaces/rules.py`).
Everything else here is the vocabulary of the interfaces (`aiocontainerd/interfaces/`), imported when it is first
used, so that a plugin's module is cheap to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from aiocontainerd import context as call
from aiocontainerd import durations, errors, kinds
from aiocontainerd.config.plugin import PluginConfig
from aiocontainerd.config.secret import Secret
from aiocontainerd.config.timeouts import Timeout
from aiocontainerd.config.values import Checked, Duration, EnvEntry, FilterText, SocketAddress, TcpAddress
from aiocontainerd.host.authoring import register
from aiocontainerd.host.hookspecs import hookimpl
from aiocontainerd.host.init_context import InitContext
from aiocontainerd.host.registration import PluginError, Registration, SkipPlugin, StartRefused
from aiocontainerd.host.state import Plugin, State
from aiocontainerd.sys import programs

if TYPE_CHECKING:
    from aiocontainerd.events import Envelope, EventBus
    from aiocontainerd.interfaces.content import ContentStore
    from aiocontainerd.interfaces.credentials import Credentials, CredentialsProvider
    from aiocontainerd.interfaces.differ import ApplyOptions, CompareOptions, Differ
    from aiocontainerd.interfaces.event_sink import EventSink
    from aiocontainerd.interfaces.mount_handler import ActiveMount, MountHandler
    from aiocontainerd.interfaces.rpc_service import Method, Service
    from aiocontainerd.interfaces.rules import LONG, QUICK, TASK, WORK, deadline, items, unlimited
    from aiocontainerd.interfaces.runtime import Task, TaskRuntime
    from aiocontainerd.interfaces.sandbox_controller import SandboxController
    from aiocontainerd.interfaces.snapshotter import Kind, Snapshotter, Usage
    from aiocontainerd.interfaces.stream_processor import StreamProcessor
    from aiocontainerd.interfaces.task_monitor import TaskMonitor
    from aiocontainerd.interfaces.verifier import ImageVerifier, Verdict
    from aiocontainerd.oci.descriptor import Descriptor
    from aiocontainerd.snapshots.base import SnapshotterBase
    from aiocontainerd.snapshots.disk import make_directory, names_in, remove_tree, usage_of_tree
    from aiocontainerd.snapshots.layer import Layer
    from aiocontainerd.sys.mount import Mount
    from aiocontainerd.wire import anys as typeurl
    from aiocontainerd.wire import times as timestamps

_ELSEWHERE = {
    "events": ("Envelope", "EventBus"),
    "interfaces.content": ("ContentStore",),
    "interfaces.credentials": ("Credentials", "CredentialsProvider"),
    "interfaces.differ": ("ApplyOptions", "Checked", "CompareOptions", "Differ"),
    "interfaces.event_sink": ("EventSink",),
    "interfaces.mount_handler": ("ActiveMount", "MountHandler"),
    "interfaces.runtime": ("Task", "TaskRuntime"),
    "interfaces.sandbox_controller": ("SandboxController",),
    "interfaces.rpc_service": ("Method", "Service"),
    "interfaces.rules": ("LONG", "QUICK", "TASK", "WORK", "deadline", "items", "unlimited"),
    "interfaces.snapshotter": ("Kind", "Snapshotter", "Usage"),
    "interfaces.stream_processor": ("StreamProcessor",),
    "interfaces.task_monitor": ("TaskMonitor",),
    "interfaces.verifier": ("ImageVerifier", "Verdict"),
    "oci.descriptor": ("Descriptor",),
    "snapshots.base": ("SnapshotterBase",),
    "snapshots.disk": ("make_directory", "names_in", "remove_tree", "usage_of_tree"),
    "snapshots.layer": ("Layer",),
    "sys.mount": ("Mount",),
}
"""Module of `aiocontainerd` -> the names that are imported from it when they are first used."""

_WHOLE = {"timestamps": "wire.times", "typeurl": "wire.anys"}
"""An author's name -> the module of `aiocontainerd` behind it, imported when it is first used."""

_MODULES = {name: module for module, names in _ELSEWHERE.items() for name in names}

__all__ = [
    "LONG", "QUICK", "TASK", "WORK", "ActiveMount", "ApplyOptions", "Checked", "CompareOptions", "ContentStore",
    "Credentials", "CredentialsProvider", "Descriptor", "Differ", "Duration", "EnvEntry", "Envelope", "EventBus",
    "EventSink", "FilterText", "ImageVerifier", "InitContext", "Kind", "Layer", "Method", "Mount", "MountHandler",
    "Plugin", "PluginConfig", "PluginError", "Registration", "SandboxController", "Secret", "Service",
    "SkipPlugin", "Snapshotter", "SnapshotterBase", "SocketAddress", "StartRefused", "State", "StreamProcessor",
    "Task", "TaskMonitor", "TaskRuntime", "TcpAddress", "Timeout", "Usage", "Verdict", "call", "deadline",
    "durations", "errors", "hookimpl", "items", "kinds", "make_directory", "names_in", "programs", "register",
    "remove_tree", "timestamps", "typeurl", "unlimited", "usage_of_tree",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    module = _WHOLE.get(name) or _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: Any = importlib.import_module(f"aiocontainerd.{module}")
    if name not in _WHOLE:
        found = getattr(found, name)
    globals()[name] = found
    return found
