"""The gRPC front end through the client, and through raw HTTP/2 where a well-behaved client would not go."""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import h2.config
import h2.connection
import h2.events
import pytest

from aiocontainerd import api, context, errors
from aiocontainerd.plugin import Method
from aiocontainerd.rpc import failures, grpc, http2
from aiocontainerd.rpc.grpc import GrpcConnection, GrpcFrontEnd
from aiocontainerd.rpc.grpc_client import GrpcClient, Unreachable

TASKS = "containerd.services.tasks.v1.Tasks"
EVENTS = "containerd.services.events.v1.Events"
STREAMING = "containerd.services.streaming.v1.Streaming"
LIMIT_S = 20.0
pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


class Tasks:
    service_name: ClassVar[str] = TASKS

    def __init__(self) -> None:
        self.waiting = 0
        self.changed = asyncio.Condition()
        self.go = asyncio.Event()
        self.cancelled = 0

    async def get(self, request: api.tasks.GetRequest) -> api.tasks.GetResponse:
        call = context.current()
        return api.tasks.GetResponse(process=api.task_types.Process(id=call.namespace, container_id=call.lease))

    async def wait(self, request: api.tasks.WaitRequest) -> api.tasks.WaitResponse:
        try:
            await self._count(1)
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            await self._count(-1)
        return api.tasks.WaitResponse(exit_status=7)

    async def close_io(self, request: api.tasks.CloseIoRequest) -> api.protobuf.Empty:
        raise errors.NotFound("file caf\udce9")

    async def kill(self, request: api.tasks.KillRequest) -> api.protobuf.Empty:
        raise errors.NotFound(f'process "{request.exec_id}" é')

    async def pause(self, request: api.tasks.PauseTaskRequest) -> api.protobuf.Empty:
        raise RuntimeError("boom")

    async def checkpoint(self, request: api.tasks.CheckpointTaskRequest) -> api.tasks.CheckpointTaskResponse:
        raise SystemExit("no licence")

    async def metrics(self, request: api.tasks.MetricsRequest) -> api.tasks.MetricsResponse:
        value = b"x" * sum(map(len, request.filters))
        return api.tasks.MetricsResponse(metrics=[api.types.Metric(data=api.protobuf.Any(value=value))])

    async def start(self, request: api.tasks.StartRequest) -> api.tasks.StartResponse:
        try:
            await self._count(1)
            await asyncio.Event().wait()
        finally:
            self.cancelled += 1
            await self.go.wait()
            await self._count(-1)
        return api.tasks.StartResponse()

    async def waits(self, count: int) -> None:
        async with asyncio.timeout(5), self.changed:
            await self.changed.wait_for(lambda: self.waiting == count)

    async def _count(self, change: int) -> None:
        self.waiting += change
        async with self.changed:
            self.changed.notify_all()


class Events:
    service_name: ClassVar[str] = EVENTS

    def __init__(self) -> None:
        self.sent = 0
        self.ended = asyncio.Event()

    async def subscribe(self, request: api.events.SubscribeRequest) -> AsyncIterator[api.types.Envelope]:
        try:
            for topic in request.filters:
                if topic == "fail":
                    raise errors.FailedPrecondition("no more")
                if topic == "wait":
                    await asyncio.Event().wait()
                self.sent += 1
                yield api.types.Envelope(topic=topic)
        finally:
            self.ended.set()


class Streaming:
    service_name: ClassVar[str] = STREAMING

    async def stream(self, requests: AsyncIterator[api.protobuf.Any]) -> AsyncIterator[api.protobuf.Any]:
        async for request in requests:
            if request.type_url == "stop":
                return
            yield api.protobuf.Any(type_url=request.type_url.upper())


class Stubborn:
    """Swallows its cancellation, and reads or sends on."""

    service_name: ClassVar[str] = STREAMING

    def __init__(self, then: str) -> None:
        self._then = then
        self.swallowed = False
        self.waits, self.ended = asyncio.Event(), asyncio.Event()

    async def stream(self, requests: AsyncIterator[api.protobuf.Any]) -> AsyncIterator[api.protobuf.Any]:
        try:
            await anext(requests)
            try:
                self.waits.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.swallowed = True
            while self._then == "send":
                await asyncio.sleep(0)
                yield api.protobuf.Any(type_url="b")
            async for request in requests:
                yield request
        finally:
            self.ended.set()


