"""Contract of content stores (interfaces/content.py), for a backend and for a namespace's view of one alike.

    pytest --pyargs aiocontainerd.testing.content --target acme.plugin:Blobs

Or subclass `ContentStoreContract` in a test module and give it a fixture `store`: an empty store, in the namespace it
needs. Set `keeps_labels` where the store keeps labels of blobs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from aiocontainerd import kinds
from aiocontainerd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from aiocontainerd.interfaces.content import BlobInfo, ContentStore
from aiocontainerd.testing.contract import Contract, Targeted
from aiocontainerd.testing.target import Bench

DATA = b"a blob of some bytes"
MISSING = "sha256:" + "0" * 64


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """Return the digest of `data`."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


async def ingest(store: ContentStore, ref: str, data: bytes, expected: str = "") -> BlobInfo:
    """Write `data` and commit it."""
    async with await store.writer(ref) as writer:
        await writer.write(data)
        return await writer.commit(len(data), expected)


async def read_all(store: ContentStore, digest: str) -> bytes:
    """Return all bytes of a blob."""
    async with await store.reader(digest) as reader:
        return await reader.read(reader.size, 0)


@pytest.mark.anyio
class ContentStoreContract(Contract):
    """What every content store must do. See the module."""

    keeps_labels: ClassVar[bool] = False

    @pytest.fixture
    def labelled(self) -> bool:
        """Return whether blobs have labels."""
        return self.keeps_labels

    @pytest.fixture
    def has_files(self) -> bool:
        """Return whether a blob is in a file of this side."""
        return True

    async def test_committed_ingest_is_a_blob_and_no_ingest_any_more(self, store: ContentStore) -> None:
        info = await ingest(store, "one", DATA, digest_of(DATA))
        assert (info.digest, info.size) == (digest_of(DATA), len(DATA))
        assert await read_all(store, info.digest) == DATA
        assert (await store.info(info.digest)).size == len(DATA)
        assert await store.statuses() == []
        with pytest.raises(NotFound):
            await store.status("one")

    async def test_large_blob_comes_back_whole(self, store: ContentStore) -> None:
        data = os.urandom(1 << 20) * 3
        info = await ingest(store, "large", data)
        assert info.digest == digest_of(data)
        assert await read_all(store, info.digest) == data

    async def test_empty_blob_can_be_committed(self, store: ContentStore) -> None:
        info = await ingest(store, "empty", b"")
        assert (info.digest, info.size) == (digest_of(b""), 0)
        assert await read_all(store, info.digest) == b""

    async def test_reader_gives_ranges_and_stops_at_the_end(self, store: ContentStore) -> None:
        info = await ingest(store, "one", DATA)
        async with await store.reader(info.digest) as reader:
            assert reader.size == len(DATA)
            assert await reader.read(4, 2) == DATA[2:6]
            assert await reader.read(100, 15) == DATA[15:]
            assert await reader.read(5, len(DATA)) == b""

    async def test_reader_has_a_file_descriptor(self, store: ContentStore, has_files: bool) -> None:
        if not has_files:
            pytest.skip("behind a socket a blob is in no file of this side")
        info = await ingest(store, "one", DATA)
        async with await store.reader(info.digest) as reader:
            assert os.pread(reader.fileno(), 4, 2) == DATA[2:6]

    async def test_missing_blob_is_not_found_by_name(self, store: ContentStore) -> None:
        text = f"content digest {MISSING}"
        with pytest.raises(NotFound, match=text):
            await store.info(MISSING)
        with pytest.raises(NotFound, match=MISSING):
            await store.reader(MISSING)
        with pytest.raises(NotFound, match=MISSING):
            await store.delete(MISSING)

    @pytest.mark.parametrize("bad", ["", "sha256", "sha256:../../etc/passwd", "md5:" + "0" * 32, "sha256:" + "0" * 63])
    async def test_digest_that_is_none_is_an_invalid_argument(self, store: ContentStore, bad: str) -> None:
        with pytest.raises(InvalidArgument):
            await store.info(bad)

    async def test_missing_ingest_is_not_found_by_name(self, store: ContentStore) -> None:
        with pytest.raises(NotFound, match="reference zz"):
            await store.status("zz")
        with pytest.raises(NotFound, match="reference zz"):
            await store.abort("zz")

    async def test_second_writer_of_a_ref_is_unavailable_until_the_first_closes(self, store: ContentStore) -> None:
        async with await store.writer("one"):
            with pytest.raises(Unavailable, match=r"ref .*one locked for .* \(since .*\)"):
                await store.writer("one")
        async with await store.writer("one"):
            pass

    async def test_ingest_is_resumed_where_it_stopped(self, store: ContentStore) -> None:
        async with await store.writer("one", total=len(DATA)) as writer:
            await writer.write(DATA[:7])
        status = await store.status("one")
        assert (status.ref, status.offset, status.total) == ("one", 7, len(DATA))
        assert 0 < status.started_at_ns <= status.updated_at_ns
        async with await store.writer("one", total=len(DATA)) as writer:
            assert writer.offset == 7
            assert writer.digest() == digest_of(DATA[:7])
            await writer.write(DATA[7:])
            assert (await writer.commit(len(DATA), digest_of(DATA))).digest == digest_of(DATA)

    async def test_ingest_told_another_total_starts_over(self, store: ContentStore) -> None:
        async with await store.writer("one", total=100) as writer:
            await writer.write(DATA)
        async with await store.writer("one", total=7) as writer:
            assert writer.offset == 0
            await writer.write(DATA[:7])
            assert (await writer.commit(7)).digest == digest_of(DATA[:7])

    async def test_truncate_starts_over(self, store: ContentStore) -> None:
        async with await store.writer("one") as writer:
            await writer.write(b"garbage that is longer than the data is")
            await writer.truncate()
            assert (writer.offset, writer.digest()) == (0, digest_of(b""))
            await writer.write(DATA)
            await writer.commit(len(DATA), digest_of(DATA))
        assert await read_all(store, digest_of(DATA)) == DATA

    async def test_wrong_size_is_refused_and_the_ingest_kept(self, store: ContentStore) -> None:
        async with await store.writer("one") as writer:
            await writer.write(DATA)
            with pytest.raises(FailedPrecondition, match=f"failed size validation: {len(DATA)} != 5"):
                await writer.commit(5)
        assert (await store.status("one")).offset == len(DATA)

    async def test_wrong_digest_is_refused_and_the_ingest_kept(self, store: ContentStore) -> None:
        text = f"unexpected commit digest {digest_of(DATA)}, expected {MISSING}"
        async with await store.writer("one") as writer:
            await writer.write(DATA)
            with pytest.raises(FailedPrecondition, match=text):
                await writer.commit(0, MISSING)
        assert (await store.status("one")).offset == len(DATA)
        with pytest.raises(NotFound):
            await store.info(MISSING)

    @pytest.mark.parametrize("wrong", [(5, ""), (0, MISSING)], ids=["size", "digest"])
    async def test_ref_is_free_and_goes_on_after_a_failed_commit(
        self, store: ContentStore, wrong: tuple[int, str]
    ) -> None:
        async with await store.writer("one") as writer:
            await writer.write(DATA[:7])
            with pytest.raises(FailedPrecondition):
                await writer.commit(*wrong)
        async with await store.writer("one") as writer:
            assert writer.offset == 7
            await writer.write(DATA[7:])
            await writer.commit(len(DATA), digest_of(DATA))
        assert await read_all(store, digest_of(DATA)) == DATA

    async def test_commit_of_a_present_blob_already_exists_and_ends_the_ingest(self, store: ContentStore) -> None:
        await ingest(store, "one", DATA)
        with pytest.raises(AlreadyExists, match=f"content {digest_of(DATA)}"):
            await ingest(store, "two", DATA)
        assert await store.statuses() == []
        assert await read_all(store, digest_of(DATA)) == DATA

    async def test_writer_that_expects_a_present_blob_already_exists(self, store: ContentStore) -> None:
        await ingest(store, "one", DATA)
        with pytest.raises(AlreadyExists, match=f"content {digest_of(DATA)}"):
            await store.writer("two", expected=digest_of(DATA))
        assert await store.statuses() == []

    @pytest.mark.parametrize("algorithm", ["sha384", "sha512"])
    async def test_blob_is_kept_under_the_algorithm_that_commit_expects(
        self, store: ContentStore, algorithm: str
    ) -> None:
        expected = digest_of(DATA, algorithm)
        assert (await ingest(store, "one", DATA, expected)).digest == expected
        assert await read_all(store, expected) == DATA

    async def test_deleted_blob_is_gone(self, store: ContentStore) -> None:
        info = await ingest(store, "one", DATA)
        await store.delete(info.digest)
        with pytest.raises(NotFound):
            await store.info(info.digest)

    async def test_aborted_ingest_is_gone_and_its_ref_starts_afresh(self, store: ContentStore) -> None:
        async with await store.writer("one") as writer:
            await writer.write(DATA)
        await store.abort("one")
        with pytest.raises(NotFound):
            await store.status("one")
        async with await store.writer("one") as writer:
            assert writer.offset == 0

    async def test_abort_works_while_a_writer_holds_the_ingest(self, store: ContentStore) -> None:
        data = os.urandom(20)  # no other namespace of a daemon has it
        async with await store.writer("one") as writer:
            await writer.write(data)
            await store.abort("one")
            with pytest.raises(NotFound, match="reference"):
                await writer.commit(len(data))
        with pytest.raises(NotFound):
            await store.info(digest_of(data))
        assert (await ingest(store, "one", data)).size == len(data)

    async def test_status_of_an_open_ingest_counts_what_was_written(self, store: ContentStore) -> None:
        async with await store.writer("one", total=50) as writer:
            await writer.write(DATA)
            assert ((await writer.status()).offset, (await writer.status()).total) == (len(DATA), 50)
            assert (await store.status("one")).offset == len(DATA)

    async def test_statuses_are_filtered_by_ref(self, store: ContentStore) -> None:
        for ref in ("layer-b", "layer-a", "config"):
            await (await store.writer(ref)).close()
        assert sorted(s.ref for s in await store.statuses()) == ["config", "layer-a", "layer-b"]
        assert sorted(s.ref for s in await store.statuses(["ref~=^layer"])) == ["layer-a", "layer-b"]

    async def test_walk_is_sorted_and_filtered(self, store: ContentStore) -> None:
        digests = [(await ingest(store, f"r{n}", bytes([n]) * (n + 1))).digest for n in range(5)]
        assert [i.digest async for i in store.walk()] == sorted(digests)
        assert [i.digest async for i in store.walk([f"digest=={digests[2]}"])] == [digests[2]]

    async def test_refs_are_free_text(self, store: ContentStore) -> None:
        for ref in ("../../escape", "a/b/c", "x" * 500, "spaces and ünïcode"):
            async with await store.writer(ref) as writer:
                await writer.write(DATA)
            assert (await store.status(ref)).offset == len(DATA)

    async def test_closing_twice_and_writing_after_close(self, store: ContentStore) -> None:
        writer = await store.writer("one")
        await writer.close()
        await writer.close()
        with pytest.raises(FailedPrecondition):
            await writer.write(DATA)

    async def test_labels_are_kept_or_refused(self, store: ContentStore, labelled: bool) -> None:
        async with await store.writer("one") as writer:
            await writer.write(DATA)
            info = await writer.commit(labels={"a": "1"})
        changed = msgspec.structs.replace(info, labels={"b": "2"})
        if not labelled:
            with pytest.raises(FailedPrecondition):
                await store.update(changed, ["labels"])
            return
        assert (await store.info(info.digest)).labels == {"a": "1"}
        assert (await store.update(changed, ["labels.b"])).labels == {"a": "1", "b": "2"}
        assert (await store.update(changed)).labels == {"b": "2"}
        assert [i.digest async for i in store.walk(["labels.b==2"])] == [info.digest]


class TestContentStore(Targeted, ContentStoreContract):
    """The content store that `--target` names."""

    kind = kinds.CONTENT

    @pytest.fixture
    async def store(self, bench: Bench, tmp_path: Path) -> AsyncIterator[ContentStore]:
        async with bench.open(self.kind, tmp_path / "root", {}) as opened:
            yield opened

    @pytest.fixture
    async def labelled(self, bench: Bench) -> bool:
        return bench.remote or "labels" in await bench.capabilities(self.kind)

    @pytest.fixture
    def has_files(self, bench: Bench) -> bool:
        return not bench.remote
