"""What must be there before the servers start."""

from __future__ import annotations

import pytest

from aiocontainerd.daemon.errors import StartError
from aiocontainerd.daemon.serving import start_servers
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import State
from aiocontainerd.plugin import Registration, kinds


@pytest.mark.anyio
async def test_without_a_grpc_server_there_is_no_daemon() -> None:
    registry = Registry()
    registry.add_failed("python_plugins", "servers", "ImportError: no such module")
    with pytest.raises(StartError, match=r"there is no gRPC server.*servers: ImportError: no such module"):
        await start_servers(registry)


class Server:
    """Counts its starts."""

    address = "nowhere"

    def __init__(self, *, serves: bool) -> None:
        self.serves = serves
        self.starts = 0

    async def start(self) -> None:
        self.starts += 1


async def init(_context: object) -> object:
    return object()


def registry_with(server: Server, *services: str) -> Registry:
    registry = Registry()
    registry.add(Registration(kind=kinds.SERVER, id="grpc", init=init)).loaded(server)
    for name in services:
        registry.add(Registration(kind=kinds.GRPC, id=name, init=init))
    return registry


async def refusal(registry: Registry) -> str:
    with pytest.raises(StartError) as caught:
        await start_servers(registry)
    return str(caught.value)


@pytest.mark.anyio
async def test_a_daemon_without_services_says_what_to_install() -> None:
    server = Server(serves=False)
    assert await refusal(registry_with(server)) == (
        "there is no gRPC service to serve: no package brings one; "
        "install the daemon's plugins: pip install 'aiocontainerd[daemon]'"
    )
    assert server.starts == 0


@pytest.mark.anyio
async def test_a_daemon_whose_services_are_all_disabled_says_so() -> None:
    registry = registry_with(Server(serves=False), "version", "health")
    registry.disable([f"{kinds.GRPC}.version", f"{kinds.GRPC}.health"])
    assert await refusal(registry) == "there is no gRPC service to serve: disabled_plugins disables all of them"


@pytest.mark.anyio
async def test_a_daemon_whose_services_failed_names_one_and_its_reason() -> None:
    registry = registry_with(Server(serves=False), "version", "health")
    registry.disable([f"{kinds.GRPC}.version"])
    registry[f"{kinds.GRPC}.health"].failed(StartError("no disk"))
    assert await refusal(registry) == "there is no gRPC service to serve: io.containerd.grpc.v1.health: no disk"


@pytest.mark.anyio
async def test_a_daemon_whose_packages_are_all_refused_names_the_policy() -> None:
    registry = registry_with(Server(serves=False))
    reason = "plugin_policy.allow does not name aiocontainerd-services"
    registry.add_failed("python_plugins", "services", f"{reason}: skip plugin", state=State.SKIPPED)
    assert await refusal(registry) == f"there is no gRPC service to serve: {reason}"


@pytest.mark.anyio
async def test_servers_start_where_there_is_something_to_serve() -> None:
    server = Server(serves=True)
    await start_servers(registry_with(server, "version"))
    assert server.starts == 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "endpoint"),
    [("grpc", "main endpoint"), ("ttrpc", "main ttrpc endpoint"), ("grpc-tcp", "TCP grpc endpoint")],
)
async def test_no_server_starts_without_a_socket_that_containerd_needs(name: str, endpoint: str) -> None:
    server = Server(serves=True)
    registry = registry_with(server, "health")
    if name == "grpc":
        registry[f"{kinds.SERVER}.grpc"].failed(StartError("in use"))
    else:
        registry.add(Registration(kind=kinds.SERVER, id=name, init=init)).failed(StartError("in use"))
    assert await refusal(registry) == f"failed to get listener for {endpoint}: in use"
    assert server.starts == 0
