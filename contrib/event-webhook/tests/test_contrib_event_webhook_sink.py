"""The webhook sink: what a line says, where it goes, and what is tried again."""

from __future__ import annotations

import json
import resource
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiocontainerd_event_webhook.lines import line_of
from aiocontainerd_event_webhook.plugin import Config, Webhook
from aiocontainerd_event_webhook.targets import FileTarget
from aiohttp import web

from aiocontainerd import api
from aiocontainerd.config import ConfigError
from aiocontainerd.config.decode import decode
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.loading import registrations_of
from aiocontainerd.host.registry import Registry
from aiocontainerd.plugin import Envelope, EventBus, Plugin, Secret, State, errors, timestamps, typeurl
from aiocontainerd.testing.event_sink import Arrived, EventSinkContract, OpenSink

pytestmark = pytest.mark.anyio

EXIT = "containerd.events.TaskExit"


def envelope(number: int = 0, topic: str = "/tasks/exit") -> Envelope:
    exited = api.protobuf.Timestamp(seconds=5, nanos=123456789)
    message = api.event_types.TaskExit(container_id=f"c{number}", exited_at=exited)
    return Envelope(1_000_000_001, "ns", topic, typeurl.marshal(message))


def config_of(**keys: Any) -> Config:
    """Return the config of a table. Raises ConfigError."""
    record, problems = decode(keys, Config, (), {})
    if record is None or problems:
        raise ConfigError("\n".join(problem.text.removeprefix("default: ") for problem in problems))
    return record


@asynccontextmanager
async def started(directory: Path, **config: Any) -> AsyncIterator[Plugin]:
    """Start the plugin in a registry, as a daemon does."""
    registry = Registry()
    (registration,) = registrations_of("aiocontainerd_event_webhook.plugin")
    added = registry.add(registration)
    daemon = DaemonInfo(
        root=directory,
        state=directory,
        temp=directory,
        grpc_address="",
        ttrpc_address="",
        bus=EventBus(),
        plugins=lambda: registry.plugins,
        timeout_s=lambda _name: 5.0,
    )
    async with registry.run(daemon, lambda _registration: config_of(**config)):
        yield added


@asynccontextmanager
async def sink(directory: Path, **config: Any) -> AsyncIterator[Webhook]:
    async with started(directory, **config) as added:
        assert (added.state, added.reason) == (State.LOADED, "")
        yield added.instance


class Receiver:
    """An HTTP server that answers each request with the next of its statuses, the last one for ever."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.bodies: list[bytes] = []
        self.headers: list[Any] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        self.headers.append(request.headers)
        return web.Response(status=self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0])

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Receiver]:
        app = web.Application(client_max_size=4 << 20)
        app.router.add_post("/events", self.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/events?key=1"
            yield self
        finally:
            await runner.cleanup()


class TestContractOfFiles(EventSinkContract):
    """The suite of aiocontainerd.testing.event_sink, writing to a file."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "events.jsonl"

    @pytest.fixture
    def open_sink(self, path: Path) -> OpenSink:
        return partial(sink, target=str(path))

    @pytest.fixture
    def arrived(self, path: Path) -> Arrived:
        async def read() -> list[Envelope]:
            return [envelope_of(line) for line in path.read_bytes().splitlines()]

        return read


class TestContractOfUrls(EventSinkContract):
    """The same suite, posting to a server."""

    @pytest.fixture
    async def receiver(self) -> AsyncIterator[Receiver]:
        async with Receiver(200).serving() as receiver:
            yield receiver

    @pytest.fixture
    def open_sink(self, receiver: Receiver) -> OpenSink:
        return partial(sink, target=receiver.url)

    @pytest.fixture
    def arrived(self, receiver: Receiver) -> Arrived:
        async def read() -> list[Envelope]:
            return [envelope_of(body) for body in receiver.bodies]

        return read


