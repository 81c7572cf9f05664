"""Keep the records of a metadata store in memory: namespaces, containers, images, leases, and fakes of the backends.

`FakeMetadata` is enough for a plugin that reads and writes records. It does not collect garbage, checks no field of a
record, and publishes no events. Records are those of the namespace of the current call.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from aiocontainerd import context, timestamps
from aiocontainerd import labels as label_rules
from aiocontainerd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from aiocontainerd.filters import compile_filters, field
from aiocontainerd.interfaces.content import ContentStore
from aiocontainerd.interfaces.metadata import Collected, Container, Image, Lease, Namespace, Resource
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.testing.fakes import FakeContentStore, FakeSnapshotter


class _Labelled(Protocol):
    @property
    def labels(self) -> Mapping[str, str]: ...


RecordT = TypeVar("RecordT", bound=_Labelled)


class _Records(Generic[RecordT]):
    """Records of one sort by name, those of each namespace apart."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._all: dict[str, dict[str, RecordT]] = {}

    def __repr__(self) -> str:
        return f"<{self._what} records: {self.statistics()}>"

    def statistics(self) -> dict[str, int]:
        """Return how many records each namespace has."""
        return {namespace: len(found) for namespace, found in self._all.items()}

    @property
    def here(self) -> dict[str, RecordT]:
        """The records of the current namespace."""
        return self._all.setdefault(context.current().namespace, {})

    def found(self, name: str) -> RecordT:
        """Return a record. Raises NotFound."""
        if name not in self.here:
            raise NotFound(f'{self._what} "{name}"')
        return self.here[name]

    def add(self, name: str, record: RecordT) -> RecordT:
        """Keep a new record. Raises AlreadyExists."""
        if name in self.here:
            raise AlreadyExists(f'{self._what} "{name}"')
        self.here[name] = record
        return record

    def chosen(self, filters: Sequence[str], fields: Callable[[RecordT], Mapping[str, str]]) -> list[RecordT]:
        """Return the records that a filter matches, sorted by name."""
        matching = compile_filters(filters)

        def value(record: RecordT, path: tuple[str, ...]) -> str | None:
            return field(record.labels, path[1:]) if path[0] == "labels" else fields(record).get(".".join(path))

        return [
            record
            for _, record in sorted(self.here.items())
            if matching.matches(lambda path, record=record: value(record, path))  # type: ignore[misc]
        ]

    def drop(self, name: str) -> None:
        """Forget a record. Raises NotFound."""
        self.found(name)
        del self.here[name]


class FakeNamespaces:
    """A `NamespaceStore`."""

    def __init__(self) -> None:
        self._all: dict[str, Namespace] = {}

    async def create(self, name: str, labels: Mapping[str, str]) -> None:
        if name in self._all:
            raise AlreadyExists(f'namespace "{name}"')
        self._all[name] = Namespace(name, dict(labels))

    async def get(self, name: str) -> Namespace:
        return self._all.get(name, Namespace(name))

    async def update(self, namespace: Namespace, paths: Sequence[str] = ()) -> Namespace:
        before = await self.get(namespace.name)
        labels = label_rules.update(before.labels, namespace.labels, list(paths) or ["labels"])
        self._all[namespace.name] = Namespace(namespace.name, labels)
        return self._all[namespace.name]

    async def list(self) -> list[Namespace]:
        return [found for _, found in sorted(self._all.items())]

    async def delete(self, name: str) -> None:
        if self._all.pop(name, None) is None:
            raise NotFound(f'namespace "{name}"')


class FakeContainers:
    """A `ContainerStore`."""

    def __init__(self) -> None:
        self._records: _Records[Container] = _Records("container")

    async def get(self, container_id: str) -> Container:
        return self._records.found(container_id)

    async def list(self, filters: Sequence[str] = ()) -> list[Container]:
        return self._records.chosen(filters, lambda one: {"id": one.id, "image": one.image})

    async def create(self, container: Container) -> Container:
        now = timestamps.now_ns()
        made = msgspec.structs.replace(container, created_at_ns=now, updated_at_ns=now)
        return self._records.add(container.id, made)

    async def update(self, container: Container, paths: Sequence[str] = ()) -> Container:
        before = self._records.found(container.id)
        self._records.here[container.id] = _updated(before, container, paths)
        return self._records.here[container.id]

    async def delete(self, container_id: str) -> None:
        self._records.drop(container_id)