def bound(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    return sock


@asynccontextmanager
async def serving(tmp_path: Path, *services: Any, **options: Any) -> AsyncIterator[tuple[GrpcFrontEnd, GrpcClient]]:
    front = GrpcFrontEnd(services, **options)
    await front.start(bound(tmp_path / "s"))
    try:
        async with GrpcClient(str(tmp_path / "s")) as client:
            yield front, client
    finally:
        await front.stop(0)


async def test_a_call_carries_namespace_and_lease(tmp_path: Path) -> None:
    async with serving(tmp_path, Tasks()) as (_, client):
        answer = await client.unary(TASKS, "Get", api.tasks.GetRequest(), namespace="k8s.io", lease="l1")
    assert answer == api.tasks.GetResponse(process=api.task_types.Process(id="k8s.io", container_id="l1"))


@pytest.mark.parametrize(
    ("service", "method", "request_", "kind", "message"),
    [
        (TASKS, "Kill", lambda: api.tasks.KillRequest(exec_id="x"), errors.NotFound, 'process "x" é'),
        (TASKS, "Pause", lambda: api.tasks.PauseTaskRequest(), errors.Unknown, "boom"),
        (
            TASKS,
            "Resume",
            lambda: api.tasks.ResumeTaskRequest(),
            errors.Unimplemented,
            f"unknown method Resume for service {TASKS}",
        ),
        (EVENTS, "Publish", lambda: api.events.PublishRequest(), errors.Unimplemented, f"unknown service {EVENTS}"),
    ],
)
async def test_an_error_keeps_its_class_and_text(
    tmp_path: Path, service: str, method: str, request_: Callable[[], Any], kind: type[Exception], message: str
) -> None:
    async with serving(tmp_path, Tasks()) as (_, client):
        with pytest.raises(kind) as caught:
            await client.unary(service, method, request_())
    assert (type(caught.value), str(caught.value)) == (kind, message)


async def test_an_error_text_that_is_no_utf_8_travels_all_the_same(tmp_path: Path) -> None:
    async with serving(tmp_path, Tasks()) as (_, client):
        with pytest.raises(errors.NotFound, match=r"^file caf\?$"):
            await client.unary(TASKS, "CloseIO", api.tasks.CloseIoRequest())


async def test_an_unexpected_error_of_ours_is_logged_with_its_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tasks, "__module__", "aiocontainerd_services.tasks")
    monkeypatch.setattr(failures, "_CARRIERS", {*failures._CARRIERS, __name__.partition(".")[0]})
    async with serving(tmp_path, Tasks()) as (_, client):
        with pytest.raises(errors.Unknown):
            await client.unary(TASKS, "Pause", api.tasks.PauseTaskRequest())
        with pytest.raises(errors.NotFound):
            await client.unary(TASKS, "Kill", api.tasks.KillRequest())
    [record] = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.getMessage() == f"/{TASKS}/Pause (Tasks) failed unexpectedly"
    assert record.exc_info is not None


class OddError(BaseException):
    """No Exception at all."""


class WordlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


E = api.protobuf.Empty


