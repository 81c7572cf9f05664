"""The daemon's own logic behind its API (kind `io.containerd.service.v1`), for other plugins to call.

The gRPC services of the same subject only convert messages; who lives in the daemon calls these instead, in the
namespace and lease of `aiocontainerd.context`, and gets the same checks, texts and events:

    namespaces-service      NamespaceStore, publishing `/namespaces/*`
    containers-service      ContainerStore, publishing `/containers/*`
    content-service         ContentStore, publishing `/content/delete`
    images-service          ImageService
    snapshots-service       SnapshotsService
    diff-service            Differ: the configured differs, asked in turn
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
from aiocontainerd.interfaces.snapshotter import Snapshotter
from aiocontainerd.interfaces.warning import Deprecation, DeprecationLog
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.typeurl import Any

__all__ = [
    "Deprecation", "DeprecationLog", "ImageService", "IntrospectionService", "LeaseManager", "PluginInfoProvider",
    "PluginStatus", "ServerStatus", "SnapshotsService",
]  # fmt: skip

_NONE: Mapping[str, str] = MappingProxyType({})


class ImageService(ImageStore, Protocol):
    """Image records whose deletion can wait for what they held to be gone."""

    async def delete(self, name: str, *, target: Descriptor | None = None, sync: bool = False) -> None:
        """As ImageStore; `sync` returns only after a whole garbage collection. Its failure is Unknown."""
        ...


class LeaseManager(LeaseStore, Protocol):
    """Leases whose deletion can wait for what they held to be gone."""

    async def delete(self, lease_id: str, *, sync: bool = False) -> None:
        """As LeaseStore; `sync` returns only after a whole garbage collection."""
        ...


class SnapshotsService(Protocol):
    """The snapshotters by name."""

    def snapshotter(self, name: str) -> Snapshotter:
        """The current namespace's snapshots in that backend. Raises InvalidArgument for "" or an unknown name."""
        ...


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
        """Every plugin that was to start, those that failed or skipped included. Raises InvalidArgument (filters)."""
        ...

    async def server(self) -> ServerStatus: ...

    async def plugin_info(self, kind: str, plugin_id: str, options: Any | None) -> tuple[PluginStatus, Any | None]:
        """A plugin and, where `options` ask for it, what its instance says of itself.

        Raises NotFound for an unknown plugin, FailedPrecondition for one that did not load, Unimplemented for one
        that has nothing to say.
        """
        ...


@runtime_checkable
class PluginInfoProvider(Protocol):
    """An instance that tells more of itself than every plugin does."""

    async def plugin_info(self, options: Any) -> Any:
        """The answer to `options`, both typed values that the API defines for this kind of plugin."""
        ...
