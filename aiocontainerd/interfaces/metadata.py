"""The metadata store (kind `io.containerd.metadata.v1`, id `bolt`): every record of every namespace.

All methods work in the namespace of the current call (`aiocontainerd.context`) unless they say otherwise, and add what
they create to the lease of the current call. A method that changes something returns when the change is on disk.
Records are immutable; `update` takes a record and the field paths to take from it (none = the default set of the
resource) and returns the record as stored. Codes and texts of every failure are in facts/core 1, 3, 5, 6, 9.

Events: the store publishes `/namespaces/*`, `/containers/*`, `/images/*`, `/content/*` and `/snapshot/*` after the
commit. Events about a namespace are published in that namespace and tell the labels as the caller gave them.

Garbage collection: `sweep` marks from the roots over labels and built-in edges (facts/core 10) and deletes the records
that it did not reach, in batches outside any lock, re-checking each. `reclaim` then asks every dirty backend to drop
what no namespace knows. Deleting files may take long, so the next sweep may run beside it. `on_mutation` tells a
scheduler of every committed change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import msgspec

from aiocontainerd import identifiers
from aiocontainerd.errors import InvalidArgument
from aiocontainerd.gotext import quoted
from aiocontainerd.interfaces.content import ContentStore
from aiocontainerd.interfaces.rules import LONG, WORK, deadline
from aiocontainerd.interfaces.snapshotter import Snapshotter
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.typeurl import Any

_NONE: Mapping[str, str] = MappingProxyType({})
_NO_ANYS: Mapping[str, Any] = MappingProxyType({})


class Namespace(msgspec.Struct, frozen=True):
    """A namespace and its labels."""

    name: str
    labels: Mapping[str, str] = _NONE


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """A container record. `spec`, `runtime_options` and `extensions` are opaque and come back byte for byte."""

    id: str
    labels: Mapping[str, str] = _NONE
    image: str = ""
    runtime_name: str = ""
    runtime_options: Any | None = None
    spec: Any | None = None
    snapshotter: str = ""
    snapshot_key: str = ""
    created_at_ns: int = 0
    updated_at_ns: int = 0
    extensions: Mapping[str, Any] = _NO_ANYS
    sandbox_id: str = ""


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image record: a name for a target descriptor."""

    name: str
    target: Descriptor
    labels: Mapping[str, str] = _NONE
    created_at_ns: int = 0
    updated_at_ns: int = 0


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A lease."""

    id: str
    created_at_ns: int = 0
    labels: Mapping[str, str] = _NONE


class Resource(msgspec.Struct, frozen=True):
    """A thing that a lease holds. `type` is `content`, `ingests`, `images` or `snapshots/<snapshotter>`."""

    id: str
    type: str


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """How many records a sweep removed, by kind.

    Kinds are `content`, `images`, `ingests`, `leases`, `snapshots/<snapshotter>`.
    `duration_s` is how long it worked, without the time in which it left the store to its callers. The removal of files
    does not count, as in containerd: otherwise the pause until the next sweep would grow with the files.
    """

    removed: Mapping[str, int]
    duration_s: float


def check_namespace_update(namespace: Namespace, paths: Sequence[str]) -> None:
    """Raise InvalidArgument for a bad name, or for a path other than `labels.<key>`."""
    identifiers.validate(namespace.name)
    for path in paths:
        if not path.startswith("labels."):
            raise InvalidArgument(f"cannot update {quoted(path)} field", complete=True)


class NamespaceStore(Protocol):
    """Namespaces. These methods need no namespace in the context."""

    @deadline(WORK)
    async def create(self, name: str, labels: Mapping[str, str]) -> None: ...

    @deadline(WORK)
    async def get(self, name: str) -> Namespace:
        """Return the namespace. An unknown one has no labels; that is no error."""
        ...

    @deadline(WORK)
    async def update(self, namespace: Namespace, paths: Sequence[str] = ()) -> Namespace:
        """Create a namespace, or change all of its labels or those that `paths` name."""
        ...

    @deadline(WORK)
    async def list(self) -> list[Namespace]:
        """Return all namespaces, sorted by name."""
        ...

    @deadline(WORK, always=True)
    async def delete(self, name: str) -> None:
        """Delete an empty namespace. Raises FailedPrecondition naming the kinds of objects that are left in it."""
        ...


class ContainerStore(Protocol):
    """Container records."""

    @deadline(WORK)
    async def get(self, container_id: str) -> Container: ...

    @deadline(WORK)
    async def list(self, filters: Sequence[str] = ()) -> list[Container]: ...

    @deadline(WORK)
    async def create(self, container: Container) -> Container: ...

    @deadline(WORK)
    async def update(self, container: Container, paths: Sequence[str] = ()) -> Container: ...

    @deadline(WORK, always=True)
    async def delete(self, container_id: str) -> None: ...


class ImageStore(Protocol):
    """Image records. `epoch_ns` replaces the current time."""

    @deadline(WORK)
    async def get(self, name: str) -> Image: ...

    @deadline(WORK)
    async def list(self, filters: Sequence[str] = ()) -> list[Image]: ...

    @deadline(WORK)
    async def create(self, image: Image, *, epoch_ns: int | None = None) -> Image: ...

    @deadline(WORK)
    async def update(self, image: Image, paths: Sequence[str] = (), *, epoch_ns: int | None = None) -> Image: ...

    @deadline(WORK, always=True)
    async def delete(self, name: str, *, target: Descriptor | None = None) -> None:
        """Delete an image. Raises NotFound if `target` is given and the image has another one."""
        ...


class LeaseStore(Protocol):
    """Leases and what they hold."""

    @deadline(WORK)
    async def create(self, lease_id: str, labels: Mapping[str, str]) -> Lease:
        """Create a lease; for `lease_id` "" the store chooses the id."""
        ...

    @deadline(WORK, always=True)
    async def delete(self, lease_id: str) -> None: ...

    @deadline(WORK)
    async def list(self, filters: Sequence[str] = ()) -> list[Lease]: ...

    @deadline(WORK)
    async def add_resource(self, lease_id: str, resource: Resource) -> None: ...

    @deadline(WORK, always=True)
    async def delete_resource(self, lease_id: str, resource: Resource) -> None: ...

    @deadline(WORK)
    async def resources(self, lease_id: str) -> Sequence[Resource]: ...


class MetadataStore(Protocol):
    """The whole store."""

    @property
    def namespaces(self) -> NamespaceStore: ...

    @property
    def containers(self) -> ContainerStore: ...

    @property
    def images(self) -> ImageStore: ...

    @property
    def leases(self) -> LeaseStore: ...

    @property
    def content(self) -> ContentStore:
        """The content of the current namespace."""
        ...

    def snapshotter(self, name: str) -> Snapshotter:
        """Return the current namespace's snapshots in one backend. Raises InvalidArgument for an unknown backend."""
        ...

    @property
    def snapshotters(self) -> Sequence[str]:
        """Names of the loaded backends, sorted."""
        ...

    def on_mutation(self, callback: Callable[[bool], None]) -> None:
        """Call `callback(deletion)` on the event loop after every committed change."""
        ...

    @deadline(LONG)
    async def sweep(self) -> Collected:
        """Delete the records that nothing leads to."""
        ...

    @deadline(LONG)
    async def reclaim(self) -> None:
        """Delete from the backends what no namespace has. Return when all that was swept before the call is gone."""
        ...

    @deadline(LONG)
    async def collect(self) -> Collected:
        """Sweep and reclaim: one whole collection, for a caller without a schedule."""
        ...
