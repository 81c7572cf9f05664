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
        """The namespace, without labels where it is unknown."""
        return api.namespaces.GetNamespaceResponse(
            namespace=namespace_to_wire(await self._namespaces.get(request.name))
        )

    async def list(self, _request: api.namespaces.ListNamespacesRequest) -> api.namespaces.ListNamespacesResponse:
        """All, sorted by name; the filter is ignored, as containerd does."""
        return api.namespaces.ListNamespacesResponse(
            namespaces=[namespace_to_wire(namespace) for namespace in await self._namespaces.list()]
        )

    async def create(self, request: api.namespaces.CreateNamespaceRequest) -> api.namespaces.CreateNamespaceResponse:
        """Answers with the request's own namespace, labels with an empty value included."""
        given = required(request.namespace, "namespace")
        await self._namespaces.create(given.name, given.labels)
        return api.namespaces.CreateNamespaceResponse(namespace=given)

    async def update(self, request: api.namespaces.UpdateNamespaceRequest) -> api.namespaces.UpdateNamespaceResponse:
        """Answers with an empty message. Errors about labels are UNKNOWN (facts/core 0)."""
        given = required(request.namespace, "namespace")
        namespace, paths = namespace_from_wire(given), mask_from_wire(request.update_mask)
        check_namespace_update(namespace, paths)
        with unconverted():
            await self._namespaces.update(namespace, paths)
        return api.namespaces.UpdateNamespaceResponse()

    async def delete(self, request: api.namespaces.DeleteNamespaceRequest) -> api.protobuf.Empty:
        """Refuses a namespace that is not empty."""
        await self._namespaces.delete(request.name)
        return api.protobuf.Empty()
