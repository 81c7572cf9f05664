"""Namespaces, images, containers and leases of a daemon, with the methods of its own stores (`interfaces.metadata`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from aiocontainerd import api
from aiocontainerd.client.connection import Connection
from aiocontainerd.errors import Internal
from aiocontainerd.interfaces.metadata import Container, Image, Lease, Namespace, Resource
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.wire.containers import container_from_wire, container_to_wire
from aiocontainerd.wire.descriptors import descriptor_to_wire
from aiocontainerd.wire.images import image_from_wire, image_to_wire
from aiocontainerd.wire.leases import lease_from_wire, resource_from_wire, resource_to_wire
from aiocontainerd.wire.masks import mask_to_wire
from aiocontainerd.wire.namespaces import namespace_from_wire, namespace_to_wire
from aiocontainerd.wire.times import epoch_to_wire

_NONE: Mapping[str, str] = MappingProxyType({})


class Namespaces:
    """`NamespaceStore` over the API."""

    SERVICE = "containerd.services.namespaces.v1.Namespaces"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(self, name: str, labels: Mapping[str, str] = _NONE) -> None:
        """Raises AlreadyExists, InvalidArgument."""
        n = api.namespaces
        request = n.CreateNamespaceRequest(namespace=namespace_to_wire(Namespace(name, labels)))
        await self._connection.call(self.SERVICE, "Create", request, n.CreateNamespaceResponse)

    async def get(self, name: str) -> Namespace:
        """One namespace; an unknown one has no labels."""
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
        """All, sorted by name."""
        n = api.namespaces
        answer = await self._connection.call(self.SERVICE, "List", n.ListNamespacesRequest(), n.ListNamespacesResponse)
        return [namespace_from_wire(message) for message in answer.namespaces]

    async def delete(self, name: str) -> None:
        """Raises FailedPrecondition where it isn't empty, NotFound."""
        n = api.namespaces
        await self._connection.call(self.SERVICE, "Delete", n.DeleteNamespaceRequest(name=name), api.protobuf.Empty)


class Images:
    """`ImageService` over the API."""

    SERVICE = "containerd.services.images.v1.Images"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, name: str) -> Image:
        """Raises NotFound."""
        i = api.images
        answer = await self._connection.call(self.SERVICE, "Get", i.GetImageRequest(name=name), i.GetImageResponse)
        return _image(answer.image)

    async def list(self, filters: Sequence[str] = ()) -> list[Image]:
        """Those that a filter matches, sorted by name."""
        i = api.images
        request = i.ListImagesRequest(filters=list(filters))
        answer = await self._connection.call(self.SERVICE, "List", request, i.ListImagesResponse)
        return [_image(message) for message in answer.images]

    async def create(self, image: Image, *, epoch_ns: int | None = None) -> Image:
        """Raises AlreadyExists."""
        i = api.images
        request = i.CreateImageRequest(image=image_to_wire(image), source_date_epoch=epoch_to_wire(epoch_ns))
        answer = await self._connection.call(self.SERVICE, "Create", request, i.CreateImageResponse)
        return _image(answer.image)

    async def update(self, image: Image, paths: Sequence[str] = (), *, epoch_ns: int | None = None) -> Image:
        """Raises NotFound."""
        i = api.images
        request = i.UpdateImageRequest(
            image=image_to_wire(image), update_mask=mask_to_wire(paths), source_date_epoch=epoch_to_wire(epoch_ns)
        )
        answer = await self._connection.call(self.SERVICE, "Update", request, i.UpdateImageResponse)
        return _image(answer.image)

    async def delete(self, name: str, *, target: Descriptor | None = None, sync: bool = False) -> None:
        """`sync` waits for the garbage collection. Raises NotFound."""
        wanted = None if target is None else descriptor_to_wire(target)
        request = api.images.DeleteImageRequest(name=name, sync=sync, target=wanted)
        await self._connection.call(self.SERVICE, "Delete", request, api.protobuf.Empty)


