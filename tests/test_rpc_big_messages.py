"""Big messages are decoded and encoded beside the event loop, small ones on it."""

from __future__ import annotations

import asyncio
import socket
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from aiocontainerd import api
from aiocontainerd.errors import NotFound, ResourceExhausted
from aiocontainerd.rpc import big_messages
from aiocontainerd.rpc.grpc import GrpcFrontEnd
from aiocontainerd.rpc.grpc_client import GrpcClient
from aiocontainerd.sys import heap
from aiocontainerd.wire import codec, limits, protobuf

IMAGES = "containerd.services.images.v1.Images"
pytestmark = pytest.mark.anyio


class Images:
    """Answers with what it was given."""

    service_name: ClassVar[str] = IMAGES

    async def create(self, request: api.images.CreateImageRequest) -> api.images.CreateImageResponse:
        return api.images.CreateImageResponse(image=request.image)

    async def get(self, request: api.images.GetImageRequest) -> api.images.GetImageResponse:
        raise NotFound(f'image "{request.name}"')


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[tuple[GrpcFrontEnd, GrpcClient]]:
    front = GrpcFrontEnd([Images()])
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    await front.start(sock)
    try:
        async with GrpcClient(str(tmp_path / "s")) as client:
            yield front, client
    finally:
        await front.stop(0)


def held(monkeypatch: pytest.MonkeyPatch, function: str, cls: Any) -> threading.Event:
    """Let a function of the codec wait for the returned event when it is given a message of a class."""
    event, original = threading.Event(), getattr(codec, function)

    def waiting(*args: Any) -> Any:
        if cls in (args[0], type(args[0])):
            assert event.wait(20), "the loop did nothing else meanwhile"
        return original(*args)

    monkeypatch.setattr(codec, function, waiting)
    return event


@pytest.mark.parametrize(
    ("function", "cls"), [("decode", api.images.CreateImageRequest), ("encode", api.images.CreateImageResponse)]
)
async def test_others_are_answered_while_a_big_message_is_decoded_or_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, cls: Any
) -> None:
    go_on = held(monkeypatch, function, cls)
    image = api.images.Image(labels={str(number): "x" * 20 for number in range(10_000)})
    async with serving(tmp_path) as (front, client), asyncio.TaskGroup() as tasks:
        big = tasks.create_task(client.unary(IMAGES, "Create", api.images.CreateImageRequest(image=image)))
        async with asyncio.timeout(15), GrpcClient(str(tmp_path / "s")) as other:
            while front.codec.used < {"decode": 1, "encode": 2}[function]:
                with pytest.raises(NotFound):
                    await other.unary(IMAGES, "Get", api.images.GetImageRequest())
            with pytest.raises(NotFound):
                await other.unary(IMAGES, "Get", api.images.GetImageRequest())
        assert not big.done()
        go_on.set()
        answer = await big
    assert answer == api.images.CreateImageResponse(image=image)


async def test_a_message_of_long_strings_is_small(tmp_path: Path) -> None:
    async with serving(tmp_path) as (front, client):
        with pytest.raises(NotFound):
            await client.unary(IMAGES, "Get", api.images.GetImageRequest(name="x" * (1 << 20)))
        assert not front.codec.used


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(api.images.Image(name="x" * (limits.MAX_STRING_CHARACTERS + 1)), id="a long string"),
        pytest.param(api.images.Image(labels={"a": "x" * (limits.MAX_STRING_CHARACTERS + 1)}), id="a long label"),
        pytest.param(
            api.images.Image(
                labels={f"{number:09}": "" for number in range(limits.MAX_VALUES // 2)},
                target=api.types.Descriptor(
                    annotations={f"{number:09}": "" for number in range(limits.MAX_VALUES // 2 + 1)}
                ),
            ),
            id="many values",
        ),
    ],
)
async def test_a_large_request_of_many_values_or_a_long_string_is_refused(
    tmp_path: Path, image: api.images.Image
) -> None:
    async with serving(tmp_path) as (front, client):
        with pytest.raises(ResourceExhausted, match=r"^containerd\.services\S+CreateImageRequest: .*more than"):
            await client.unary(IMAGES, "Create", api.images.CreateImageRequest(image=image))
        assert front.codec.used == 1


async def test_what_was_decoded_of_a_bad_message_is_freed_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[str] = []
    original = protobuf.parse

    def parse(cls: Any, data: bytes) -> Any:
        message = original(cls, data)
        if cls is api.images.CreateImageRequest:
            weakref.finalize(message, lambda: freed.append(threading.current_thread().name))
            raise protobuf.TooManyValues(1, "labels")
        return message

    monkeypatch.setattr(protobuf, "parse", parse)
    labels = {str(number): "x" * 20 for number in range(10_000)}
    async with serving(tmp_path) as (_, client):
        with pytest.raises(ResourceExhausted):
            await client.unary(IMAGES, "Create", api.images.CreateImageRequest(image=api.images.Image(labels=labels)))
        assert freed == ["codec_0"]


async def test_an_error_that_names_something_huge_is_cut(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        with pytest.raises(NotFound) as raised:
            await client.unary(IMAGES, "Get", api.images.GetImageRequest(name="x" * (1 << 20)))
    assert raised.value.message.startswith('image "xxx')
    assert len(raised.value.message) < 5000
    assert "characters)" in raised.value.message


async def test_the_thread_of_big_messages_ends_with_its_server(tmp_path: Path) -> None:
    labels = {str(number): "x" * 20 for number in range(10_000)}
    async with serving(tmp_path) as (_front, client):
        request = api.images.CreateImageRequest(image=api.images.Image(labels=labels))
        await client.unary(IMAGES, "Create", request)
        assert "codec_0" in {thread.name for thread in threading.enumerate()}
    for thread in threading.enumerate():
        if thread.name.startswith("codec"):
            thread.join(20)
    assert "codec_0" not in {thread.name for thread in threading.enumerate()}


async def test_memory_is_given_back_after_garbage_is_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cycle:
        pass

    alive: list[bool] = []
    trimmed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def trim() -> None:
        alive.append(gone() is not None)
        loop.call_soon_threadsafe(trimmed.set)

    monkeypatch.setattr(big_messages, "TRIM_S", 0.0)
    monkeypatch.setattr(heap, "trim", trim)
    async with serving(tmp_path) as (front, _):
        cycle: Any = Cycle()
        cycle.itself = cycle
        gone = weakref.ref(cycle)
        del cycle
        front.codec.trim_soon()
        async with asyncio.timeout(20):
            await trimmed.wait()
    assert alive == [False]
