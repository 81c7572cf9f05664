"""The logic of namespaces: field masks, and the events in the namespace they are about (facts/core 1, 11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from aiocontainerd import api
from aiocontainerd.interfaces.metadata import Namespace, NamespaceStore
from aiocontainerd.serve.namespaces import check_update

if TYPE_CHECKING:
    from aiocontainerd.events import EventBus


class NamespacesService:
    """A NamespaceStore that publishes what it did."""

    def __init__(self, store: NamespaceStore, bus: EventBus) -> None:
        self._store = store
        self._bus = bus

    async def get(self, name: str) -> Namespace:
        """The namespace; one that is unknown has no labels."""
        return await self._store.get(name)

    async def list(self) -> list[Namespace]:
        """All, sorted by name."""
        return await self._store.list()

    async def create(self, name: str, labels: Mapping[str, str]) -> None:
        """Raises InvalidArgument for a bad name or label, AlreadyExists."""
        await self._store.create(name, labels)
        self._bus.publish(
            "/namespaces/create", api.event_types.NamespaceCreate(name=name, labels=dict(labels)), namespace=name
        )

    async def update(self, namespace: Namespace, paths: Sequence[str] = ()) -> Namespace:
        """Create or change. A path is `labels.<key>`; without any, all labels are replaced. Raises InvalidArgument."""
        check_update(namespace, paths)
        updated = await self._store.update(namespace, paths)
        self._bus.publish(
            "/namespaces/update",
            api.event_types.NamespaceUpdate(name=namespace.name, labels=dict(namespace.labels)),
            namespace=namespace.name,
        )
        return updated

    async def delete(self, name: str) -> None:
        """Raises NotFound, or FailedPrecondition naming the kinds of objects that are left in it."""
        await self._store.delete(name)
        self._bus.publish("/namespaces/delete", api.event_types.NamespaceDelete(name=name), namespace=name)
