"""Sandbox controllers (kind `io.containerd.sandbox.controller.v1`): places that several containers share.

Vocabulary. A *sandbox* is an environment for containers: a pod's namespaces, a virtual machine. Its *record* is in
the sandbox store and names the controller (*sandboxer*) by the id of the plugin. Whether containers of a sandbox
share a shim is told by the *address* and *version* of the task API that `start` and `status` answer with.

Life cycle. `create` prepares resources for a record, `start` brings the sandbox up, `stop` ends it within a time,
`shutdown` removes all that `create` made. `wait` returns when it has ended, for any number of callers. Restarting
the daemon ends no sandbox: a controller finds its own again when it starts.

What must fail and how (facts/core 13): `create` of an id that exists: AlreadyExists. An unknown id: `wait` and
`shutdown` raise NotFound, `status` answers with an empty state and the present time as exit, `stop` is no error,
`start` raises Unknown. A failed `start` leaves nothing running. `platform` and `metrics` may be Unimplemented. Events
are published by the service, not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import msgspec

from aiocontainerd.interfaces.rules import QUICK, WORK, deadline, guarded, unlimited
from aiocontainerd.interfaces.runtime import Exit
from aiocontainerd.sys.mount import Mount
from aiocontainerd.typeurl import Any

__all__ = [
    "NOT_READY",
    "READY",
    "Any",
    "CreateSandbox",
    "Exit",
    "Mount",
    "Sandbox",
    "SandboxController",
    "SandboxPlatform",
    "SandboxStatus",
    "StartedSandbox",
]  # fmt: skip

_NONE: Mapping[str, str] = MappingProxyType({})
_NO_ANYS: Mapping[str, Any] = MappingProxyType({})

READY = "SANDBOX_READY"
NOT_READY = "SANDBOX_NOTREADY"


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a sandbox."""

    id: str
    runtime_name: str = ""
    runtime_options: Any | None = None
    spec: Any | None = None
    labels: Mapping[str, str] = _NONE
    created_at_ns: int = 0
    updated_at_ns: int = 0
    extensions: Mapping[str, Any] = _NO_ANYS
    sandboxer: str = ""


class CreateSandbox(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments of `create` besides the record. For `netns_path` "" the controller chooses."""

    rootfs: Sequence[Mount] = ()
    options: Any | None = None
    netns_path: str = ""
    annotations: Mapping[str, str] = _NONE


class SandboxPlatform(msgspec.Struct, frozen=True, kw_only=True):
    """The platform that containers of a sandbox run on."""

    os: str
    architecture: str
    variant: str = ""


class StartedSandbox(msgspec.Struct, frozen=True, kw_only=True):
    """A running sandbox. `address` and `version` are of the task API that its containers share, "" and 0 for none."""

    id: str
    pid: int = 0
    created_at_ns: int = 0
    labels: Mapping[str, str] = _NONE
    address: str = ""
    version: int = 0
    spec: Any | None = None


class SandboxStatus(msgspec.Struct, frozen=True, kw_only=True):
    """State of a sandbox: `READY`, `NOT_READY`, or "" for an unknown sandbox. `info` comes with `verbose` only."""

    id: str
    pid: int = 0
    state: str = ""
    info: Mapping[str, str] = _NONE
    created_at_ns: int = 0
    exited_at_ns: int = 0
    extra: Any | None = None
    address: str = ""
    version: int = 0


@guarded(late_counts=False)
class SandboxController(Protocol):
    """Runs sandboxes."""

    @deadline(WORK)
    async def create(self, sandbox: Sandbox, options: CreateSandbox) -> None: ...

    @deadline(WORK)
    async def start(self, sandbox_id: str) -> StartedSandbox: ...

    @deadline(QUICK, always=True)
    async def platform(self, sandbox_id: str) -> SandboxPlatform: ...

    @deadline(WORK, always=True)
    async def stop(self, sandbox_id: str, *, timeout_s: float) -> None:
        """End the sandbox. Kill what has not ended after `timeout_s`."""
        ...

    @unlimited("the end of a sandbox is waited for as long as it lives", always=True)
    async def wait(self, sandbox_id: str) -> Exit:
        """Wait for the end of the sandbox, without limit."""
        ...

    @deadline(QUICK, always=True)
    async def status(self, sandbox_id: str, *, verbose: bool = False) -> SandboxStatus: ...

    @deadline(WORK, always=True)
    async def shutdown(self, sandbox_id: str) -> None: ...

    @deadline(WORK, always=True)
    async def metrics(self, sandbox_id: str) -> Any: ...

    @deadline(WORK)
    async def update(self, sandbox: Sandbox, fields: Sequence[str] = ()) -> None: ...
