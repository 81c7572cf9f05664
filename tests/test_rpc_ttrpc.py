"""ttrpc client and server over a real unix socket, on asyncio and on uvloop."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from aiocontainerd import api, context, errors
from aiocontainerd.rpc import binding
from aiocontainerd.rpc.ttrpc.client import TtrpcClient, TtrpcClosed
from aiocontainerd.rpc.ttrpc.server import LoopCodec, TtrpcServer

TASK = "containerd.task.v3.Task"
STREAMING = "containerd.services.streaming.v1.Streaming"
EVENTS = "containerd.services.events.v1.Events"
pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


class Task:
    service_name: ClassVar[str] = TASK

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def state(self, request: api.task_v3.StateRequest) -> api.task_v3.StateResponse:
        return api.task_v3.StateResponse(id=request.id, bundle=context.namespace())

    async def wait(self, request: api.task_v3.WaitRequest) -> api.task_v3.WaitResponse:
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return api.task_v3.WaitResponse(exit_status=7)

    async def kill(self, request: api.task_v3.KillRequest) -> api.protobuf.Empty:
        raise errors.NotFound(f"process {request.id}")

    async def pause(self, request: api.task_v3.PauseRequest) -> api.protobuf.Empty:
        raise RuntimeError("boom")

    async def resume(self, request: api.task_v3.ResumeRequest) -> api.protobuf.Empty:
        raise FileExistsError("there")

    async def checkpoint(self, request: api.task_v3.CheckpointTaskRequest) -> api.protobuf.Empty:
        raise SystemExit("no licence")

    async def close_io(self, request: api.task_v3.CloseIoRequest) -> api.protobuf.Empty:
        raise FileNotFoundError("caf\udce9")


class Streaming:
    service_name: ClassVar[str] = STREAMING

    async def stream(self, requests: AsyncIterator[api.protobuf.Any]) -> AsyncIterator[api.protobuf.Any]:
        async for request in requests:
            if request.type_url == "bad":
                raise errors.InvalidArgument("bad one")
            yield api.protobuf.Any(type_url=request.type_url.upper(), value=b"")


class Events:
    service_name: ClassVar[str] = EVENTS

    async def subscribe(self, request: api.events.SubscribeRequest) -> AsyncIterator[api.types.Envelope]:
        for topic in request.filters:
            yield api.types.Envelope(topic=topic)


def listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


@asynccontextmanager
async def serving(path: Path, *services: Any, **options: Any) -> AsyncIterator[TtrpcServer]:
    server = TtrpcServer(services, **options)
    await server.start(listen(path))
    try:
        yield server
    finally:
        await server.aclose(0)


async def connected(path: Path) -> TtrpcClient:
    return await TtrpcClient.connect(f"unix://{path}", timeout_s=5)


@asynccontextmanager
async def talking(path: Path, service: Any) -> AsyncIterator[TtrpcClient]:
    """Yield a client of a server of one service."""
    async with serving(path, service), await connected(path) as client:
        yield client


async def test_a_call_carries_request_namespace_and_result(tmp_path: Path) -> None:
    async with talking(tmp_path / "s", Task()) as client:
        answer = await client.call(TASK, "State", api.task_v3.StateRequest(id="c1"), timeout_s=5, namespace="k8s.io")
    assert answer == api.task_v3.StateResponse(id="c1", bundle="k8s.io")


@pytest.mark.parametrize(
    ("method", "request_", "kind", "message"),
    [
        ("Kill", lambda: api.task_v3.KillRequest(id="x"), errors.NotFound, "process x"),
        ("Pause", lambda: api.task_v3.PauseRequest(), errors.Unknown, "boom"),
        ("Resume", lambda: api.task_v3.ResumeRequest(), errors.AlreadyExists, "there"),
        ("CloseIO", lambda: api.task_v3.CloseIoRequest(), errors.NotFound, "caf?"),
        ("Checkpoint", lambda: api.task_v3.CheckpointTaskRequest(), errors.Unknown, "SystemExit: no licence"),
        ("Stats", lambda: api.task_v3.StatsRequest(), errors.Unimplemented, "method Stats"),
    ],
)
async def test_an_error_keeps_its_class_and_text(
    tmp_path: Path, method: str, request_: Callable[[], Any], kind: type[Exception], message: str
) -> None:
    async with talking(tmp_path / "s", Task()) as client:
        with pytest.raises(kind) as caught:
            await client.call(TASK, method, request_(), timeout_s=5)
    assert type(caught.value) is kind
    assert str(caught.value) == message


async def test_an_unknown_service_is_unimplemented(tmp_path: Path) -> None:
    async with talking(tmp_path / "s", Task()) as client:
        with pytest.raises(errors.Unimplemented, match=r"^service containerd\.task\.v2\.Task$"):
            await client.call("containerd.task.v2.Task", "State", api.task_v2.StateRequest(), timeout_s=5)


async def test_unary_calls_run_concurrently_and_answer_as_they_end(tmp_path: Path) -> None:
    task = Task()
    async with talking(tmp_path / "s", task) as client:
        waiting = asyncio.ensure_future(client.call(TASK, "Wait", api.task_v3.WaitRequest(), timeout_s=5))
        await task.started.wait()
        await client.call(TASK, "State", api.task_v3.StateRequest(), timeout_s=5, namespace="a")
        task.go.set()
        assert await waiting == api.task_v3.WaitResponse(exit_status=7)


async def test_a_local_deadline_fails_the_call_and_ends_the_handler(tmp_path: Path) -> None:
    task = Task()
    async with talking(tmp_path / "s", task) as client:
        with pytest.raises(errors.DeadlineExceeded):
            await client.call(TASK, "Wait", api.task_v3.WaitRequest(), timeout_s=0.02)
        await asyncio.wait_for(task.cancelled.wait(), 5)


async def test_loss_of_the_connection_fails_calls_in_flight_with_ttrpc_closed(tmp_path: Path) -> None:
    task = Task()
    async with serving(tmp_path / "s", task) as server, await connected(tmp_path / "s") as client:
        waiting = asyncio.ensure_future(client.call(TASK, "Wait", api.task_v3.WaitRequest(), timeout_s=5))
        await task.started.wait()
        await server.aclose(0)
        with pytest.raises(TtrpcClosed, match=r"^ttrpc: closed$"):
            await waiting
        await client.wait_closed()
        assert client.closed
        with pytest.raises(TtrpcClosed):
            await client.call(TASK, "Wait", api.task_v3.WaitRequest(), timeout_s=5)


async def test_handlers_are_cancelled_when_their_client_goes(tmp_path: Path) -> None:
    task = Task()
    async with serving(tmp_path / "s", task) as server:
        client = await connected(tmp_path / "s")
        waiting = asyncio.ensure_future(client.call(TASK, "Wait", api.task_v3.WaitRequest(), timeout_s=5))
        await task.started.wait()
        await client.aclose()
        await asyncio.wait_for(task.cancelled.wait(), 5)
        with pytest.raises(TtrpcClosed):
            await waiting
    assert server.statistics() == {"connections": 0, "calls": 0}


async def test_a_graceful_close_lets_calls_in_flight_end(tmp_path: Path) -> None:
    task = Task()
    async with serving(tmp_path / "s", task) as server:
        busy, idle = await connected(tmp_path / "s"), await connected(tmp_path / "s")
        waiting = asyncio.ensure_future(busy.call(TASK, "Wait", api.task_v3.WaitRequest(), timeout_s=5))
        await task.started.wait()
        closing = asyncio.ensure_future(server.aclose(5))
        await idle.wait_closed()
        task.go.set()
        assert await waiting == api.task_v3.WaitResponse(exit_status=7)
        await closing
        await busy.wait_closed()


async def test_a_bidirectional_stream_answers_as_messages_come(tmp_path: Path) -> None:
    async with talking(tmp_path / "s", Streaming()) as client, client.stream(STREAMING, "Stream") as stream:
        await stream.send(api.protobuf.Any(type_url="a"))
        assert await stream.recv() == api.protobuf.Any(type_url="A")
        await stream.send(api.protobuf.Any(type_url="b"))
        stream.end()
        assert [m async for m in stream] == [api.protobuf.Any(type_url="B")]


async def test_a_stream_that_fails_raises_after_its_messages(tmp_path: Path) -> None:
    async with talking(tmp_path / "s", Streaming()) as client, client.stream(STREAMING, "Stream") as stream:
        await stream.send(api.protobuf.Any(type_url="a"))
        await stream.send(api.protobuf.Any(type_url="bad"))
        assert await stream.recv() == api.protobuf.Any(type_url="A")
        with pytest.raises(errors.InvalidArgument, match=r"^bad one$"):
            await stream.recv()


async def test_a_server_stream_larger_than_every_queue_arrives_whole(tmp_path: Path) -> None:
    topics = [f"/t/{number}" for number in range(2000)]
    async with (
        talking(tmp_path / "s", Events()) as client,
        client.stream(EVENTS, "Subscribe", api.events.SubscribeRequest(filters=topics)) as stream,
    ):
        assert [m.topic async for m in stream if isinstance(m, api.types.Envelope)] == topics


async def test_an_oversize_request_fails_alone(tmp_path: Path) -> None:
    async with talking(tmp_path / "s", Task()) as client:
        with pytest.raises(errors.ResourceExhausted):
            await client.call(TASK, "State", api.task_v3.StateRequest(id="x" * (5 << 20)), timeout_s=5)
        await client.call(TASK, "State", api.task_v3.StateRequest(), timeout_s=5, namespace="a")


async def test_a_peer_of_another_user_is_dropped_without_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    async with serving(tmp_path / "s", Task()):
        client = await connected(tmp_path / "s")
        with pytest.raises(TtrpcClosed):
            await client.call(TASK, "State", api.task_v3.StateRequest(), timeout_s=5)
        await client.wait_closed()


async def test_serve_ends_when_the_server_is_closed(tmp_path: Path) -> None:
    server = TtrpcServer([Task()])
    serve: Awaitable[None] = asyncio.ensure_future(server.serve(listen(tmp_path / "s")))
    client = await connected(tmp_path / "s")
    await server.aclose(1)
    await serve
    await client.wait_closed()
    with pytest.raises(ConnectionRefusedError):
        await connected(tmp_path / "s")


async def test_connecting_to_nothing_raises_the_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await connected(tmp_path / "none")


def test_two_objects_for_one_service_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two objects serve containerd\.task\.v3\.Task"):
        binding.bind_all([Task(), Task()])


class CountingCodec(LoopCodec):
    def __init__(self) -> None:
        self.passed: list[str] = []
        self.closed = False

    async def decode(self, cls: Any, data: bytes) -> Any:
        self.passed.append(cls.__name__)
        return await super().decode(cls, data)

    async def encode(self, message: Any) -> bytes:
        self.passed.append(type(message).__name__)
        return await super().encode(message)

    def close(self) -> None:
        self.closed = True


async def test_requests_and_answers_pass_the_codec_of_the_server(tmp_path: Path) -> None:
    codec = CountingCodec()
    async with (
        serving(tmp_path / "s", Task(), Streaming(), message_codec=codec),
        await connected(tmp_path / "s") as client,
    ):
        await client.call(TASK, "State", api.task_v3.StateRequest(id="c1"), timeout_s=5, namespace="n")
        assert codec.passed == ["StateRequest", "StateResponse"]
        async with client.stream(Streaming.service_name, "Stream") as stream:
            await stream.send(api.protobuf.Any(type_url="a"))
            await stream.recv()
        assert codec.passed[2:] == ["Any", "Any"]
        assert not codec.closed
    assert codec.closed
