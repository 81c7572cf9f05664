"""The daemon's own logic behind its API (kind `io.containerd.service.v1`), for other plugins to call.

The gRPC services of the same subject only convert messages. A plugin calls these instead, in the namespace and lease
of `aiocontainerd.context`, and gets the same checks, texts and events:

    namespaces-service      NamespaceStore: the metadata store's own
    containers-service      ContainerStore: the metadata store's own
    content-service         ContentStore: the metadata store's own
    images-service          ImageService
    snapshots-service       SnapshotsService: the metadata store
    diff-service            Differ: the configured differs, asked in turn
    tasks-service           TaskService
    introspection-service   IntrospectionService

and of other kinds: `io.containerd.lease.v1.manager` is a LeaseManager, `io.containerd.warning.v1.deprecations` a
DeprecationLog (`interfaces/warning.py`). Any plugin whose instance is a PluginInfoProvider answers
`Introspection.PluginInfo` (facts/core 12).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import msgspec

from aiocontainerd.interfaces.metadata import ImageStore, LeaseStore
from aiocontainerd.interfaces.rules import TASK, WORK, deadline, unlimited
from aiocontainerd.interfaces.runtime import IO, ExecOptions, Exit, ProcessInfo, ProcessState, Task
from aiocontainerd.interfaces.snapshotter import Snapshotter
from aiocontainerd.interfaces.warning import Deprecation, DeprecationLog
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.sys.mount import Mount
from aiocontainerd.typeurl import Any

__all__ = [
    "CreateTask",
    "Deprecation",
    "DeprecationLog",
    "ImageService",
    "IntrospectionService",
    "LeaseManager",
    "PluginInfoProvider",
    "PluginStatus",
    "ServerStatus",
    "SnapshotsService",
]  # fmt: skip

_NONE: Mapping[str, str] = MappingProxyType({})


class ImageService(ImageStore, Protocol):
    """Image records. A deletion can wait until the content is gone, too."""

    @deadline(WORK, always=True)
    async def delete(self, name: str, *, target: Descriptor | None = None, sync: bool = False) -> None:
        """Delete an image. With `sync`, return after a whole garbage collection, whose failure is Unknown."""
        ...


class LeaseManager(LeaseStore, Protocol):
    """Leases. A deletion can wait until the things that the lease held are gone, too."""

    @deadline(WORK, always=True)
    async def delete(self, lease_id: str, *, sync: bool = False) -> None:
        """Delete a lease. With `sync`, return after a whole garbage collection."""
        ...


class SnapshotsService(Protocol):
    """The snapshotters by name."""

    def snapshotter(self, name: str) -> Snapshotter:
        """Return the current namespace's snapshots in a backend. Raises InvalidArgument for "" or an unknown name."""
        ...


class CreateTask(msgspec.Struct, frozen=True, kw_only=True):
    """The request of a client, see `CreateOptions`. `runtime_path` replaces the runtime of the container's record."""

    container_id: str
    rootfs: Sequence[Mount] = ()
    io: IO = IO()
    checkpoint: Descriptor | None = None
    options: Any | None = None
    runtime_path: str = ""
    task_api_address: str = ""
    task_api_version: int = 0


class TaskMetrics(msgspec.Struct, frozen=True):
    """The metrics of one task at one time."""

    id: str
    timestamp_ns: int
    data: Any


class TaskService(Protocol):
    """Tasks and execs of the current namespace by id. `exec_id` "" is the container's init."""

    @deadline(WORK)
    async def create(self, request: CreateTask) -> Task:
        """Create a task. Raises NotFound without a container record, AlreadyExists if the container has a task."""
        ...

    @deadline(WORK)
    async def start(self, container_id: str, exec_id: str = "") -> int:
        """Run the process and return its pid."""
        ...

    @deadline(WORK, always=True)
    async def delete(self, container_id: str) -> Exit: ...

    @deadline(WORK, always=True)
    async def delete_process(self, container_id: str, exec_id: str) -> Exit: ...

    @deadline(WORK, always=True)
    async def get(self, container_id: str, exec_id: str = "") -> ProcessState: ...

    @deadline(WORK, always=True)
    async def list(self) -> list[ProcessState]: ...

    @deadline(WORK, always=True)
    async def kill(self, container_id: str, exec_id: str, signal: int, *, all_processes: bool) -> None: ...

    @deadline(WORK)
    async def exec(self, container_id: str, exec_id: str, options: ExecOptions) -> None: ...

    @deadline(WORK)
    async def resize_pty(self, container_id: str, exec_id: str, width: int, height: int) -> None: ...

    @deadline(WORK, always=True)
    async def close_io(self, container_id: str, exec_id: str, *, stdin: bool) -> None: ...

    @deadline(WORK)
    async def pause(self, container_id: str) -> None: ...

    @deadline(WORK)
    async def resume(self, container_id: str) -> None: ...

    @deadline(WORK, always=True)
    async def pids(self, container_id: str) -> Sequence[ProcessInfo]: ...

    @deadline(WORK)
    async def update(self, container_id: str, resources: Any | None, annotations: Mapping[str, str]) -> None: ...

    @unlimited("the exit of a process is waited for as long as it runs", always=True)
    async def wait(self, container_id: str, exec_id: str = "") -> Exit: ...

    @deadline(WORK, always=True)
    async def metrics(self, filters: Sequence[str] = ()) -> Sequence[TaskMetrics]: ...

    @deadline(WORK)
    async def checkpoint(self, container_id: str, options: Any | None) -> Sequence[Descriptor]: ...


class PluginStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin as introspection shows it. `platforms` are `os/architecture[/variant]`; `code` 0 means loaded."""

    kind: str
    id: str
    requires: Sequence[str] = ()
    platforms: Sequence[str] = ()
    exports: Mapping[str, str] = _NONE
    capabilities: Sequence[str] = ()
    code: int = 0
    message: str = ""


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon: its persistent uuid, its process id and the inode of its pid namespace."""

    uuid: str
    pid: int
    pidns: int
    deprecations: Sequence[Deprecation] = ()


class IntrospectionService(Protocol):
    """The daemon seen from inside."""

    def plugins(self, filters: Sequence[str] = ()) -> list[PluginStatus]:
        """Return every plugin that was to start, also one that failed or skipped. Raises InvalidArgument (filters)."""
        ...

    @deadline(WORK, always=True)
    async def server(self) -> ServerStatus: ...

    @deadline(WORK, always=True)
    async def plugin_info(self, kind: str, plugin_id: str, options: Any | None) -> tuple[PluginStatus, Any | None]:
        """Return a plugin and, if `options` ask for it, what its instance says of itself.

        Raises NotFound for an unknown plugin, FailedPrecondition for one that did not load, Unimplemented for one
        that has nothing to say.
        """
        ...


@runtime_checkable
class PluginInfoProvider(Protocol):
    """An instance that answers `Introspection.PluginInfo`."""

    @deadline(TASK, always=True)
    async def plugin_info(self, options: Any) -> Any:
        """Answer `options`. Both are typed values that the API defines for this kind of plugin."""
        ...