class Acme:
    """A service of somebody else's, whose methods do what they must not."""

    service_name: ClassVar[str] = "acme.v1.Acme"
    methods: ClassVar = {
        "Raise": Method(E, E), "Return": Method(E, E), "Number": Method(E, api.protobuf.Timestamp),
        "Stream": Method(E, E, server_streams=True),
    }  # fmt: skip

    def __init__(self, given: Any = None) -> None:
        self.given = given

    async def raise_(self, _request: Any) -> Any:
        raise self.given

    async def return_(self, _request: Any) -> Any:
        return self.given

    async def number(self, _request: Any) -> Any:
        return api.protobuf.Timestamp(seconds=self.given)

    async def stream(self, _request: Any) -> AsyncIterator[Any]:
        yield E()
        raise self.given


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OddError("odd"), "OddError: odd"),
        (GeneratorExit(), "GeneratorExit"),
        (SystemExit(3), "SystemExit: 3"),
        (ExceptionGroup("both", [ValueError("a"), KeyError("b")]), "ExceptionGroup: ValueError: a; KeyError: 'b'"),
        (WordlessError(), "(its text cannot be told: __str__ raised RuntimeError)"),
    ],
)
@pytest.mark.parametrize("method", ["Raise", "Stream"])
async def test_whatever_a_method_raises_is_its_answer_and_one_line_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str, error: BaseException, text: str
) -> None:
    async with serving(tmp_path, Acme(error)) as (front, client):
        with pytest.raises(errors.Unknown) as caught:
            async for _ in client.server_stream(Acme, method, E(), timeout_s=LIMIT_S):
                pass
        assert str(caught.value) == text
        assert front.metrics.last_errors[f"/acme.v1.Acme/{method}"][0] == text
    [line] = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert line.startswith(f"/acme.v1.Acme/{method} (Acme) failed: {type(error).__name__}")
    assert re.search(r"\(tests/test_rpc_grpc.py:\d+ in (raise_|stream)\)$", line)


async def test_an_error_of_a_plugin_behind_a_service_of_ours_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Acme, "__module__", "aiocontainerd.serve.acme")
    error = KeyError("x")
    setattr(error, errors.TOLD_AS, "plugin acme: prepare: KeyError: 'x' (acme/plugin.py:5 in make)")
    async with serving(tmp_path, Acme(error)) as (_, client):
        with pytest.raises(errors.Unknown, match=r"^plugin acme: prepare: KeyError: 'x' \(acme/plugin.py:5 in make\)$"):
            await client.unary(Acme, "Raise", E(), timeout_s=LIMIT_S)
    [record] = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.getMessage() == f"/acme.v1.Acme/Raise failed: {getattr(error, errors.TOLD_AS)}"
    assert record.exc_info is None


async def test_a_cancellation_that_nobody_asked_for_ends_the_call(tmp_path: Path) -> None:
    async with serving(tmp_path, Acme(asyncio.CancelledError())) as (_, client):
        with pytest.raises(errors.Cancelled):
            await client.unary(Acme, "Raise", E(), timeout_s=LIMIT_S)


@pytest.mark.parametrize(
    ("method", "given", "text"),
    [
        ("Return", None, "Acme.return_ returned None, not Empty"),
        ("Return", {}, "Acme.return_ returned dict, not Empty"),
        (
            "Number", 1 << 70,
            "Acme.number returned Timestamp with a wrong value in seconds, 1180591620717411303424: "
            "1180591620717411303424 has more than 64 bits",
        ),
    ],
)  # fmt: skip
async def test_a_wrong_answer_is_told_with_the_method_that_gave_it(
    tmp_path: Path, method: str, given: Any, text: str
) -> None:
    async with serving(tmp_path, Acme(given)) as (_, client):
        with pytest.raises(errors.Unknown, match=rf"^{re.escape(text)} \(tests/test_rpc_grpc.py:\d+\)$"):
            await client.unary(Acme, method, E(), timeout_s=LIMIT_S)


async def test_an_error_of_the_system_is_logged_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full(Tasks):
        async def resume(self, _request: api.tasks.ResumeTaskRequest) -> api.protobuf.Empty:
            raise OSError(errno.ENOSPC, "No space left on device", "/root/x")

    async with serving(tmp_path, Full()) as (_, client):
        with pytest.raises(errors.Unknown, match=r"^/root/x: no space left on device$"):
            await client.unary(TASKS, "Resume", api.tasks.ResumeTaskRequest())
    [record] = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.getMessage() == f"/{TASKS}/Resume (Full) failed: /root/x: no space left on device"
    assert record.exc_info is None


async def test_a_handler_that_would_end_the_program_ends_its_call(tmp_path: Path) -> None:
    async with serving(tmp_path, Tasks()) as (_, client):
        with pytest.raises(errors.Unknown, match="no licence"):
            await client.unary(TASKS, "Checkpoint", api.tasks.CheckpointTaskRequest())
        assert await client.unary(TASKS, "Get", api.tasks.GetRequest()) == api.tasks.GetResponse(
            process=api.task_types.Process()
        )


