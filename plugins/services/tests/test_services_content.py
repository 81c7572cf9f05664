"""The Content service but for Write (facts/core 4)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from aiocontainerd import api
from aiocontainerd.errors import InvalidArgument, NotFound, OutOfRange
from aiocontainerd.interfaces.content import BlobInfo, IngestStatus
from aiocontainerd.serve.content import READ_CHUNK_BYTES, ContentGrpc, read_range
from aiocontainerd.wire.times import time_from_wire

pytestmark = pytest.mark.anyio

DIGEST = "sha256:" + "a" * 64


class FakeReader:
    def __init__(self, data: bytes) -> None:
        self.data, self.closed = data, False

    @property
    def size(self) -> int:
        return len(self.data)

    async def read(self, size: int, offset: int) -> bytes:
        return self.data[offset : offset + size]

    async def close(self) -> None:
        self.closed = True


class FakeStore:
    def __init__(self, data: bytes = b"", blobs: int = 0) -> None:
        self.opened = FakeReader(data)
        self.blobs = blobs
        self.updated: tuple[BlobInfo, Sequence[str]] | None = None
        self.deleted: list[str] = []

    async def reader(self, digest: str) -> FakeReader:
        return self.opened

    async def info(self, digest: str) -> BlobInfo:
        return BlobInfo(digest=digest, size=3, created_at_ns=1, updated_at_ns=2, labels={"k": "v"})

    async def update(self, info: BlobInfo, paths: Sequence[str] = ()) -> BlobInfo:
        self.updated = (info, paths)
        return info

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[BlobInfo]:
        for number in range(self.blobs):
            yield BlobInfo(digest=f"{number}", size=1, created_at_ns=0, updated_at_ns=0)

    async def delete(self, digest: str) -> None:
        self.deleted.append(digest)

    async def status(self, ref: str) -> IngestStatus:
        raise NotFound(f"reference {ref}")


def served(store: FakeStore) -> ContentGrpc:
    return ContentGrpc(store)  # type: ignore[arg-type]  # a fake of the part in use


async def read(data: bytes, offset: int = 0, size: int = 0) -> list[tuple[int, bytes]]:
    request = api.content.ReadContentRequest(digest=DIGEST, offset=offset, size=size)
    store = FakeStore(data)
    answers = [(r.offset, r.data) async for r in served(store).read(request)]
    assert store.opened.closed
    return answers


async def test_read_offsets_count_from_the_first_byte_sent() -> None:
    assert await read(b"abcdef", offset=2) == [(0, b"cdef")]


async def test_read_sends_at_most_a_mebibyte_a_message() -> None:
    answers = await read(b"x" * (2 * READ_CHUNK_BYTES + 1))
    assert [(offset, len(data)) for offset, data in answers] == [
        (0, READ_CHUNK_BYTES),
        (READ_CHUNK_BYTES, READ_CHUNK_BYTES),
        (2 * READ_CHUNK_BYTES, 1),
    ]


async def test_read_of_nothing_sends_no_message() -> None:
    assert await read(b"") == []
    assert await read(b"abc", offset=3) == []


async def test_read_past_the_end_is_out_of_range_and_closes_the_blob() -> None:
    store = FakeStore(b"abc")
    request = api.content.ReadContentRequest(digest=DIGEST, offset=4)
    with pytest.raises(OutOfRange, match="read past object length 3 bytes"):
        await anext(served(store).read(request))
    assert store.opened.closed


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [(-5, 0, (0, 10)), (0, -1, (0, 10)), (4, 3, (4, 3)), (4, 100, (4, 6)), (10, 1, (10, 0))],
)
def test_a_range_is_clamped_to_the_blob(offset: int, size: int, expected: tuple[int, int]) -> None:
    assert read_range(offset, size, 10) == expected


@pytest.mark.parametrize(("blobs", "batches"), [(0, []), (1, [1]), (100, [100]), (250, [100, 100, 50])])
async def test_list_sends_a_hundred_a_message(blobs: int, batches: list[int]) -> None:
    listed = served(FakeStore(blobs=blobs)).list(api.content.ListContentRequest())
    assert [len(message.info) async for message in listed] == batches


async def test_update_without_info_names_the_field() -> None:
    with pytest.raises(InvalidArgument, match="field info must be set"):
        await served(FakeStore()).update(api.content.UpdateRequest())


async def test_update_hands_labels_and_mask_to_the_store() -> None:
    store = FakeStore()
    mask = api.protobuf.FieldMask(paths=["labels.a"])
    info = api.content.Info(digest=DIGEST, size=77, labels={"a": "b"})
    await served(store).update(api.content.UpdateRequest(info=info, update_mask=mask))
    assert store.updated is not None
    assert (store.updated[0].labels, store.updated[1]) == ({"a": "b"}, ("labels.a",))


async def test_info_shows_times_and_labels() -> None:
    response = await served(FakeStore()).info(api.content.InfoRequest(digest=DIGEST))
    assert response.info is not None
    assert (response.info.size, response.info.labels) == (3, {"k": "v"})
    assert time_from_wire(response.info.updated_at) == 2


async def test_status_of_an_unknown_ref_says_what_was_asked() -> None:
    with pytest.raises(NotFound, match=r'^could not get status for ref "x": reference x$'):
        await served(FakeStore()).status(api.content.StatusRequest(ref="x"))


async def test_delete_hands_on_the_digest() -> None:
    store = FakeStore()
    await served(store).delete(api.content.DeleteContentRequest(digest=DIGEST))
    assert store.deleted == [DIGEST]