def envelope_of(line: bytes) -> Envelope:
    """Return the event that a line tells of."""
    told = json.loads(line)
    message = api.event_types.TaskExit(**{**told["event"], "exited_at": None})
    timestamp_ns = timestamps.parse_rfc3339(told["timestamp"])
    return Envelope(timestamp_ns, told["namespace"], told["topic"], typeurl.marshal(message))


# Lines.


def test_line_says_when_where_what_and_the_payload() -> None:
    line = line_of(envelope())
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "timestamp": "1970-01-01T00:00:01.000000001Z",
        "namespace": "ns",
        "topic": "/tasks/exit",
        "type": EXIT,
        "event": {
            "container_id": "c0",
            "id": "",
            "pid": 0,
            "exit_status": 0,
            "exited_at": "1970-01-01T00:00:05.123456789Z",
        },
    }


def test_payload_of_an_unknown_type_is_given_as_bytes() -> None:
    event = Envelope(1, "ns", "/acme", typeurl.Any("acme.v1.Thing", b"\xff\x00"))
    assert json.loads(line_of(event))["event"] == {"value": "/wA="}


def test_nested_messages_are_lines_too() -> None:
    options = api.protobuf.Any(type_url="acme.v1.Options", value=b"\x01")
    runtime = api.event_types.ContainerCreateRuntime(name="io.containerd.runc.v2", options=options)
    message = api.event_types.ContainerCreate(id="c", runtime=runtime)
    found = json.loads(line_of(Envelope(1, "ns", "/containers/create", typeurl.marshal(message))))["event"]
    assert found["runtime"] == {
        "name": "io.containerd.runc.v2",
        "options": {"type_url": "acme.v1.Options", "value": "AQ=="},
    }


# Files.


async def test_file_has_one_line_for_each_event_in_order(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    async with sink(tmp_path, target=str(path)) as webhook:
        for number in range(5):
            await webhook.deliver(envelope(number))
        assert webhook.statistics() == {"delivered": 5, "retried": 0}
    ids = [json.loads(line)["event"]["container_id"] for line in path.read_text().splitlines()]
    assert ids == ["c0", "c1", "c2", "c3", "c4"]
    assert path.stat().st_mode & 0o777 == 0o640


async def test_file_may_be_rotated(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    async with sink(tmp_path, target=str(path)) as webhook:
        await webhook.deliver(envelope(0))
        path.rename(tmp_path / "old")
        await webhook.deliver(envelope(1))
    assert len(path.read_text().splitlines()) == 1


async def test_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    line = line_of(envelope())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with sink(tmp_path, target=str(path), attempts=1) as webhook:
        await webhook.deliver(envelope())
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(line) + 10, hard))
        try:
            with pytest.raises(errors.Unavailable, match="No space left on device"):
                await webhook.deliver(envelope())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == line


async def test_write_that_hangs_costs_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hung, go_on = [], threading.Event()

    def hang(_target: FileTarget, line: bytes) -> None:
        hung.append(line)
        go_on.wait(10)

    monkeypatch.setattr(FileTarget, "_append_alone", hang)
    async with sink(tmp_path, target=str(tmp_path / "file"), timeout="20ms", attempts=3, backoff="1ms") as webhook:
        try:
            with pytest.raises(errors.Unavailable, match=r"a write before this one has not ended \(attempt 3"):
                await webhook.deliver(envelope())
        finally:
            go_on.set()
    assert len(hung) == 1


# URLs.


async def test_url_gets_one_post_for_each_event_in_order(tmp_path: Path) -> None:
    async with Receiver(204).serving() as receiver, sink(tmp_path, target=receiver.url) as webhook:
        for number in range(3):
            await webhook.deliver(envelope(number))
    assert receiver.bodies == [line_of(envelope(number)) for number in range(3)]
    assert receiver.headers[0]["Content-Type"] == "application/x-ndjson"
    assert "Authorization" not in receiver.headers[0]


