"""The local store: the contract, and what is on disk."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import stat
import threading
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from aiocontainerd_content_local import layout
from aiocontainerd_content_local import writer as writer_module
from aiocontainerd_content_local.store import LocalStore

from aiocontainerd import timestamps
from aiocontainerd.errors import AlreadyExists, DataLoss, NotFound, ResourceExhausted, Unavailable, to_status
from aiocontainerd.testing.content import DATA, ContentStoreContract, digest_of, ingest, read_all
from aiocontainerd.testing.disks import MemoryDisk


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path, lock_wait_s=0.05)


class TestContract(ContentStoreContract):
    """The suite of aiocontainerd.testing.content."""


def _ingest_dir(root: Path, ref: str) -> Path:
    return root / "ingest" / hashlib.sha256(ref.encode()).hexdigest()


@pytest.mark.anyio
async def test_ingest_is_laid_out_as_containerd_does(store: LocalStore, tmp_path: Path) -> None:
    async with await store.writer("default/1/layer", total=99) as writer:
        await writer.write(DATA)
    directory = _ingest_dir(tmp_path, "default/1/layer")
    assert sorted(os.listdir(directory)) == ["data", "ref", "startedat", "total", "updatedat"]
    assert (directory / "ref").read_text() == "default/1/layer"
    assert (directory / "total").read_text() == "99"
    assert (directory / "data").read_bytes() == DATA
    assert timestamps.parse_rfc3339((directory / "startedat").read_text()) > 0


@pytest.mark.anyio
async def test_blob_is_read_only_and_dated_by_its_commit(store: LocalStore, tmp_path: Path) -> None:
    before = timestamps.now_ns()
    info = await ingest(store, "one", DATA)
    path = tmp_path / "blobs" / "sha256" / info.digest.removeprefix("sha256:")
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert before <= path.stat().st_mtime_ns == info.created_at_ns
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert os.listdir(tmp_path / "ingest") == []


@pytest.mark.anyio
async def test_opening_a_store_keeps_everything(store: LocalStore, tmp_path: Path) -> None:
    async with await store.writer("half") as writer:
        await writer.write(DATA)
    broken = tmp_path / "ingest" / "broken"
    broken.mkdir()
    again = LocalStore(tmp_path)
    assert [s.ref for s in await again.statuses()] == ["half"]
    assert broken.is_dir()


@pytest.mark.anyio
async def test_ingest_of_another_daemon_is_resumed_after_its_crash(tmp_path: Path) -> None:
    crashed = await LocalStore(tmp_path).writer("one")
    await crashed.write(DATA[:5])
    async with await LocalStore(tmp_path).writer("one") as writer:
        assert writer.offset == 5
    await crashed.close()


@pytest.mark.anyio
async def test_store_whose_root_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "root")
    assert [info async for info in store.walk()] == []
    assert await store.statuses() == []
    for missing in (store.abort("one"), store.status("one"), store.delete(digest_of(DATA))):
        with pytest.raises(NotFound):
            await missing


@pytest.mark.anyio
async def test_broken_ingest_record_is_named_and_its_ref_usable(store: LocalStore, tmp_path: Path) -> None:
    await (await store.writer("one")).close()
    (_ingest_dir(tmp_path, "one") / "startedat").write_text("yesterday")
    with pytest.raises(DataLoss, match="reference one: 'yesterday'"):
        await store.status("one")
    assert (await ingest(store, "one", DATA)).size == len(DATA)


@pytest.mark.anyio
async def test_full_disk_names_the_ref_and_keeps_what_was_written(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes, offset: int) -> None:
        os.pwrite(fd, data[:3], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with await store.writer("one") as writer:
        await writer.write(DATA)
        with monkeypatch.context() as patch:
            patch.setattr(writer_module, "_write_all", full)
            with pytest.raises(ResourceExhausted, match=f"ref one at offset {len(DATA)}: No space left on device"):
                await writer.write(b"more")
    assert (_ingest_dir(tmp_path, "one") / "data").read_bytes() == DATA
    async with await store.writer("one") as writer:
        assert (await writer.commit(len(DATA), digest_of(DATA))).size == len(DATA)


@pytest.mark.anyio
async def test_a_disk_that_becomes_read_only_under_a_writer_is_told_with_the_path(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_args: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    async with await store.writer("one") as writer:
        await writer.write(DATA)
        with monkeypatch.context() as patch:
            for name in ("ftruncate", "pwrite", "fchmod"):
                patch.setattr(os, name, refused)
            for call in (writer.write(b"more"), writer.truncate(), writer.commit()):
                with pytest.raises(OSError, match="Read-only") as failed:
                    await call
                assert to_status(failed.value) == (9, f"{_ingest_dir(tmp_path, 'one') / 'data'}: read-only file system")
    async with await store.writer("one") as writer:
        assert (await writer.commit(len(DATA), digest_of(DATA))).size == len(DATA)


@pytest.mark.anyio
@pytest.mark.root
async def test_a_read_only_store_is_read_and_changes_name_the_path(disk: MemoryDisk) -> None:
    store = LocalStore(disk.directory)
    await ingest(store, "one", DATA)
    store.index_mark.touch()
    (disk.directory / "ingest" / "unreadable").mkdir(parents=True)
    before = disk.names()
    disk.remount("ro")
    await store.remove_unreadable()
    assert [info.digest async for info in store.walk()] == [digest_of(DATA)]
    async with await store.reader(digest_of(DATA)) as reader:
        assert await reader.read(len(DATA), 0) == DATA
    for call in (store.writer("two"), store.delete(digest_of(DATA)), store.abort("one")):
        with pytest.raises(OSError, match="Read-only") as failed:
            await call
        code, text = to_status(failed.value)
        assert code == 9
        assert text.startswith(f"{disk.directory}/")
        assert text.endswith(": read-only file system")
    assert store.statistics() == {"open_ingests": 0}
    assert disk.names() == before


@pytest.mark.anyio
async def test_failed_open_leaves_no_lock(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "ingest").write_text("in the way")
    with pytest.raises(OSError, match="ingest"):
        await store.writer("one")
    assert store.statistics() == {"open_ingests": 0}


@pytest.mark.anyio
async def test_ingest_that_is_aborted_while_it_is_opened_is_not_found(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_text = layout._replace_text

    def aborted(path: Path, text: str) -> None:
        layout.remove_ingest(path.parent, "one")
        replace_text(path, text)

    monkeypatch.setattr(layout, "_replace_text", aborted)
    with pytest.raises(NotFound, match=r"\Areference one\Z"):
        await store.writer("one")
    monkeypatch.undo()
    assert store.statistics() == {"open_ingests": 0}
    assert os.listdir(tmp_path / "ingest") == []
    await (await store.writer("one")).close()


@pytest.mark.anyio
async def test_writer_waits_a_moment_for_one_that_is_closing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, lock_wait_s=5)
    first = await store.writer("one")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first.close)
        await (await store.writer("one")).close()
    assert store.statistics() == {"open_ingests": 0}


@pytest.mark.anyio
async def test_only_one_of_many_writers_gets_the_ref(store: LocalStore) -> None:
    outcomes: list[str] = []

    async def attempt() -> None:
        try:
            outcomes.append(repr(await store.writer("one")))
        except Unavailable:
            outcomes.append("locked")

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(attempt)
    assert sorted(outcomes) == ["<LocalWriter one at 0>", *["locked"] * 7]


@pytest.mark.anyio
async def test_same_blob_from_many_refs_at_once_is_stored_once(store: LocalStore) -> None:
    data = b"x" * 200_000
    duplicates = []

    async def put(ref: str) -> None:
        try:
            await ingest(store, ref, data)
        except AlreadyExists:
            duplicates.append(ref)

    async with anyio.create_task_group() as tasks:
        for n in range(6):
            tasks.start_soon(put, f"ref{n}")
    assert len(duplicates) <= 5
    assert await read_all(store, digest_of(data)) == data
    assert await store.statuses() == []


@pytest.mark.anyio
async def test_open_reader_survives_deletion(store: LocalStore) -> None:
    info = await ingest(store, "one", DATA)
    async with await store.reader(info.digest) as reader:
        await store.delete(info.digest)
        assert await reader.read(100, 0) == DATA


@pytest.mark.anyio
async def test_writer_closed_in_a_cancelled_call_gives_its_file_back(store: LocalStore, tmp_path: Path) -> None:
    with anyio.CancelScope() as scope:
        writer = await store.writer("one")
        await writer.write(DATA)
        scope.cancel()
        await writer.close()
    assert store.statistics() == {"open_ingests": 0}
    assert not {path for path in _open_files() if path.startswith(str(tmp_path))}


def _open_files() -> list[str]:
    found = []
    for entry in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{entry}"))
    return found


@pytest.mark.anyio
async def test_writer_cancelled_in_a_thread_is_closed_after_the_thread(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go = threading.Event(), threading.Event()

    def slow(fd: int, data: bytes, offset: int) -> None:
        started.set()
        go.wait(10)
        os.pwrite(fd, data, offset)

    async def write() -> None:
        async with await store.writer("one") as writer:
            await writer.write(b"x" * 100_000)

    monkeypatch.setattr(writer_module, "_write_all", slow)
    task = asyncio.ensure_future(write())
    await anyio.to_thread.run_sync(started.wait)
    task.cancel()
    await anyio.sleep(0.02)
    assert store.statistics() == {"open_ingests": 1}
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.statistics() == {"open_ingests": 0}
    assert (await store.status("one")).offset == 100_000


@pytest.mark.anyio
async def test_a_damaged_blob_is_replaced_by_its_whole_bytes(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    digest = (await ingest(store, "one", DATA)).digest
    (path,) = tmp_path.glob("blobs/sha256/*")
    path.chmod(0o644)
    path.write_bytes(DATA[:3])
    await ingest(store, "two", DATA)
    assert path.read_bytes() == DATA
    with pytest.raises(AlreadyExists):
        await ingest(store, "three", DATA)
    assert (await store.info(digest)).size == len(DATA)
