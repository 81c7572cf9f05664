"""Answers that clients do not read: how many are built, who waits, who is cut off."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from aiocontainerd import api
from aiocontainerd.rpc import http2, outgoing
from aiocontainerd.rpc.grpc import GrpcFrontEnd
from aiocontainerd.rpc.grpc_client import GrpcClient
from aiocontainerd.rpc.outgoing import Answer, Outgoing, Share

IMAGES, CONTENT = "containerd.services.images.v1.Images", "containerd.services.content.v1.Content"
pytestmark = pytest.mark.anyio


class Held:
    """The shares of two connections, and what was told of them."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.dropped: list[Share] = []
        self.cut_off = asyncio.Event()
        self.emptied: list[None] = []
        self.outgoing = Outgoing(self._emptied, lambda: self.now_s)
        self.first, self.second = (self._share() for _ in range(2))

    def _emptied(self) -> None:
        self.emptied.append(None)

    def _share(self) -> Share:
        share = self.outgoing.share(lambda: self._dropped(share))
        return share

    def _dropped(self, share: Share) -> None:
        self.dropped.append(share)
        self.cut_off.set()


async def waits(share: Share, expected: int) -> asyncio.Task[Answer]:
    """Return a task that waits for room; fails if there is any."""
    task = asyncio.create_task(share.room(expected))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_a_big_answer_waits_for_those_before_it_on_its_connection() -> None:
    held = Held()
    first = await held.first.room(3 << 20)
    second = await waits(held.first, 2 << 20)
    third = await waits(held.first, 1)
    await held.second.room(2 << 20)
    first.is_of(1 << 20)
    await asyncio.gather(second, third)
    assert held.first.held == (3 << 20) + 1


async def test_an_answer_of_any_size_is_built_where_nothing_else_is_held() -> None:
    held = Held()
    await held.first.room(1 << 30)


async def test_small_answers_wait_only_for_very_many_that_are_unread() -> None:
    held = Held()
    answers = [await held.first.room(0) for _ in range(3)]
    for answer in answers:
        answer.is_of(8 << 20)
    small = await waits(held.first, 0)
    answers[0].end()
    await small


async def test_all_connections_together_have_a_limit_and_get_room_when_any_frees_some() -> None:
    held = Held()
    shares = [held.outgoing.share(lambda: None) for _ in range(8)]
    answers = [await share.room(4 << 20) for share in shares]
    waiting = await waits(held.first, 1 << 20)
    answers[0].end()
    await waiting
    assert held.outgoing.held == 29 << 20


async def test_one_that_gives_up_leaves_no_trace() -> None:
    held = Held()
    first = await held.first.room(4 << 20)
    second = await waits(held.first, 4 << 20)
    third = await waits(held.first, 1 << 20)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    first.end()
    (await third).end()
    assert held.outgoing.held == held.first.held == 0


async def test_one_that_gives_up_when_it_has_just_got_room_gives_it_back() -> None:
    held = Held()
    first = await held.first.room(4 << 20)
    second = await waits(held.first, 4 << 20)
    first.end()
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert held.outgoing.held == 0


async def test_a_client_that_takes_nothing_is_cut_off_when_others_wait_for_what_it_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outgoing, "STALLED_S", 0.01)
    held = Held()
    answer = await held.second.room(64 << 20)
    waiting = asyncio.create_task(held.first.room(1 << 20))
    await asyncio.sleep(0.05)
    assert not held.dropped, "no time has passed"
    held.now_s = 1.0
    async with asyncio.timeout(20):
        await held.cut_off.wait()
    assert set(held.dropped) == {held.second}
    answer.end()
    await waiting


async def test_memory_is_given_back_after_much_was_held() -> None:
    held = Held()
    (await held.first.room(16 << 20)).end()
    assert held.emptied == []
    (await held.first.room(17 << 20)).end()
    assert held.emptied == [None]


async def test_memory_is_given_back_though_one_client_leaves_a_little_unread() -> None:
    held = Held()
    (await held.second.room(0)).is_of(1000)
    (await held.first.room(17 << 20)).end()
    assert held.emptied == [None]


def test_the_size_of_an_answer_is_learned_and_slowly_forgotten() -> None:
    held = Outgoing(lambda: None)
    assert held.expected("/a.B/Get") == 0
    assert held.expected("/a.B/List") == held.expected("/a.B/Metrics") == 5 << 20
    held.learn("/a.B/List", 100)
    assert held.expected("/a.B/List") == 0
    held.learn("/a.B/Get", 1 << 20)
    held.learn("/a.B/Get", 100)
    assert held.expected("/a.B/Get") > 4 << 20
    for _ in range(40):
        held.learn("/a.B/Get", 100)
    assert held.expected("/a.B/Get") == 0


