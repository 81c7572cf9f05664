"""The built-in plugins: exchange, servers and their sockets (facts/core 16)."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import betterproto2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from aiocontainerd import api, errors, kinds, typeurl
from aiocontainerd.config.plugin import PluginConfig
from aiocontainerd.daemon import servers
from aiocontainerd.events import EventBus
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.registration import Registration
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import State
from aiocontainerd.interfaces.rpc_service import Method
from aiocontainerd.rpc import http2
from aiocontainerd.rpc.grpc_client import GrpcClient
from aiocontainerd.rpc.sockets import bind_tcp, bind_unix
from aiocontainerd.rpc.ttrpc.client import TtrpcClient

VERSION = "containerd.services.version.v1.Version"
FORWARD = "containerd.services.events.ttrpc.v1.Events"
pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


@dataclass(eq=False, repr=False)
class HelloRequest(betterproto2.Message):
    names: list[str] = betterproto2.field(1, betterproto2.TYPE_STRING, repeated=True)  # noqa: RUF009 - as the compiler writes it


@dataclass(eq=False, repr=False)
class HelloResponse(betterproto2.Message):
    greeting: str = betterproto2.field(1, betterproto2.TYPE_STRING)


class Version:
    service_name: ClassVar[str] = VERSION
    serves_tcp = True

    def __init__(self) -> None:
        self.calls = 0

    async def version(self, request: api.protobuf.Empty) -> api.version.VersionResponse:
        self.calls += 1
        return api.version.VersionResponse(version="v2")


class Forward:
    service_name: ClassVar[str] = FORWARD

    async def forward(self, request: api.events_ttrpc.ForwardRequest) -> api.protobuf.Empty:
        return api.protobuf.Empty()


class Stranger:
    service_name: ClassVar[str] = "no.such.Service"


def registration(kind: str, plugin_id: str, instance: object) -> Registration:
    async def init(_context: Any) -> object:
        return instance

    return Registration(kind=kind, id=plugin_id, init=init)


@asynccontextmanager
async def running(
    tmp_path: Path, *others: Registration, configs: dict[str, PluginConfig] | None = None, flags: bool = True
) -> AsyncIterator[Registry]:
    """Run a registry with the built-in plugins and others, all servers started."""
    registry = Registry()
    for one in (*servers.register_plugins(), *others):
        registry.add(one)
    daemon = DaemonInfo(
        root=tmp_path / "root",
        state=tmp_path / "state",
        temp=tmp_path,
        grpc_address=str(tmp_path / "c.sock") if flags else "",
        ttrpc_address=str(tmp_path / "c.sock.ttrpc") if flags else "",
        bus=EventBus(),
        plugins=lambda: registry.plugins,
        timeout_s=lambda _key: 30.0,
    )
    chosen = configs or {}
    async with registry.run(daemon, lambda r: chosen.get(r.uri, r.config())):
        started = [p.instance for p in registry.plugins if p.kind == kinds.SERVER and p.state == State.LOADED]
        for server in started:
            await server.start()
        try:
            yield registry
        finally:
            for server in started:
                await server.stop(1)


async def version(address: str, tls: ssl.SSLContext | None = None) -> object:
    async with GrpcClient(address, tls=tls) as client:
        return await client.unary(VERSION, "Version", api.protobuf.Empty(), timeout_s=5)


async def test_grpc_and_ttrpc_serve_what_plugins_bring(tmp_path: Path) -> None:
    others = [registration(kinds.GRPC, "version", Version()), registration(kinds.TTRPC, "events", Forward())]
    async with running(tmp_path, *others):
        assert await version(f"{tmp_path}/c.sock") == api.version.VersionResponse(version="v2")
        async with await TtrpcClient.connect(f"{tmp_path}/c.sock.ttrpc", timeout_s=5) as client:
            request = api.events_ttrpc.ForwardRequest()
            assert await client.call(FORWARD, "Forward", request, timeout_s=5) == api.protobuf.Empty()


async def test_sockets_have_mode_0660_and_go_at_stop(tmp_path: Path) -> None:
    async with running(tmp_path):
        for name in ("c.sock", "c.sock.ttrpc"):
            status = (tmp_path / name).stat()
            assert stat.S_IMODE(status.st_mode) == 0o660
            assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("c.sock")] == []


async def test_the_address_of_the_config_is_used_without_a_flag(tmp_path: Path) -> None:
    configs: dict[str, PluginConfig] = {
        "io.containerd.server.v1.grpc": servers.GrpcConfig(address=f"{tmp_path}/deep/er/x.sock"),
        "io.containerd.server.v1.ttrpc": servers.TtrpcConfig(address=""),
    }
    others = [registration(kinds.GRPC, "version", Version())]
    async with running(tmp_path, *others, configs=configs, flags=False) as registry:
        await version(f"unix://{tmp_path}/deep/er/x.sock")
        assert registry["io.containerd.server.v1.ttrpc"].state == State.SKIPPED


@pytest.mark.parametrize("size", [0, -1])
async def test_a_message_size_of_no_use_means_the_default(tmp_path: Path, size: int) -> None:
    config = servers.GrpcConfig(max_recv_message_size=size, max_send_message_size=size)
    configs: dict[str, PluginConfig] = {"io.containerd.server.v1.grpc": config}
    async with running(tmp_path, registration(kinds.GRPC, "version", Version()), configs=configs):
        await version(str(tmp_path / "c.sock"))


async def test_the_exchange_is_the_bus_of_the_daemon(tmp_path: Path) -> None:
    async with running(tmp_path) as registry:
        bus = registry["io.containerd.event.v1.exchange"].instance
        with bus.subscribe() as events:
            bus.publish("/a", typeurl.Any("x", b""), namespace="n")
            assert len(events) == 1


async def test_a_plugin_that_cannot_be_served_is_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others = [
        registration(kinds.GRPC, "a-version", Version()),
        registration(kinds.GRPC, "b-version", Version()),
        registration(kinds.GRPC, "stranger", Stranger()),
    ]
    async with running(tmp_path, *others) as registry:
        await version(f"{tmp_path}/c.sock")
        assert registry["io.containerd.grpc.v1.stranger"].state == State.FAILED
        assert registry["io.containerd.grpc.v1.b-version"].reason == (
            f"not served: {VERSION} is served already, by a-version"
        )
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
        f"plugin io.containerd.grpc.v1.b-version: not served: {VERSION} is served already, by a-version",
        "plugin io.containerd.grpc.v1.stranger: not served: "
        "Stranger.service_name is 'no.such.Service', which is no service of the API; "
        "a service of another API has its methods in `methods`",
    ]


class Hello:
    """A service of an API of its own; its messages are of packages that the API has not."""

    service_name: ClassVar[str] = "acme.hello.v1.Hello"
    methods: ClassVar[Mapping[str, Method]] = {
        "SayHello": Method(HelloRequest, HelloResponse),
        "SayOften": Method(HelloRequest, HelloResponse, server_streams=True),
    }

    async def say_hello(self, request: HelloRequest) -> HelloResponse:
        if not request.names:
            raise errors.InvalidArgument("nobody to greet")
        return HelloResponse(greeting=f"hello {' and '.join(request.names)}")

    async def say_often(self, request: HelloRequest) -> AsyncIterator[HelloResponse]:
        for name in request.names:
            yield HelloResponse(greeting=f"hello {name}")


async def test_a_service_of_an_api_of_its_own_is_served_on_the_same_socket(tmp_path: Path) -> None:
    async with (
        running(tmp_path, registration(kinds.GRPC, "hello", Hello())),
        GrpcClient(str(tmp_path / "c.sock")) as client,
    ):
        request = HelloRequest(names=["a", "b"])
        assert await client.unary(Hello, "SayHello", request) == HelloResponse(greeting="hello a and b")
        answers = [answer async for answer in client.server_stream(Hello, "SayOften", request)]
        assert answers == [HelloResponse(greeting="hello a"), HelloResponse(greeting="hello b")]
        with pytest.raises(errors.InvalidArgument, match="nobody to greet"):
            await client.unary(Hello, "SayHello", HelloRequest())
        with pytest.raises(ValueError, match=r"the API has no method acme\.hello\.v1\.Hello/Nothing"):
            await client.unary(Hello, "Nothing", HelloRequest())


async def test_tcp_is_skipped_without_an_address_or_a_service_that_allows_it(tmp_path: Path) -> None:
    uri = "io.containerd.server.v1.grpc-tcp"
    async with running(tmp_path) as registry:
        assert registry[uri].reason == "no address: skip plugin"
    configs: dict[str, PluginConfig] = {uri: servers.GrpcTcpConfig(address="127.0.0.1:0")}
    async with running(tmp_path, configs=configs) as registry:
        assert registry[uri].reason == "no service is served over TCP: skip plugin"


async def test_tcp_serves_without_tls_when_no_certificate_is_set(tmp_path: Path) -> None:
    uri = "io.containerd.server.v1.grpc-tcp"
    configs: dict[str, PluginConfig] = {uri: servers.GrpcTcpConfig(address="127.0.0.1:0")}
    async with running(tmp_path, registration(kinds.GRPC, "version", Version()), configs=configs) as registry:
        assert await version(registry[uri].instance.address) == api.version.VersionResponse(version="v2")


Certify = Callable[[str], tuple[Path, Path]]


@pytest.fixture
def certify(tmp_path: Path) -> Certify:
    """Makes a certificate and key of a common name, signed by a CA in `ca.pem`."""
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
    now = datetime.datetime.now(datetime.UTC)

    def sign(subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
        builder = x509.CertificateBuilder(ca_name, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(days=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=1))
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        return builder.sign(ca_key, hashes.SHA256())

    def write(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    write("ca.pem", sign(ca_name, ca_key, ca=True).public_bytes(serialization.Encoding.PEM))

    def make(name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = sign(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, ca=False)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return (
            write(f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM)),
            write(f"{name}.key", pem),
        )

    return make


def client_tls(tmp_path: Path, pair: tuple[Path, Path] | None) -> ssl.SSLContext:
    tls = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    tls.set_alpn_protocols(["h2"])
    if pair is not None:
        tls.load_cert_chain(*pair)
    return tls


async def test_tcp_with_a_ca_serves_only_clients_it_certified_with_the_common_name(
    tmp_path: Path, certify: Certify, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "asyncio")
    uri = "io.containerd.server.v1.grpc-tcp"
    certificate, key = certify("server")
    config = servers.GrpcTcpConfig(
        address="127.0.0.1:0",
        tls_ca=str(tmp_path / "ca.pem"),
        tls_cert=str(certificate),
        tls_key=str(key),
        tls_common_name="kubelet",
    )
    others = [registration(kinds.GRPC, "version", Version())]
    async with running(tmp_path, *others, configs={uri: config}) as registry:
        address = registry[uri].instance.address.replace("127.0.0.1", "localhost")
        answer = await version(address, client_tls(tmp_path, certify("kubelet")))
        assert answer == api.version.VersionResponse(version="v2")
        with pytest.raises(errors.Unavailable):
            await version(address, client_tls(tmp_path, certify("other")))
        with pytest.raises(errors.Unavailable):
            await version(address, client_tls(tmp_path, None))


class Eager:
    """A TLS client that sends its first request in the same flight as the end of its handshake."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls.wrap_bio(self._in, self._out, server_hostname="localhost")

    async def call(self, address: str, request: bytes) -> None:
        """Send the request and read until the server closes the connection."""
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        while not self._shook_hands():
            writer.write(self._out.read())
            self._in.write(await asyncio.wait_for(reader.read(65536), 5))
        self._tls.write(request)
        writer.write(self._out.read())
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 5)
        writer.close()

    def _shook_hands(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True


async def test_a_request_that_comes_with_the_handshake_of_a_refused_client_is_not_carried_out(
    tmp_path: Path, certify: Certify
) -> None:
    uri = "io.containerd.server.v1.grpc-tcp"
    certificate, key = certify("server")
    config = servers.GrpcTcpConfig(
        address="127.0.0.1:0",
        tls_ca=str(tmp_path / "ca.pem"),
        tls_cert=str(certificate),
        tls_key=str(key),
        tls_common_name="kubelet",
    )
    service = Version()
    block = http2.header_block(
        [(":method", "POST"), (":path", f"/{VERSION}/Version"), ("content-type", "application/grpc")]
    )
    frames = ((4, 0, 0, b""), (1, 4, 1, block), (0, 1, 1, bytes(5)))
    request = http2.PREFACE + b"".join(
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
        for kind, flags, stream, payload in frames
    )
    async with running(tmp_path, registration(kinds.GRPC, "version", service), configs={uri: config}) as registry:
        await Eager(client_tls(tmp_path, certify("other"))).call(registry[uri].instance.address, request)
    assert service.calls == 0


def test_a_socket_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    bind_unix(path, os.geteuid(), os.getegid()).remove()
    assert not os.path.exists(path)


def test_a_socket_somebody_listens_on_is_not_taken(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(path)
        live.listen()
        with pytest.raises(errors.AlreadyExists, match="a running process listens on"):
            bind_unix(path, 0, 0)


def test_a_file_in_the_place_of_a_socket_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("keep")
    with pytest.raises(errors.InvalidArgument, match="exists and is no socket"):
        bind_unix(str(tmp_path / "s"), 0, 0)
    assert (tmp_path / "s").read_text() == "keep"


def test_a_socket_path_has_at_most_104_bytes(tmp_path: Path) -> None:
    path = f"/{'x' * 104}"
    with pytest.raises(errors.InvalidArgument) as caught:
        bind_unix(path, 0, 0)
    assert str(caught.value) == f'unix socket path "{path}" too long (105 > 104 bytes)'


def test_removal_leaves_the_socket_of_a_successor(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    first = bind_unix(path, os.geteuid(), os.getegid())
    second = bind_unix(path, os.geteuid(), os.getegid())
    first.remove()
    assert os.path.exists(path)
    second.remove()
    assert not os.path.exists(path)
    second.remove()


def test_a_tcp_address_is_host_and_port() -> None:
    with pytest.raises(errors.InvalidArgument, match="must be host:port"):
        bind_tcp("localhost")