async def test_a_deadline_ends_the_handler_and_the_call(tmp_path: Path) -> None:
    tasks = Tasks()
    async with serving(tmp_path, tasks) as (_, client):
        with pytest.raises(errors.DeadlineExceeded):
            await client.unary(TASKS, "Wait", api.tasks.WaitRequest(), timeout_s=0.05)
        await tasks.waits(0)
        assert tasks.cancelled == 1


async def test_a_client_that_gives_up_cancels_its_handler(tmp_path: Path) -> None:
    tasks = Tasks()
    async with serving(tmp_path, tasks) as (_, client):
        call = asyncio.ensure_future(client.unary(TASKS, "Wait", api.tasks.WaitRequest()))
        await tasks.waits(1)
        call.cancel()
        await tasks.waits(0)
        assert tasks.cancelled == 1
        await client.unary(TASKS, "Get", api.tasks.GetRequest())


async def test_a_cancelled_handler_cleans_up_although_its_connection_goes(tmp_path: Path) -> None:
    tasks = Tasks()
    async with serving(tmp_path, tasks) as (front, client):
        call = asyncio.ensure_future(client.unary(TASKS, "Start", api.tasks.StartRequest()))
        await tasks.waits(1)
        call.cancel()
        async with asyncio.timeout(5):
            while not tasks.cancelled:  # noqa: ASYNC110 - the handler may not say so, it is being cancelled
                await asyncio.sleep(0.005)
            client.close()
            while front.statistics()["connections"]:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.005)
        assert front.statistics()["calls"] == 1
        tasks.go.set()
        await tasks.waits(0)


async def test_a_client_that_goes_away_cancels_all_its_handlers(tmp_path: Path) -> None:
    tasks = Tasks()
    async with serving(tmp_path, tasks) as (front, client):
        calls = [asyncio.ensure_future(client.unary(TASKS, "Wait", api.tasks.WaitRequest())) for _ in range(3)]
        await tasks.waits(3)
        client.close()
        await tasks.waits(0)
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(error, errors.Unavailable) for error in ended)
        assert tasks.cancelled == 3
        assert front.statistics()["calls"] == 0


@pytest.mark.parametrize("then", ["read", "send"])
async def test_a_handler_that_swallows_its_cancellation_is_ended_by_its_next_message(tmp_path: Path, then: str) -> None:
    stubborn = Stubborn(then)
    async with serving(tmp_path, stubborn) as (front, client), client.stream(STREAMING, "Stream") as call:
        await call.send(api.protobuf.Any(type_url="a"))
        await asyncio.wait_for(stubborn.waits.wait(), 5)
        client.close()
        await asyncio.wait_for(stubborn.ended.wait(), 5)
        assert stubborn.swallowed
        async with asyncio.timeout(5):
            while front.statistics()["calls"]:  # noqa: ASYNC110 - the end of the handler is told before that of the call
                await asyncio.sleep(0.005)


async def test_more_than_a_hundred_calls_wait_on_one_connection(tmp_path: Path) -> None:
    tasks = Tasks()
    async with serving(tmp_path, tasks) as (_, client):
        calls = [asyncio.ensure_future(client.unary(TASKS, "Wait", api.tasks.WaitRequest())) for _ in range(150)]
        await tasks.waits(150)
        tasks.go.set()
        assert set(map(str, await asyncio.gather(*calls))) == {str(api.tasks.WaitResponse(exit_status=7))}


async def test_a_server_stream_ends_well_or_with_its_error(tmp_path: Path) -> None:
    async with serving(tmp_path, Events()) as (_, client):
        request = api.events.SubscribeRequest(filters=["/a", "/b"])
        topics = [m.topic async for m in client.server_stream(EVENTS, "Subscribe", request)]  # type: ignore[attr-defined]
        assert topics == ["/a", "/b"]
        stream = client.server_stream(EVENTS, "Subscribe", api.events.SubscribeRequest(filters=["/a", "fail"]))
        assert await anext(stream) == api.types.Envelope(topic="/a")
        with pytest.raises(errors.FailedPrecondition, match=r"^no more$"):
            await anext(stream)


