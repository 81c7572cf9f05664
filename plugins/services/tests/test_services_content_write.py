"""Content.Write as a transcript: the rules of facts/core 4, one test each."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from aiocontainerd import api
from aiocontainerd.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Unavailable,
    Unknown,
)
from aiocontainerd.interfaces.content import BlobInfo, IngestStatus
from aiocontainerd.serve.content_write import write_stream
from aiocontainerd.wire.times import time_from_wire

pytestmark = pytest.mark.anyio

STAT, WRITE, COMMIT = api.content.WriteAction.STAT, api.content.WriteAction.WRITE, api.content.WriteAction.COMMIT
STARTED_NS, UPDATED_NS = 5_000_000_000, 6_000_000_007


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class FakeWriter:
    def __init__(self, store: FakeStore, ref: str) -> None:
        self.store, self.ref, self.closed = store, ref, False
        self.short = 0
        self.committed: tuple[int, str, dict[str, str]] | None = None

    @property
    def _data(self) -> bytearray:
        return self.store.ingests[self.ref]

    @property
    def offset(self) -> int:
        return len(self._data)

    def digest(self) -> str:
        return digest_of(bytes(self._data))

    async def write(self, data: bytes) -> None:
        self._data.extend(data[: len(data) - self.store.loses])

    async def truncate(self) -> None:
        if self.store.truncate_error:
            raise self.store.truncate_error
        self._data.clear()

    async def status(self) -> IngestStatus:
        return IngestStatus(
            ref=self.ref, offset=self.offset, total=99, started_at_ns=STARTED_NS, updated_at_ns=UPDATED_NS
        )

    async def commit(self, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> BlobInfo:
        if size and size != self.offset:
            raise FailedPrecondition(f'"{self.ref}" failed size validation: {self.offset} != {size}')
        data = bytes(self._data)
        self.store.blobs[digest_of(data)] = data
        self.committed = (size, expected, dict(labels or {}))
        del self.store.ingests[self.ref]
        return BlobInfo(digest=digest_of(data), size=len(data), created_at_ns=1, updated_at_ns=1)

    async def close(self) -> None:
        self.closed = True


class FakeStore:
    def __init__(self) -> None:
        self.ingests: dict[str, bytearray] = {}
        self.blobs: dict[str, bytes] = {}
        self.writers: list[FakeWriter] = []
        self.aborted: list[str] = []
        self.opened: list[tuple[str, int, str]] = []
        self.loses = 0
        self.truncate_error: Exception | None = None
        self.open_error: Exception | None = None

    async def writer(self, ref: str, *, total: int = 0, expected: str = "") -> FakeWriter:
        if self.open_error:
            raise self.open_error
        self.opened.append((ref, total, expected))
        self.ingests.setdefault(ref, bytearray())
        self.writers.append(FakeWriter(self, ref))
        return self.writers[-1]

    async def info(self, digest: str) -> BlobInfo:
        if digest not in self.blobs:
            raise NotFound(f"content digest {digest}")
        return BlobInfo(digest=digest, size=1, created_at_ns=1, updated_at_ns=1)

    async def abort(self, ref: str) -> None:
        self.aborted.append(ref)
        self.ingests.pop(ref, None)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


def request(action: Any, ref: str = "", **fields: Any) -> api.content.WriteContentRequest:
    return api.content.WriteContentRequest(action=action, ref=ref, **fields)


async def run(store: Any, *requests: api.content.WriteContentRequest) -> list[api.content.WriteContentResponse]:
    async def sent() -> AsyncIterator[api.content.WriteContentRequest]:
        for one in requests:
            yield one

    return [response async for response in write_stream(store, sent())]


async def test_a_stream_without_a_message_is_an_unknown_eof(store: FakeStore) -> None:
    with pytest.raises(Unknown, match=r"^EOF$"):
        await run(store)


async def test_the_first_message_must_have_a_reference(store: FakeStore) -> None:
    with pytest.raises(InvalidArgument, match="first message must have a reference"):
        await run(store, request(STAT))
    assert not store.opened


async def test_total_and_expected_of_the_first_message_open_the_ingest(store: FakeStore) -> None:
    await run(store, request(STAT, "r", total=7, expected="sha256:zz"))
    assert store.opened == [("r", 7, "sha256:zz")]


async def test_what_keeps_the_ingest_from_opening_is_the_answer(store: FakeStore) -> None:
    store.open_error = Unavailable("ref ns/1/r locked for 1s")
    with pytest.raises(Unavailable, match="locked"):
        await run(store, request(STAT, "r"))


async def test_stat_tells_offset_digest_times_and_the_total_of_this_stream(store: FakeStore) -> None:
    store.ingests["r"] = bytearray(b"abc")
    response = (await run(store, request(STAT, "r", total=10)))[0]
    assert (response.action, response.offset, response.total) == (STAT, 3, 10)
    assert response.digest == digest_of(b"abc")
    assert time_from_wire(response.started_at) == STARTED_NS
    assert time_from_wire(response.updated_at) == UPDATED_NS


async def test_the_last_response_is_sent_twice_on_half_close(store: FakeStore) -> None:
    responses = await run(store, request(STAT, "r"), request(WRITE, data=b"abc"))
    assert [r.offset for r in responses] == [0, 3, 3]
    assert bytes(responses[1]) == bytes(responses[2])
    assert store.ingests["r"] == b"abc"


async def test_commit_ends_the_stream_and_its_response_is_sent_twice(store: FakeStore) -> None:
    responses = await run(
        store,
        request(STAT, "r", total=3, expected=digest_of(b"abc")),
        request(WRITE, data=b"abc"),
        request(COMMIT, offset=3, labels={"a": "b"}),
        request(STAT),
    )
    assert [r.action for r in responses] == [STAT, WRITE, COMMIT, COMMIT]
    assert (responses[2].offset, responses[2].digest) == (3, digest_of(b"abc"))
    assert store.writers[0].committed == (3, digest_of(b"abc"), {"a": "b"})


async def test_total_and_expected_of_a_later_message_win(store: FakeStore) -> None:
    await run(
        store,
        request(STAT, "r", total=9, expected=digest_of(b"old")),
        request(WRITE, data=b"abc"),
        request(COMMIT, offset=3, total=3, expected=digest_of(b"abc")),
    )
    assert store.writers[0].committed == (3, digest_of(b"abc"), {})


async def test_responses_after_a_stat_keep_its_times_and_total(store: FakeStore) -> None:
    responses = await run(store, request(STAT, "r", total=5), request(WRITE, data=b"a"))
    assert time_from_wire(responses[1].started_at) == STARTED_NS
    assert responses[1].total == 5


async def test_a_write_before_any_stat_shows_no_times(store: FakeStore) -> None:
    response = (await run(store, request(WRITE, "r", data=b"a")))[0]
    assert response.started_at is None
    assert response.total == 0


async def test_a_positive_offset_must_be_the_current_one(store: FakeStore) -> None:
    store.ingests["r"] = bytearray(b"x" * 110)
    with pytest.raises(OutOfRange, match="write @7 must occur at current offset 110"):
        await run(store, request(WRITE, "r", offset=7, data=b"a"))
    assert store.writers[0].closed
    assert len(store.ingests["r"]) == 110


async def test_offset_zero_with_data_present_starts_again(store: FakeStore) -> None:
    store.ingests["r"] = bytearray(b"old")
    responses = await run(store, request(WRITE, "r", data=b"new!"))
    assert responses[0].offset == 4
    assert store.ingests["r"] == b"new!"


async def test_offset_zero_truncates_even_for_a_commit(store: FakeStore) -> None:
    store.ingests["r"] = bytearray(b"old")
    responses = await run(store, request(COMMIT, "r"))
    assert (responses[0].offset, responses[0].digest) == (0, digest_of(b""))


async def test_a_truncation_that_fails_is_unknown(store: FakeStore) -> None:
    store.ingests["r"] = bytearray(b"old")
    store.truncate_error = FailedPrecondition("no")
    with pytest.raises(Unknown, match=r"^truncate failed: no: failed precondition$"):
        await run(store, request(WRITE, "r", data=b"new"))


async def test_a_short_write_is_data_loss(store: FakeStore) -> None:
    store.loses = 2
    with pytest.raises(DataLoss, match="wrote 3 of 5 bytes"):
        await run(store, request(WRITE, "r", data=b"abcde"))


async def test_a_size_that_differs_keeps_the_ingest(store: FakeStore) -> None:
    with pytest.raises(FailedPrecondition, match='"r" failed size validation: 3 != 4'):
        await run(store, request(WRITE, "r", data=b"abc"), request(COMMIT, offset=3, total=4))
    assert store.ingests["r"] == b"abc"
    assert store.writers[0].closed


async def test_a_later_message_that_expects_a_blob_that_exists_aborts_the_ingest(store: FakeStore) -> None:
    have = digest_of(b"have")
    store.blobs[have] = b"have"
    with pytest.raises(AlreadyExists, match=f"blob with expected digest {have} exists"):
        await run(store, request(STAT, "r"), request(WRITE, data=b"a", expected=have))
    assert store.aborted == ["r"]
    assert store.writers[0].closed


async def test_a_malformed_expected_of_the_first_message_is_not_rejected(store: FakeStore) -> None:
    assert len(await run(store, request(STAT, "r", expected="nonsense"))) == 2


async def test_the_writer_is_closed_when_the_client_goes_away(store: FakeStore) -> None:
    async def sent() -> AsyncIterator[api.content.WriteContentRequest]:
        yield request(WRITE, "r", data=b"abc")
        raise RuntimeError("gone")

    stream = write_stream(store, sent())  # type: ignore[arg-type]  # the fake has the methods a stream uses
    with pytest.raises(RuntimeError, match="gone"):
        _ = [response async for response in stream]
    assert store.writers[0].closed
    assert store.ingests["r"] == b"abc"
