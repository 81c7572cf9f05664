"""A client of one daemon: one connection, and a typed client for each of its services."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Self

from aiocontainerd import context
from aiocontainerd.client.connection import TIMEOUT_S, CallerConnection, Connection
from aiocontainerd.rpc.grpc_client import CONNECT_TIMEOUT_S, GrpcClient

if TYPE_CHECKING:
    from types import TracebackType

    from aiocontainerd.client.containers import Containers
    from aiocontainerd.client.content import Content
    from aiocontainerd.client.daemon import Events, Introspection
    from aiocontainerd.client.diff import Diff
    from aiocontainerd.client.images import Images
    from aiocontainerd.client.leases import Leases
    from aiocontainerd.client.namespaces import Namespaces
    from aiocontainerd.client.plugins import Plugins
    from aiocontainerd.client.snapshots import Snapshots
    from aiocontainerd.client.tasks import Tasks
    from aiocontainerd.distribution.hosts import RegistryOptions
    from aiocontainerd.distribution.pull import Progress, PullOptions
    from aiocontainerd.distribution.stores import Stores
    from aiocontainerd.interfaces.metadata import Image

DEFAULT_ADDRESS = "/run/containerd/containerd.sock"


class Client:
    """A client of one daemon in one namespace. Used as an async context manager.

    Every call has a deadline of `timeout_s` seconds unless it names its own; only waiting for an exit or for events
    has none. Connecting takes `connect_timeout_s` seconds at most. Errors are those of `aiocontainerd.errors`.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        namespace: str = "default",
        timeout_s: float = TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        self._transport: GrpcClient | None = GrpcClient(address, connect_timeout_s=connect_timeout_s)
        self.connection = Connection(self._transport, namespace=namespace, timeout_s=timeout_s)

    def __repr__(self) -> str:
        return f"<Client {self.connection!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls in flight fail with Unavailable. A view made by `under` closes nothing."""
        if self._transport is not None:
            self._transport.close()

    def under(self, *, lease: str | None = None, namespace: str | None = None) -> Client:
        """Return a view of this client with another lease or namespace."""
        view = object.__new__(Client)
        view._transport = None
        view.connection = self.connection.under(lease=lease, namespace=namespace)
        return view

    @property
    def namespace(self) -> str:
        """The namespace of every call."""
        return self.connection.namespace

    @contextmanager
    def stores(self) -> Iterator[Stores]:
        """Give the functions of `distribution` this daemon's stores, for the length of a block.

        The block runs in the namespace and under the lease of this client, whatever those of the current call are:
        neither reaches another daemon. Within it, the stores follow `aiocontainerd.context`, as `leases.held` needs.
        """
        from aiocontainerd.client.content import Content
        from aiocontainerd.client.diff import Diff
        from aiocontainerd.client.images import Images
        from aiocontainerd.client.leases import Leases
        from aiocontainerd.client.namespaces import Namespaces
        from aiocontainerd.client.snapshots import Snapshots
        from aiocontainerd.distribution.stores import Stores

        connection = CallerConnection.of(self.connection)
        with context.use(namespace=self.connection.namespace, lease=self.connection.lease):
            yield Stores(
                content=Content(connection),
                images=Images(connection),
                leases=Leases(connection),
                namespaces=Namespaces(connection),
                snapshotter=lambda name: Snapshots(connection, name),
                differ=Diff(connection),
            )

    async def pull(
        self,
        name: str,
        registry: RegistryOptions | None = None,
        options: PullOptions | None = None,
        told: Progress | None = None,
    ) -> Image:
        """Pull the image that a reference names and unpack it. Raises as `distribution.pull.pull`."""
        from aiocontainerd.distribution.pull import pull, silent

        with self.stores() as stores:
            return await pull(stores, name, registry, options, told or silent)

    async def version(self) -> tuple[str, str]:
        """Return the daemon's version and revision."""
        from aiocontainerd.client.daemon import version

        return await version(self.connection)

    def snapshots(self, snapshotter: str) -> Snapshots:
        """Return the snapshots of one backend."""
        from aiocontainerd.client.snapshots import Snapshots

        return Snapshots(self.connection, snapshotter)

    @cached_property
    def namespaces(self) -> Namespaces:
        """Namespaces."""
        from aiocontainerd.client.namespaces import Namespaces

        return Namespaces(self.connection)

    @cached_property
    def images(self) -> Images:
        """Image records."""
        from aiocontainerd.client.images import Images

        return Images(self.connection)

    @cached_property
    def containers(self) -> Containers:
        """Container records."""
        from aiocontainerd.client.containers import Containers

        return Containers(self.connection)

    @cached_property
    def leases(self) -> Leases:
        """Leases."""
        from aiocontainerd.client.leases import Leases

        return Leases(self.connection)

    @cached_property
    def content(self) -> Content:
        """Blobs and ingests."""
        from aiocontainerd.client.content import Content

        return Content(self.connection)

    @cached_property
    def diff(self) -> Diff:
        """Differs."""
        from aiocontainerd.client.diff import Diff

        return Diff(self.connection)

    @cached_property
    def tasks(self) -> Tasks:
        """Tasks."""
        from aiocontainerd.client.tasks import Tasks

        return Tasks(self.connection)

    @cached_property
    def events(self) -> Events:
        """Events."""
        from aiocontainerd.client.daemon import Events

        return Events(self.connection)

    @cached_property
    def introspection(self) -> Introspection:
        """Plugins and identity."""
        from aiocontainerd.client.daemon import Introspection

        return Introspection(self.connection)

    @cached_property
    def plugins(self) -> Plugins:
        """Health of plugins and reload; aiocontainerd only."""
        from aiocontainerd.client.plugins import Plugins

        return Plugins(self.connection)