async def test_a_server_stream_waits_for_a_slow_client(tmp_path: Path) -> None:
    events = Events()
    async with serving(tmp_path, events) as (_, client):
        request = api.events.SubscribeRequest(filters=["/" + "x" * 100_000] * 120)
        async with client.stream(EVENTS, "Subscribe") as call:
            await call.send(request, end=True)
            await call.recv()
            await asyncio.sleep(0.1)
            assert events.sent < 120
            count = 1 + len([m async for m in call])
        assert count == events.sent == 120


async def test_messages_go_both_ways_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, Streaming()) as (_, client), client.stream(STREAMING, "Stream") as call:
        for text in ("a", "b"):
            await call.send(api.protobuf.Any(type_url=text))
            assert await call.recv() == api.protobuf.Any(type_url=text.upper())
        await call.end()
        assert await call.recv() is None


async def test_a_server_may_end_a_stream_before_its_client_does(tmp_path: Path) -> None:
    async with serving(tmp_path, Streaming()) as (_, client):
        async with client.stream(STREAMING, "Stream") as call:
            await call.send(api.protobuf.Any(type_url="stop"))
            assert await call.recv() is None
        async with client.stream(STREAMING, "Stream") as call:
            await call.send(api.protobuf.Any(type_url="a"))
            assert await call.recv() == api.protobuf.Any(type_url="A")


async def test_a_request_over_the_limit_fails_alone(tmp_path: Path) -> None:
    async with serving(tmp_path, Tasks(), max_recv_message_size=1000) as (_, client):
        with pytest.raises(
            errors.ResourceExhausted, match=r"^grpc: received message larger than max \(\d{7} vs\. 1000\)$"
        ):
            await client.unary(TASKS, "Get", api.tasks.GetRequest(container_id="x" * 6_000_000), timeout_s=5)
        await client.unary(TASKS, "Get", api.tasks.GetRequest(container_id="x" * 900), timeout_s=5)


async def test_a_response_over_the_limit_fails_alone(tmp_path: Path) -> None:
    async with serving(tmp_path, Tasks(), max_send_message_size=1000) as (_, client):
        with pytest.raises(
            errors.ResourceExhausted, match=r"^grpc: trying to send message larger than max \(\d{4} vs\. 1000\)$"
        ):
            await client.unary(TASKS, "Metrics", api.tasks.MetricsRequest(filters=["x" * 1000]))
        await client.unary(TASKS, "Metrics", api.tasks.MetricsRequest(filters=["x" * 100]))


async def test_a_client_refuses_what_is_over_its_own_limit(tmp_path: Path) -> None:
    async with serving(tmp_path, Tasks()), GrpcClient(f"unix://{tmp_path}/s", max_message_size=1000) as client:
        with pytest.raises(errors.ResourceExhausted, match="larger than max"):
            await client.unary(TASKS, "Metrics", api.tasks.MetricsRequest(filters=["x" * 995]))
        with pytest.raises(errors.ResourceExhausted, match="trying to send message larger than max"):
            await client.unary(TASKS, "Get", api.tasks.GetRequest(container_id="x" * 1001))


async def test_a_message_of_15_mib_passes_both_ways(tmp_path: Path) -> None:
    async with serving(tmp_path, Tasks()) as (_, client):
        answer = await client.unary(TASKS, "Metrics", api.tasks.MetricsRequest(filters=["x" * (1 << 20)] * 15))
        assert isinstance(answer, api.tasks.MetricsResponse)
        assert answer.metrics[0].data is not None
        assert len(answer.metrics[0].data.value) == 15 << 20


async def test_nobody_listening_is_unavailable(tmp_path: Path) -> None:
    async with GrpcClient(str(tmp_path / "s")) as client:
        with pytest.raises(errors.Unavailable, match="connection to"):
            await client.unary(TASKS, "Get", api.tasks.GetRequest())


async def test_connecting_to_a_silent_server_has_a_limit() -> None:
    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        tls = ssl.create_default_context()
        async with GrpcClient(f"{host}:{port}", tls=tls, connect_timeout_s=0.05) as client:
            with pytest.raises(Unreachable, match=rf"connection to {host}:{port}: not made within 0\.05 s"):
                await client.connect()