class Containers:
    """`ContainerStore` over the API."""

    SERVICE = "containerd.services.containers.v1.Containers"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, container_id: str) -> Container:
        """Raises NotFound."""
        c = api.containers
        answer = await self._connection.call(
            self.SERVICE, "Get", c.GetContainerRequest(id=container_id), c.GetContainerResponse
        )
        return _container(answer.container)

    async def list(self, filters: Sequence[str] = ()) -> list[Container]:
        """Those that a filter matches, sorted by id."""
        c = api.containers
        request = c.ListContainersRequest(filters=list(filters))
        answer = await self._connection.call(self.SERVICE, "List", request, c.ListContainersResponse)
        return [_container(message) for message in answer.containers]

    async def create(self, container: Container) -> Container:
        """Raises AlreadyExists, InvalidArgument."""
        c = api.containers
        request = c.CreateContainerRequest(container=container_to_wire(container))
        answer = await self._connection.call(self.SERVICE, "Create", request, c.CreateContainerResponse)
        return _container(answer.container)

    async def update(self, container: Container, paths: Sequence[str] = ()) -> Container:
        """Raises NotFound, InvalidArgument."""
        c = api.containers
        request = c.UpdateContainerRequest(container=container_to_wire(container), update_mask=mask_to_wire(paths))
        answer = await self._connection.call(self.SERVICE, "Update", request, c.UpdateContainerResponse)
        return _container(answer.container)

    async def delete(self, container_id: str) -> None:
        """Raises NotFound."""
        request = api.containers.DeleteContainerRequest(id=container_id)
        await self._connection.call(self.SERVICE, "Delete", request, api.protobuf.Empty)


class Leases:
    """`LeaseManager` over the API."""

    SERVICE = "containerd.services.leases.v1.Leases"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(self, lease_id: str = "", labels: Mapping[str, str] = _NONE) -> Lease:
        """`lease_id` "" lets the daemon make one up. Raises AlreadyExists."""
        le = api.leases
        request = le.CreateRequest(id=lease_id, labels=dict(labels))
        answer = await self._connection.call(self.SERVICE, "Create", request, le.CreateResponse)
        if answer.lease is None:
            raise Internal("the daemon created a lease without telling it")
        return lease_from_wire(answer.lease)

    async def delete(self, lease_id: str, *, sync: bool = False) -> None:
        """Raises NotFound."""
        request = api.leases.DeleteRequest(id=lease_id, sync=sync)
        await self._connection.call(self.SERVICE, "Delete", request, api.protobuf.Empty)

    async def list(self, filters: Sequence[str] = ()) -> list[Lease]:
        """Those that a filter matches."""
        le = api.leases
        answer = await self._connection.call(
            self.SERVICE, "List", le.ListRequest(filters=list(filters)), le.ListResponse
        )
        return [lease_from_wire(message) for message in answer.leases]

    async def add_resource(self, lease_id: str, resource: Resource) -> None:
        """Raises NotFound for the lease; the resource need not exist."""
        le = api.leases
        request = le.AddResourceRequest(id=lease_id, resource=resource_to_wire(resource))
        await self._connection.call(self.SERVICE, "AddResource", request, api.protobuf.Empty)

    async def delete_resource(self, lease_id: str, resource: Resource) -> None:
        """Raises NotFound for the lease."""
        le = api.leases
        request = le.DeleteResourceRequest(id=lease_id, resource=resource_to_wire(resource))
        await self._connection.call(self.SERVICE, "DeleteResource", request, api.protobuf.Empty)

    async def resources(self, lease_id: str) -> Sequence[Resource]:
        """What a lease holds."""
        le = api.leases
        answer = await self._connection.call(
            self.SERVICE, "ListResources", le.ListResourcesRequest(id=lease_id), le.ListResourcesResponse
        )
        return [resource_from_wire(message) for message in answer.resources]


def _image(message: api.images.Image | None) -> Image:
    if message is None:
        raise Internal("the daemon answered without an image")
    return image_from_wire(message)


def _container(message: api.containers.Container | None) -> Container:
    if message is None:
        raise Internal("the daemon answered without a container")
    return container_from_wire(message)
