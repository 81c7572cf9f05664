"""The Namespaces service (facts/core 1)."""

from __future__ import annotations

from typing import ClassVar

from aiocontainerd import api
from aiocontainerd.interfaces.metadata import NamespaceStore, check_namespace_update
from aiocontainerd.serve.requests import required, unconverted
from aiocontainerd.wire.masks import mask_from_wire
from aiocontainerd.wire.namespaces import namespace_from_wire, namespace_to_wire


class NamespacesGrpc:
    """`containerd.services.namespaces.v1.Namespaces`."""

    service_name: ClassVar[str] = "containerd.services.namespaces.v1.Namespaces"

    def __init__(self, namespaces: NamespaceStore) -> None:
        self._namespaces = namespaces

    async def get(self, request: api.namespaces.GetNamespaceRequest) -> api.namespaces.GetNamespaceResponse:
        """Return the namespace; an unknown one has no labels."""
        return api.namespaces.GetNamespaceResponse(
            namespace=namespace_to_wire(await self._namespaces.get(request.name))
        )

    async def list(self, _request: api.namespaces.ListNamespacesRequest) -> api.namespaces.ListNamespacesResponse:
        """Return all namespaces, sorted by name. The filter is ignored, as in containerd."""
        return api.namespaces.ListNamespacesResponse(
            namespaces=[namespace_to_wire(namespace) for namespace in await self._namespaces.list()]
        )

    async def create(self, request: api.namespaces.CreateNamespaceRequest) -> api.namespaces.CreateNamespaceResponse:
        """Create a namespace and return it as the request gave it, with labels of an empty value."""
        given = required(request.namespace, "namespace")
        await self._namespaces.create(given.name, given.labels)
        return api.namespaces.CreateNamespaceResponse(namespace=given)

    async def update(self, request: api.namespaces.UpdateNamespaceRequest) -> api.namespaces.UpdateNamespaceResponse:
        """Change labels and return an empty message. Errors about labels are UNKNOWN (facts/core 0)."""
        given = required(request.namespace, "namespace")
        namespace, paths = namespace_from_wire(given), mask_from_wire(request.update_mask)
        check_namespace_update(namespace, paths)
        with unconverted():
            await self._namespaces.update(namespace, paths)
        return api.namespaces.UpdateNamespaceResponse()

    async def delete(self, request: api.namespaces.DeleteNamespaceRequest) -> api.protobuf.Empty:
        """Delete a namespace; one that is not empty is refused."""
        await self._namespaces.delete(request.name)
        return api.protobuf.Empty()