async def test_the_client_connects_again_after_the_server_was_replaced(tmp_path: Path) -> None:
    async with serving(tmp_path, Tasks()) as (front, client):
        await client.unary(TASKS, "Get", api.tasks.GetRequest())
        await front.stop(0)
        (tmp_path / "s").unlink()
        async with serving(tmp_path, Tasks()):
            await asyncio.sleep(0.02)
            await client.unary(TASKS, "Get", api.tasks.GetRequest())


async def test_stop_lets_calls_end_and_cancels_subscriptions(tmp_path: Path) -> None:
    tasks, events = Tasks(), Events()
    async with serving(tmp_path, tasks, events) as (front, client):
        call = asyncio.ensure_future(client.unary(TASKS, "Wait", api.tasks.WaitRequest()))
        stream = client.server_stream(EVENTS, "Subscribe", api.events.SubscribeRequest(filters=["/a", "wait"]))
        await anext(stream)
        await tasks.waits(1)
        stopping = asyncio.ensure_future(front.stop(5))
        with pytest.raises(errors.Unavailable, match=r"^the daemon is stopping: transport is closing$"):
            await anext(stream)
        assert events.ended.is_set()
        tasks.go.set()
        assert await call == api.tasks.WaitResponse(exit_status=7)
        await stopping
        with pytest.raises(errors.Unavailable):
            await client.unary(TASKS, "Get", api.tasks.GetRequest())


class OpenTasks(Tasks):
    """Tasks that tell which method goes on for as long as something else lives."""

    open_ended = ("Wait",)


async def test_stop_ends_waits_at_once_in_words_that_clients_try_again_on(tmp_path: Path) -> None:
    tasks = OpenTasks()
    async with serving(tmp_path, tasks) as (front, client):
        call = asyncio.ensure_future(client.unary(TASKS, "Wait", api.tasks.WaitRequest()))
        await tasks.waits(1)
        stopping = asyncio.ensure_future(front.stop(3600))
        with pytest.raises(errors.Unavailable, match=r"^the daemon is stopping: transport is closing$"):
            await call
        await stopping


async def test_stop_ends_a_stream_that_waits_for_its_client(tmp_path: Path) -> None:
    async with serving(tmp_path, Streaming()) as (front, client), client.stream(STREAMING, "Stream") as stream:
        await stream.send(api.protobuf.Any("a", b""))
        await stream.recv()
        stopping = asyncio.ensure_future(front.stop(3600))
        with pytest.raises(errors.Unavailable, match=r"^the daemon is stopping: transport is closing$"):
            await stream.recv()
        await stopping


