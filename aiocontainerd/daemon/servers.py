"""Built-in plugins: the event exchange and the servers of the daemon's sockets (facts/core 16).

A server binds its socket when it is initialised, after every other plugin, and accepts only once it is started. The
daemon starts all servers when all plugins are loaded, and stops them before any plugin stops.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from aiocontainerd import kinds
from aiocontainerd.host.hookspecs import hookimpl
from aiocontainerd.host.init_context import InitContext
from aiocontainerd.host.registration import PluginConfig, Registration, SkipPlugin
from aiocontainerd.interfaces.server import Server

if TYPE_CHECKING:
    import ssl

    from aiocontainerd.events import EventBus
    from aiocontainerd.interfaces.rpc_service import Service
    from aiocontainerd.rpc.grpc import GrpcFrontEnd
    from aiocontainerd.rpc.sockets import UnixSocket
    from aiocontainerd.rpc.ttrpc.server import TtrpcServer

DEFAULT_ADDRESS = "/run/containerd/containerd.sock"
DEFAULT_TTRPC_ADDRESS = f"{DEFAULT_ADDRESS}.ttrpc"
DEFAULT_MESSAGE_BYTES = 16 << 20


ServerT = TypeVar("ServerT", bound=Server)


class GrpcConfig(PluginConfig, frozen=True, kw_only=True):
    """`[plugins."io.containerd.server.v1.grpc"]`."""

    address: str = DEFAULT_ADDRESS
    uid: int = msgspec.field(default_factory=os.geteuid)
    gid: int = msgspec.field(default_factory=os.getegid)
    max_recv_message_size: int = DEFAULT_MESSAGE_BYTES
    max_send_message_size: int = DEFAULT_MESSAGE_BYTES


class TtrpcConfig(PluginConfig, frozen=True, kw_only=True):
    """`[plugins."io.containerd.server.v1.ttrpc"]`."""

    address: str = DEFAULT_TTRPC_ADDRESS
    uid: int = msgspec.field(default_factory=os.geteuid)
    gid: int = msgspec.field(default_factory=os.getegid)


class GrpcTcpConfig(PluginConfig, frozen=True, kw_only=True):
    """`[plugins."io.containerd.server.v1.grpc-tcp"]`. With `tls_ca`, clients must show a certificate it signed."""

    address: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_common_name: str = ""
    max_recv_message_size: int = DEFAULT_MESSAGE_BYTES
    max_send_message_size: int = DEFAULT_MESSAGE_BYTES


class UnixGrpcServer:
    """The gRPC front end on the daemon's main socket."""

    def __init__(self, front: GrpcFrontEnd, bound: UnixSocket) -> None:
        self.front = front
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
    """The instances of a kind that serve a service nobody else serves.

    A plugin that is left out has failed, and its row says why.
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


def tls_context(config: GrpcTcpConfig) -> ssl.SSLContext | None:
    """The TLS setup of the TCP listener, None without a certificate. Raises OSError for files that cannot be used."""
    if not config.tls_cert and not config.tls_key:
        return None
    import ssl

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.set_alpn_protocols(["h2"])
    tls.load_cert_chain(config.tls_cert, config.tls_key)
    if config.tls_ca:
        tls.load_verify_locations(config.tls_ca)
        tls.verify_mode = ssl.CERT_REQUIRED
    return tls


def has_common_name(transport: asyncio.BaseTransport, wanted: str) -> bool:
    """Whether the client's certificate carries the common name `wanted`."""
    certificate = transport.get_extra_info("peercert") or {}
    subject: Iterable[Iterable[tuple[str, str]]] = certificate.get("subject", ())
    return any(("commonName", wanted) in tuple(names) for names in subject)


async def init_exchange(context: InitContext[PluginConfig]) -> EventBus:
    """The event exchange is the daemon's bus."""
    return context.bus


async def init_grpc(context: InitContext[GrpcConfig]) -> UnixGrpcServer:
    """Every gRPC service on the main socket."""
    from aiocontainerd.rpc.grpc import GrpcFrontEnd
    from aiocontainerd.rpc.sockets import bind_unix

    config = context.config
    address = context.daemon.grpc_address or config.address
    if not address:
        raise SkipPlugin("no address")
    front = GrpcFrontEnd(
        servable(context, kinds.GRPC),
        max_recv_message_size=config.max_recv_message_size,
        max_send_message_size=config.max_send_message_size,
    )
    return _kept(context, UnixGrpcServer(front, bind_unix(_path(address), config.uid, config.gid)))


async def init_ttrpc(context: InitContext[TtrpcConfig]) -> UnixTtrpcServer:
    """Every ttrpc service on the socket of the shims."""
    from aiocontainerd.rpc.sockets import bind_unix
    from aiocontainerd.rpc.ttrpc.server import TtrpcServer

    config = context.config
    address = context.daemon.ttrpc_address or config.address
    if not address:
        raise SkipPlugin("no address")
    server = TtrpcServer(servable(context, kinds.TTRPC))
    return _kept(context, UnixTtrpcServer(server, bind_unix(_path(address), config.uid, config.gid)))


async def init_grpc_tcp(context: InitContext[GrpcTcpConfig]) -> TcpGrpcServer:
    """The gRPC services that allow TCP (`serves_tcp = True`), on TCP."""
    config = context.config
    if not config.address:
        raise SkipPlugin("no address")
    allowed = [service for service in servable(context, kinds.GRPC) if getattr(service, "serves_tcp", False)]
    if not allowed:
        raise SkipPlugin("no service is served over TCP")
    from aiocontainerd.rpc.grpc import GrpcFrontEnd
    from aiocontainerd.rpc.sockets import bind_tcp

    name = config.tls_common_name
    tls = tls_context(config)
    front = GrpcFrontEnd(
        allowed,
        max_recv_message_size=config.max_recv_message_size,
        max_send_message_size=config.max_send_message_size,
        accept_peer=(lambda transport: has_common_name(transport, name)) if name else None,
    )
    return _kept(context, TcpGrpcServer(front, bind_tcp(config.address), tls))


@hookimpl
def register_plugins() -> list[Registration]:
    """The plugins of the core itself."""
    return [
        Registration(kind=kinds.EVENT, id="exchange", init=init_exchange),
        Registration(kind=kinds.SERVER, id="grpc", requires=(kinds.ALL,), config=GrpcConfig, init=init_grpc),
        Registration(kind=kinds.SERVER, id="ttrpc", requires=(kinds.ALL,), config=TtrpcConfig, init=init_ttrpc),
        Registration(kind=kinds.SERVER, id="grpc-tcp", requires=(kinds.ALL,), config=GrpcTcpConfig, init=init_grpc_tcp),
    ]


def _kept(context: InitContext[Any], server: ServerT) -> ServerT:
    """The server, which is stopped with its plugin where the daemon did not do so before."""

    async def stop() -> None:
        await server.stop(0)

    context.on_stop(stop)
    return server


def _path(address: str) -> str:
    return address.removeprefix("unix://")
