"""Namespaces of a daemon: `NamespaceStore` over the API (facts/core 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from aiocontainerd import api
from aiocontainerd.client.connection import Connection
from aiocontainerd.interfaces.metadata import Namespace
from aiocontainerd.wire.masks import mask_to_wire
from aiocontainerd.wire.namespaces import namespace_from_wire, namespace_to_wire

_NONE: Mapping[str, str] = MappingProxyType({})


class Namespaces:
    """`NamespaceStore` over the API."""

    SERVICE = "containerd.services.namespaces.v1.Namespaces"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(self, name: str, labels: Mapping[str, str] = _NONE) -> None:
        """Create a namespace. Raises AlreadyExists, InvalidArgument."""
        n = api.namespaces
        request = n.CreateNamespaceRequest(namespace=namespace_to_wire(Namespace(name, labels)))
        await self._connection.call(self.SERVICE, "Create", request, n.CreateNamespaceResponse)

    async def get(self, name: str) -> Namespace:
        """Return a namespace; an unknown one has no labels."""
        n = api.namespaces
        answer = await self._connection.call(
            self.SERVICE, "Get", n.GetNamespaceRequest(name=name), n.GetNamespaceResponse
        )
        return namespace_from_wire(answer.namespace)

    async def update(self, namespace: Namespace, paths: Sequence[str] = ()) -> Namespace:
        """Change all labels, or those that `paths` name."""
        n = api.namespaces
        request = n.UpdateNamespaceRequest(namespace=namespace_to_wire(namespace), update_mask=mask_to_wire(paths))
        answer = await self._connection.call(self.SERVICE, "Update", request, n.UpdateNamespaceResponse)
        return namespace_from_wire(answer.namespace)

    async def list(self) -> list[Namespace]:
        """Return all, sorted by name."""
        n = api.namespaces
        answer = await self._connection.call(self.SERVICE, "List", n.ListNamespacesRequest(), n.ListNamespacesResponse)
        return [namespace_from_wire(message) for message in answer.namespaces]

    async def delete(self, name: str) -> None:
        """Delete an empty namespace. Raises FailedPrecondition where it isn't empty, NotFound."""
        n = api.namespaces
        await self._connection.call(self.SERVICE, "Delete", n.DeleteNamespaceRequest(name=name), api.protobuf.Empty)