class FakeImages:
    """An `ImageStore`, and an `ImageService`."""

    def __init__(self) -> None:
        self._records: _Records[Image] = _Records("image")

    async def get(self, name: str) -> Image:
        return self._records.found(name)

    async def list(self, filters: Sequence[str] = ()) -> list[Image]:
        return self._records.chosen(filters, lambda one: {"name": one.name, "target.digest": one.target.digest})

    async def create(self, image: Image, *, epoch_ns: int | None = None) -> Image:
        now = timestamps.now_ns() if epoch_ns is None else epoch_ns
        return self._records.add(image.name, msgspec.structs.replace(image, created_at_ns=now, updated_at_ns=now))

    async def update(self, image: Image, paths: Sequence[str] = (), *, epoch_ns: int | None = None) -> Image:
        before = self._records.found(image.name)
        self._records.here[image.name] = _updated(before, image, paths, epoch_ns)
        return self._records.here[image.name]

    async def delete(self, name: str, *, target: Descriptor | None = None, sync: bool = False) -> None:  # noqa: ARG002
        if target is not None and self._records.found(name).target != target:
            raise NotFound(f'image "{name}" has another target')
        self._records.drop(name)


class FakeLeases:
    """A `LeaseStore`, and a `LeaseManager`."""

    def __init__(self) -> None:
        self._records: _Records[Lease] = _Records("lease")
        self._held: dict[tuple[str, str], list[Resource]] = {}
        self._numbers = itertools.count(1)

    async def create(self, lease_id: str, labels: Mapping[str, str]) -> Lease:
        lease = Lease(id=lease_id or f"lease-{next(self._numbers)}", created_at_ns=timestamps.now_ns(), labels=labels)
        return self._records.add(lease.id, lease)

    async def delete(self, lease_id: str, *, sync: bool = False) -> None:  # noqa: ARG002 - nothing is collected
        self._records.drop(lease_id)
        self._held.pop(self._key(lease_id), None)

    async def list(self, filters: Sequence[str] = ()) -> list[Lease]:
        return self._records.chosen(filters, lambda one: {"id": one.id})

    async def add_resource(self, lease_id: str, resource: Resource) -> None:
        self._records.found(lease_id)
        held = self._held.setdefault(self._key(lease_id), [])
        if resource not in held:
            held.append(resource)

    async def delete_resource(self, lease_id: str, resource: Resource) -> None:
        self._records.found(lease_id)
        held = self._held.get(self._key(lease_id), [])
        if resource in held:
            held.remove(resource)

    async def resources(self, lease_id: str) -> Sequence[Resource]:
        self._records.found(lease_id)
        return tuple(self._held.get(self._key(lease_id), ()))

    def _key(self, lease_id: str) -> tuple[str, str]:
        return context.current().namespace, lease_id


class FakeMetadata:
    """A `MetadataStore` over fakes. `backends` are its snapshotters by name; a test may replace any part."""

    def __init__(self, content: Any | None = None, *snapshotters: str) -> None:
        self.namespaces = FakeNamespaces()
        self.containers = FakeContainers()
        self.images = FakeImages()
        self.leases = FakeLeases()
        self.content: ContentStore = FakeContentStore() if content is None else content
        self.backends = {name: FakeSnapshotter() for name in snapshotters or ("overlayfs", "native")}
        self.callbacks: list[Callable[[bool], None]] = []

    def __repr__(self) -> str:
        return f"<FakeMetadata over {', '.join(self.snapshotters)}>"

    def snapshotter(self, name: str) -> FakeSnapshotter:
        if name not in self.backends:
            raise InvalidArgument(f"snapshotter not loaded: {name}")
        return self.backends[name]

    @property
    def snapshotters(self) -> Sequence[str]:
        return sorted(self.backends)

    def on_mutation(self, callback: Callable[[bool], None]) -> None:
        self.callbacks.append(callback)

    async def sweep(self) -> Collected:
        return Collected(removed={}, duration_s=0.0)

    async def reclaim(self) -> None:
        return

    async def collect(self) -> Collected:
        return await self.sweep()

    async def schedule_and_wait(self) -> Collected:
        """Collect, as the scheduler of a daemon does soon."""
        return await self.collect()


_StructT = TypeVar("_StructT", Container, Image)


def _updated(before: _StructT, given: _StructT, paths: Sequence[str], now_ns: int | None = None) -> _StructT:
    """Return a record after an update: everything that is given, or what the paths name."""
    now = timestamps.now_ns() if now_ns is None else now_ns
    if not paths:
        return msgspec.structs.replace(given, created_at_ns=before.created_at_ns, updated_at_ns=now)
    of_labels = [path for path in paths if path.partition(".")[0] == "labels"]
    names = {path.partition(".")[0] for path in paths} - {"labels"}
    if not names <= set(before.__struct_fields__):
        raise FailedPrecondition(f"cannot update {', '.join(sorted(names))}")
    changes = {name: getattr(given, name) for name in names}
    labels = label_rules.update(before.labels, given.labels, of_labels)
    return msgspec.structs.replace(before, **changes, labels=labels, updated_at_ns=now)