class SlowStreaming(Streaming):
    """Answers a message only when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    async def stream(self, requests: AsyncIterator[api.protobuf.Any]) -> AsyncIterator[api.protobuf.Any]:
        async for request in requests:
            self.begun.set()
            await self.go.wait()
            yield request


async def test_stop_lets_a_stream_answer_what_its_client_has_sent(tmp_path: Path) -> None:
    streaming = SlowStreaming()
    async with serving(tmp_path, streaming) as (front, client), client.stream(STREAMING, "Stream") as stream:
        await stream.send(api.protobuf.Any("a", b""))
        await streaming.begun.wait()
        stopping = asyncio.ensure_future(front.stop(3600))
        await asyncio.sleep(0)  # `stop` has begun
        streaming.go.set()
        assert await stream.recv() == api.protobuf.Any("a", b"")
        with pytest.raises(errors.Unavailable):
            await stream.recv()
        await stopping


async def test_stop_cancels_what_outlasts_the_grace(tmp_path: Path) -> None:
    tasks = Tasks()
    async with serving(tmp_path, tasks) as (front, client):
        call = asyncio.ensure_future(client.unary(TASKS, "Wait", api.tasks.WaitRequest()))
        await tasks.waits(1)
        await front.stop(0.01)
        assert tasks.cancelled == 1
        with pytest.raises(errors.Unavailable):
            await call
    assert front.statistics() == {"services": 1, "connections": 0, "calls": 0, "started": 1}


async def test_a_call_that_is_cancelled_before_it_began_has_a_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = GrpcConnection.requested

    def cancelled_at_once(connection: GrpcConnection, stream: http2.Stream) -> None:
        requested(connection, stream)
        connection.front.stopping = True
        for task in connection.front.tasks:
            task.cancel()

    async with serving(tmp_path, Tasks()) as (_, client):
        monkeypatch.setattr(GrpcConnection, "requested", cancelled_at_once)
        with pytest.raises(errors.Unavailable, match=r"^the daemon is stopping: transport is closing$"):
            await client.unary(TASKS, "Get", api.tasks.GetRequest())


async def test_calls_are_counted_by_method_and_code(tmp_path: Path) -> None:
    async with serving(tmp_path, Tasks(), Events()) as (front, client):
        await client.unary(TASKS, "Get", api.tasks.GetRequest())
        with pytest.raises(errors.NotFound):
            await client.unary(TASKS, "Kill", api.tasks.KillRequest())
        request = api.events.SubscribeRequest(filters=["/a", "/b"])
        assert len([m async for m in client.server_stream(EVENTS, "Subscribe", request)]) == 2
        metrics = front.metrics
        assert metrics.handled == {(f"/{TASKS}/Get", 0): 1, (f"/{TASKS}/Kill", 5): 1, (f"/{EVENTS}/Subscribe", 0): 1}
        assert metrics.started == {f"/{TASKS}/Get": 1, f"/{TASKS}/Kill": 1, f"/{EVENTS}/Subscribe": 1}
        assert metrics.sent[f"/{EVENTS}/Subscribe"] == 2
        assert sum(metrics.latency[f"/{TASKS}/Get"].counts) == 1


class RawClient:
    """HTTP/2 without manners: any header, any bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()

    async def call(self, path: str, body: bytes, *headers: tuple[str, str], method: str = "POST") -> dict[str, str]:
        """Return the status headers of a call."""
        stream_id = self.h2.get_next_available_stream_id()
        base = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "x"), ("te", "trailers")]
        if not any(key == "content-type" for key, _ in headers):
            base.append(("content-type", "application/grpc"))
        self.h2.send_headers(stream_id, [*base, *headers])
        self.h2.send_data(stream_id, body, end_stream=True)
        found: dict[str, str] = {}
        while "grpc-status" not in found:
            self.writer.write(self.h2.data_to_send())
            data = await asyncio.wait_for(self.reader.read(65536), 5)
            assert data, "the connection died"
            for event in self.h2.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    found.update((str(key), str(value)) for key, value in event.headers)
        return found


@asynccontextmanager
async def raw(tmp_path: Path, **options: Any) -> AsyncIterator[RawClient]:
    async with serving(tmp_path, Tasks(), Streaming(), **options):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
        try:
            yield RawClient(reader, writer)
        finally:
            writer.close()
            await writer.wait_closed()


def message(payload: bytes, compressed: int = 0) -> bytes:
    return struct.pack(">BI", compressed, len(payload)) + payload


GET, WAIT = f"/{TASKS}/Get", f"/{TASKS}/Wait"


@pytest.mark.parametrize(
    ("path", "body", "headers", "code", "text"),
    [
        (GET, message(b"\x0a\x02\xff\xff"), (), 13, "grpc: error unmarshalling request: "),
        (GET, message(b"", 1), (("grpc-encoding", "gzip"),), 12, "grpc: Decompressor is not installed"),
        (
            GET,
            struct.pack(">BI", 0, 1 << 30),
            (),
            8,
            "grpc: received message larger than max (1073741824 vs. 16777216)",
        ),
        (GET, message(b"abc")[:-1], (), 13, "unexpected EOF"),
        (GET, b"", (), 13, "grpc: the request has no message"),
        (GET, message(b""), (("grpc-timeout", "soon"),), 13, "malformed grpc-timeout: soon"),
        (GET, message(b""), (("grpc-timeout", "9" * 400 + "H"),), 13, "malformed grpc-timeout: 9"),
        (GET, message(b""), (("content-type", "text/html"),), 3, "invalid gRPC request content-type"),
        ("/", message(b""), (), 12, "malformed method name"),
        (GET.removeprefix("/"), message(b""), (), 12, "malformed method name"),
        ("/x.Y/Z", message(b""), (), 12, "unknown service x.Y"),
        (f"/{STREAMING}/Stream", message(b"\x0a\x02\xff\xff"), (), 13, "grpc: error unmarshalling request: "),
    ],
)
async def test_a_bad_call_gets_a_status_and_the_connection_lives(
    tmp_path: Path, path: str, body: bytes, headers: tuple[tuple[str, str], ...], code: int, text: str
) -> None:
    async with raw(tmp_path) as client:
        found = await client.call(path, body, *headers)
        assert found["grpc-status"] == str(code)
        assert found["grpc-message"].startswith(text)
        assert (await client.call(GET, message(b"")))["grpc-status"] == "0"


