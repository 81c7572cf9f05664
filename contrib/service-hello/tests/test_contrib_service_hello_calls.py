"""The greeting service, called over a socket as a client of the daemon calls it; and its generated messages."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiocontainerd_service_hello import gen
from aiocontainerd_service_hello.gen.example.hello import v1 as api
from aiocontainerd_service_hello.service import Hello

from aiocontainerd.errors import FailedPrecondition, InvalidArgument
from aiocontainerd.rpc.grpc import GrpcFrontEnd
from aiocontainerd.rpc.grpc_client import GrpcClient
from aiocontainerd.wire import codec

FOLDER = Path(__file__).resolve().parents[1]
GEN = Path(gen.__file__).parent


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[GrpcClient]:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(directory / "s"))
    front = GrpcFrontEnd([Hello("Hello")])
    await front.start(sock)
    try:
        async with GrpcClient(str(directory / "s")) as client:
            yield client
    finally:
        await front.stop(0)


@pytest.mark.anyio
async def test_greeting_names_who_is_greeted_and_the_namespace(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        answer = await client.unary(Hello, "SayHello", api.SayHelloRequest(name="world"), namespace="ns")
    assert answer == api.SayHelloResponse(message="Hello, world!", namespace="ns")


@pytest.mark.anyio
async def test_greetings_are_streamed(tmp_path: Path) -> None:
    request = api.WatchHelloRequest(name="world", count=3, interval_ms=1)
    async with serving(tmp_path) as client:
        answers = [answer async for answer in client.server_stream(Hello, "WatchHello", request, namespace="ns")]
    assert answers == [api.SayHelloResponse(message="Hello, world!", namespace="ns")] * 3


@pytest.mark.anyio
async def test_wrong_calls_say_what_is_wrong(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        with pytest.raises(InvalidArgument, match="name must not be empty"):
            await client.unary(Hello, "SayHello", api.SayHelloRequest(), namespace="ns")
        with pytest.raises(FailedPrecondition, match="namespace is required"):
            await client.unary(Hello, "SayHello", api.SayHelloRequest(name="world"))
        request = api.WatchHelloRequest(name="world", count=1001)
        with pytest.raises(InvalidArgument, match="count is 1001, it must be at most 1000"):
            await anext(client.server_stream(Hello, "WatchHello", request, namespace="ns"))


def test_bytes_that_are_no_request_are_refused_by_its_name() -> None:
    with pytest.raises(InvalidArgument, match=r"decode example\.hello\.v1\.SayHelloRequest: "):
        codec.decode(api.SayHelloRequest, b"\x0a\xff")


def test_generated_messages_are_those_of_the_proto_file(tmp_path: Path) -> None:
    """Run the command that the page shows."""
    scripts = str(Path(sys.executable).parent)
    (command,) = [line for line in (FOLDER / "README.md").read_text().splitlines() if "grpc_tools.protoc" in line]
    command = command.replace("aiocontainerd_service_hello/gen", str(tmp_path))
    environment = {**os.environ, "PATH": f"{scripts}:{os.environ.get('PATH', '')}"}
    subprocess.run(command.split(), cwd=FOLDER, env=environment, check=True, capture_output=True)
    names = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.py"))
    assert names == sorted(path.relative_to(GEN) for path in GEN.rglob("*.py"))
    assert [(tmp_path / name).read_text() for name in names] == [(GEN / name).read_text() for name in names]