async def test_token_is_sent_and_not_shown(tmp_path: Path) -> None:
    config = Config(token=Secret("hunter2"))
    async with (
        Receiver(200).serving() as receiver,
        sink(tmp_path, target=receiver.url, token=config.token.reveal()) as webhook,
    ):
        await webhook.deliver(envelope())
        assert "hunter2" not in f"{webhook!r} {config!r}"
    assert receiver.headers[0]["Authorization"] == "Bearer hunter2"


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_busy_server_is_tried_again(tmp_path: Path, status: int) -> None:
    async with (
        Receiver(status, status, 200).serving() as receiver,
        sink(tmp_path, target=receiver.url, backoff="1ms") as webhook,
    ):
        await webhook.deliver(envelope())
        assert webhook.statistics() == {"delivered": 1, "retried": 2}
    assert receiver.bodies == [line_of(envelope())] * 3


@pytest.mark.parametrize("status", [302, 400, 404])
async def test_refusal_is_not_tried_again(tmp_path: Path, status: int) -> None:
    async with Receiver(status).serving() as receiver, sink(tmp_path, target=receiver.url) as webhook:
        with pytest.raises(errors.Unavailable, match=f"events: status {status}$"):
            await webhook.deliver(envelope())
    assert len(receiver.bodies) == 1


async def test_attempts_have_a_limit_and_pauses_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    config = {"attempts": 5, "backoff": "1s", "backoff_max": "3s"}
    async with Receiver(500).serving() as receiver, sink(tmp_path, target=receiver.url, **config) as webhook:
        monkeypatch.setattr("aiocontainerd_event_webhook.plugin.anyio.sleep", sleep)
        with pytest.raises(errors.Unavailable, match=r"status 500 \(attempt 5, the last\)"):
            await webhook.deliver(envelope())
        monkeypatch.undo()
    assert pauses == [1.0, 2.0, 3.0, 3.0]


async def test_unreachable_url_is_an_error_that_names_it(tmp_path: Path) -> None:
    async with Receiver(200).serving() as receiver:
        gone = receiver.url
    async with sink(tmp_path, target=gone, attempts=2, backoff="1ms") as webhook:
        with pytest.raises(errors.Unavailable, match=r"http://127\.0\.0\.1:\d+/events: ") as caught:
            await webhook.deliver(envelope())
        assert "key=1" not in str(caught.value), "a query may be a secret"


async def test_server_that_does_not_answer_has_a_deadline(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        async with sink(tmp_path, target=url, timeout="50ms", attempts=1) as webhook:
            with pytest.raises(errors.Unavailable, match="no answer within 50ms"):
                await webhook.deliver(envelope())


# Config.


async def test_without_a_target_it_is_skipped(tmp_path: Path) -> None:
    async with started(tmp_path) as added:
        assert (added.state, added.reason) == (State.SKIPPED, "no target is configured: skip plugin")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"target": "events"}, "target: 'events' is neither an absolute path nor an http or https URL"),
        ({"target": "ftp://host/"}, "target: 'ftp://host/' is neither an absolute path nor an http or https URL"),
        (
            {"target": "https://me:pw@host/"},
            "target: a URL cannot have a user and a password in it; use the key `token`",
        ),
        ({"target": "/x", "attempts": 0}, "attempts: expected `int` >= 1"),
        (
            {"target": "/x", "backoff": "soon"},
            'backoff: time: invalid duration "soon" (write it as 500ms, 2s or 1m30s)',
        ),
        ({"target": "/x", "timeout": "0"}, "timeout: it is 0, and must be more than 0"),
    ],
)
def test_bad_config_is_told_when_it_is_loaded(config: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as failed:
        config_of(**config)
    assert str(failed.value) == text


def test_config_refuses_unknown_keys() -> None:
    with pytest.raises(ConfigError, match="url"):
        config_of(url="/x")


def test_filters_come_from_the_config() -> None:
    assert tuple(Webhook(config_of(filters=["topic~=^/tasks/"])).filters) == ("topic~=^/tasks/",)
    with pytest.raises(ConfigError, match=r"filters\.0: "):
        config_of(filters=["topic~="])