async def test_the_first_of_several_namespace_headers_counts(tmp_path: Path) -> None:
    async with raw(tmp_path) as client:
        headers = (("containerd-namespace", "a"), ("containerd-namespace", "b"))
        assert (await client.call(GET, message(b""), *headers))["grpc-status"] == "0"


async def test_calls_end_well_after_their_client_said_that_it_leaves(tmp_path: Path) -> None:
    tasks = Tasks()
    async with serving(tmp_path, tasks):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
        client = h2.connection.H2Connection()
        client.initiate_connection()
        base = [(":method", "POST"), (":scheme", "http"), (":path", WAIT), (":authority", "x")]
        client.send_headers(1, [*base, ("content-type", "application/grpc")])
        client.send_data(1, message(b""), end_stream=True)
        goaway = bytes.fromhex("000008 07 00 00000000 00000000 00000000")
        ping = bytes.fromhex("000008 06 00 00000000") + b"afterall"
        writer.write(client.data_to_send() + goaway + ping)
        async with asyncio.timeout(5):
            await tasks.waits(1)
            await reader.readuntil(b"afterall")
            tasks.go.set()
            assert b"\x0bgrpc-status\x010" in await reader.read()
        writer.close()
        await writer.wait_closed()


async def test_unknown_http2_frames_are_ignored(tmp_path: Path) -> None:
    async with raw(tmp_path) as client:
        assert (await client.call(GET, message(b"")))["grpc-status"] == "0"
        client.writer.write(bytes.fromhex("000004 fb 00 00000000 01020304"))
        assert (await client.call(GET, message(b"")))["grpc-status"] == "0"


async def test_the_client_that_leaves_most_unread_is_cut_off_when_all_together_leave_too_much(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, Tasks()) as (front, good):
        front.max_all_unread_bytes = 70_000
        clients = []
        for calls in (1, 3):
            client = h2.connection.H2Connection()
            client.initiate_connection()
            for stream in range(1, 2 * calls, 2):
                base = [(":method", "POST"), (":scheme", "http"), (":path", GET), (":authority", "x")]
                client.send_headers(stream, [*base, ("content-type", "application/grpc")])
                for half in (message(bytes(1 << 20))[:10_000], bytes(10_000)):
                    client.send_data(stream, half)
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(client.data_to_send())
            clients.append((reader, writer))
        async with asyncio.timeout(5):
            await clients[1][0].read()
        assert front.unread.total < 22_000
        await good.unary(TASKS, "Get", api.tasks.GetRequest())
        assert not clients[0][0].at_eof()
        for _, writer in clients:
            writer.close()


async def send_for_ever(client: socket.socket, data: bytes) -> None:
    while True:
        await asyncio.get_running_loop().sock_sendall(client, data)


async def test_a_client_that_pings_and_reads_nothing_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc, "MAX_UNSENT_BYTES", 100_000)
    request = http2.header_block([(":method", "GET")])
    start = http2.PREFACE + len(request).to_bytes(3) + b"\1\5\0\0\0\1" + request
    pings = (bytes.fromhex("000008 06 00 00000000") + b"whoreads") * 5000
    data_of_a_call_that_is_over = bytes.fromhex("000001 00 00 00000001 00")
    async with serving(tmp_path, Tasks()):
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, str(tmp_path / "s"))
            await asyncio.get_running_loop().sock_sendall(client, start)
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                await asyncio.wait_for(send_for_ever(client, pings + data_of_a_call_that_is_over), 10)