class Images:
    """Answers `List` with 2 MiB."""

    service_name: ClassVar[str] = IMAGES

    def __init__(self) -> None:
        self.built = 0

    async def list(self, request: api.images.ListImagesRequest) -> api.images.ListImagesResponse:
        self.built += 1
        return api.images.ListImagesResponse(images=[api.images.Image(name="x" * (2 << 20))])

    async def get(self, request: api.images.GetImageRequest) -> api.images.GetImageResponse:
        return api.images.GetImageResponse(image=api.images.Image(name=request.name))


class Content:
    """Sends blocks without end."""

    service_name: ClassVar[str] = CONTENT

    def __init__(self) -> None:
        self.built = 0

    async def read(self, request: api.content.ReadContentRequest) -> AsyncIterator[api.content.ReadContentResponse]:
        while True:
            self.built += 1
            yield api.content.ReadContentResponse(data=bytes(40_000))


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def calls(path: str, count: int, first: int = 1) -> bytes:
    block = http2.header_block([(":method", "POST"), (":path", path), ("content-type", "application/grpc")])
    ids = range(first, first + 2 * count, 2)
    return b"".join(frame(1, 4, one, block) + frame(0, 1, one, bytes(5)) for one in ids)


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[tuple[GrpcFrontEnd, Images, Content]]:
    images, content = Images(), Content()
    front = GrpcFrontEnd([images, content])
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    await front.start(sock)
    try:
        yield front, images, content
    finally:
        await front.stop(0)


@asynccontextmanager
async def silent(tmp_path: Path, sent: bytes) -> AsyncIterator[asyncio.StreamWriter]:
    """Send bytes, and read none."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(tmp_path / "s"))
    _, writer = await asyncio.open_unix_connection(sock=sock, limit=1)
    writer.write(http2.PREFACE + frame(4, 0, 0, b"") + sent)
    try:
        yield writer
    finally:
        writer.close()
        await writer.wait_closed()


async def served(tmp_path: Path, count: int) -> None:
    """Wait until a client that reads has had so many answers, which gives others that many turns."""
    async with asyncio.timeout(20), GrpcClient(str(tmp_path / "s")) as client:
        for _ in range(count):
            answer = await client.unary(IMAGES, "Get", api.images.GetImageRequest(name="a"))
            assert answer == api.images.GetImageResponse(image=api.images.Image(name="a"))


async def test_lists_that_nobody_reads_are_not_built(tmp_path: Path) -> None:
    async with serving(tmp_path) as (front, images, _), silent(tmp_path, calls(f"/{IMAGES}/List", 200)):
        await served(tmp_path, 1)
        async with asyncio.timeout(20):
            while front.metrics.started[f"/{IMAGES}/List"] < 200:
                await served(tmp_path, 1)
        await served(tmp_path, 10)
        assert images.built == 1
        assert front.outgoing.held == pytest.approx(2 << 20, abs=100)
        async with GrpcClient(str(tmp_path / "s")) as client:
            await client.unary(IMAGES, "List", api.images.ListImagesRequest())
        assert images.built == 2
    assert front.outgoing.held == 0


async def test_the_next_message_of_a_stream_that_nobody_reads_is_not_built(tmp_path: Path) -> None:
    async with serving(tmp_path) as (front, _, content), silent(tmp_path, calls(f"/{CONTENT}/Read", 50)):
        async with asyncio.timeout(20):
            while front.metrics.started[f"/{CONTENT}/Read"] < 50:
                await served(tmp_path, 1)
        await served(tmp_path, 10)
        assert content.built == 2, "the first fits the window of the connection, the second ends it"


async def test_a_client_that_opens_thousands_of_streams_leaves_others_their_turn(tmp_path: Path) -> None:
    count = 5000
    async with serving(tmp_path) as (front, _, _), silent(tmp_path, calls(f"/{IMAGES}/Get", count)):
        turns, begun = 0, front.metrics.started[f"/{IMAGES}/Get"]
        async with asyncio.timeout(40):
            while front.metrics.started[f"/{IMAGES}/Get"] < count:
                await asyncio.sleep(0)
                turns += 1
        assert turns >= (count - begun) // http2.STEP_WORK - 1
