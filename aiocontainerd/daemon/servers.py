"""Built-in plugins: the event exchange and the servers of the daemon's sockets (facts/core 16).

A server binds its socket in its init, after the init of every other plugin. It accepts once it is started. `serving.py`
starts all servers when all plugins are loaded, and stops them before any plugin stops.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from aiocontainerd import kinds
from aiocontainerd.config.plugin import PluginConfig
from aiocontainerd.config.records import DEFAULT_ADDRESS, MESSAGE_SIZE
from aiocontainerd.config.values import OwnerId, SocketAddress, TcpAddress
from aiocontainerd.daemon import tls
from aiocontainerd.host.hookspecs import hookimpl
from aiocontainerd.host.init_context import InitContext
from aiocontainerd.host.registration import Registration, SkipPlugin
from aiocontainerd.interfaces.server import Server

if TYPE_CHECKING:
    import ssl

    from aiocontainerd.events import EventBus
    from aiocontainerd.interfaces.rpc_service import Service
    from aiocontainerd.rpc.grpc import GrpcFrontEnd
    from aiocontainerd.rpc.sockets import UnixSocket
    from aiocontainerd.rpc.ttrpc.server import TtrpcServer

DEFAULT_TTRPC_ADDRESS = f"{DEFAULT_ADDRESS}.ttrpc"
ServerT = TypeVar("ServerT", bound=Server)


class GrpcConfig(PluginConfig, frozen=True, kw_only=True):
    """`[plugins."io.containerd.server.v1.grpc"]`. An address of "" and sizes of 0 or less mean the default."""

    address: SocketAddress = DEFAULT_ADDRESS
    uid: OwnerId = msgspec.field(default_factory=os.geteuid)
    gid: OwnerId = msgspec.field(default_factory=os.getegid)
    max_recv_message_size: int = MESSAGE_SIZE
    max_send_message_size: int = MESSAGE_SIZE


class TtrpcConfig(PluginConfig, frozen=True, kw_only=True):
    """`[plugins."io.containerd.server.v1.ttrpc"]`."""

    address: SocketAddress = DEFAULT_TTRPC_ADDRESS
    uid: OwnerId = msgspec.field(default_factory=os.geteuid)
    gid: OwnerId = msgspec.field(default_factory=os.getegid)


class GrpcTcpConfig(PluginConfig, frozen=True, kw_only=True):
    """`[plugins."io.containerd.server.v1.grpc-tcp"]`. With `tls_ca`, clients must show a certificate it signed."""

    address: TcpAddress = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_common_name: str = ""
    max_recv_message_size: int = MESSAGE_SIZE
    max_send_message_size: int = MESSAGE_SIZE


class UnixGrpcServer:
    """The gRPC front end on the daemon's main socket. `serves` tells whether it has any service."""

    def __init__(self, front: GrpcFrontEnd, bound: UnixSocket, *, serves: bool) -> None:
        self.front = front
        self.serves = serves
        self._bound = bound

    def __repr__(self) -> str:
        return f"<UnixGrpcServer {self.address} {self.front!r}>"

    @property
    def address(self) -> str:
        return self._bound.path

    async def start(self) -> None:
        await self.front.start(self._bound.sock)

    async def stop(self, grace_s: float) -> None:
        try:
            await self.front.stop(grace_s)
        finally:
            self._bound.remove()


class UnixTtrpcServer:
    """The ttrpc server shims send their events to."""

    def __init__(self, server: TtrpcServer, bound: UnixSocket) -> None:
        self.server = server
        self._bound = bound

    def __repr__(self) -> str:
        return f"<UnixTtrpcServer {self.address} {self.server!r}>"

    @property
    def address(self) -> str:
        return self._bound.path

    async def start(self) -> None:
        await self.server.start(self._bound.sock)

    async def stop(self, grace_s: float) -> None:
        try:
            await self.server.aclose(grace_s)
        finally:
            self._bound.remove()


class TcpGrpcServer:
    """The gRPC front end on TCP."""

    def __init__(self, front: GrpcFrontEnd, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        host, port = sock.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.front = front
        self._sock = sock
        self._tls = tls

    def __repr__(self) -> str:
        return f"<TcpGrpcServer {self.address} {'with' if self._tls else 'without'} TLS {self.front!r}>"

    async def start(self) -> None:
        await self.front.start(self._sock, self._tls)

    async def stop(self, grace_s: float) -> None:
        try:
            await self.front.stop(grace_s)
        finally:
            self._sock.close()


def servable(context: InitContext[Any], kind: str) -> list[Service]:
    """Return the instances of a kind that can be served, one for each service name.

    A plugin that is left out is marked as failed, and its row says why.
    """
    from aiocontainerd.rpc import binding

    chosen: dict[str, tuple[str, Service]] = {}
    for plugin_id, service in sorted(context.get_all(kind).items()):
        try:
            binding.bind(service)
        except (ValueError, TypeError, AttributeError) as error:
            context.reject(f"{kind}.{plugin_id}", f"not served: {error}")
            continue
        taken = chosen.setdefault(service.service_name, (plugin_id, service))
        if taken[1] is not service:
            reason = f"not served: {service.service_name} is served already, by {taken[0]}"
            context.reject(f"{kind}.{plugin_id}", reason)
    return [service for _, service in chosen.values()]


async def init_exchange(context: InitContext[PluginConfig]) -> EventBus:
    """Return the daemon's bus, which is the event exchange."""
    return context.bus


async def init_grpc(context: InitContext[GrpcConfig]) -> UnixGrpcServer:
    """Bind the main socket for every gRPC service."""
    from aiocontainerd.rpc.grpc import GrpcFrontEnd
    from aiocontainerd.rpc.sockets import bind_unix

    config = context.config
    address = context.daemon.grpc_address or config.address or DEFAULT_ADDRESS
    services = servable(context, kinds.GRPC)
    front = GrpcFrontEnd(
        services,
        max_recv_message_size=_size(config.max_recv_message_size),
        max_send_message_size=_size(config.max_send_message_size),
    )
    bound = bind_unix(_path(address), config.uid, config.gid)
    return _kept(context, UnixGrpcServer(front, bound, serves=bool(services)))


async def init_ttrpc(context: InitContext[TtrpcConfig]) -> UnixTtrpcServer:
    """Bind the socket of the shims for every ttrpc service."""
    from aiocontainerd.rpc.big_messages import CodecThread
    from aiocontainerd.rpc.sockets import bind_unix
    from aiocontainerd.rpc.ttrpc.server import TtrpcServer

    config = context.config
    address = context.daemon.ttrpc_address or config.address
    if not address:
        raise SkipPlugin("no address")
    server = TtrpcServer(servable(context, kinds.TTRPC), message_codec=CodecThread())
    return _kept(context, UnixTtrpcServer(server, bind_unix(_path(address), config.uid, config.gid)))


async def init_grpc_tcp(context: InitContext[GrpcTcpConfig]) -> TcpGrpcServer:
    """Bind a TCP port for the gRPC services that allow it (`serves_tcp = True`)."""
    config = context.config
    if not config.address:
        raise SkipPlugin("no address")
    allowed = [service for service in servable(context, kinds.GRPC) if getattr(service, "serves_tcp", False)]
    if not allowed:
        raise SkipPlugin("no service is served over TCP")
    from aiocontainerd.rpc.grpc import GrpcFrontEnd
    from aiocontainerd.rpc.sockets import bind_tcp

    name = config.tls_common_name
    secured = tls.server_context(config.tls_cert, config.tls_key, config.tls_ca)
    front = GrpcFrontEnd(
        allowed,
        max_recv_message_size=_size(config.max_recv_message_size),
        max_send_message_size=_size(config.max_send_message_size),
        accept_peer=(lambda transport: tls.has_common_name(transport, name)) if name else None,
    )
    return _kept(context, TcpGrpcServer(front, bind_tcp(config.address), secured))


@hookimpl
def register_plugins() -> list[Registration]:
    """Register the event exchange and the servers."""
    return [
        Registration(kind=kinds.EVENT, id="exchange", init=init_exchange),
        Registration(kind=kinds.SERVER, id="grpc", requires=(kinds.ALL,), config=GrpcConfig, init=init_grpc),
        Registration(kind=kinds.SERVER, id="ttrpc", requires=(kinds.ALL,), config=TtrpcConfig, init=init_ttrpc),
        Registration(kind=kinds.SERVER, id="grpc-tcp", requires=(kinds.ALL,), config=GrpcTcpConfig, init=init_grpc_tcp),
    ]


def _kept(context: InitContext[Any], server: ServerT) -> ServerT:
    """Return the server; stop it with its plugin, in case the daemon did not stop it before."""

    async def stop() -> None:
        await server.stop(0)

    context.on_stop(stop)
    return server


def _size(size_bytes: int) -> int:
    """Return the most bytes of a message. Containerd ignores sizes of 0 and less, which older files have."""
    return size_bytes if size_bytes > 0 else MESSAGE_SIZE


def _path(address: str) -> str:
    return address.removeprefix("unix://")
