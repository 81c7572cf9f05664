"""A database that cannot prove that the backends' objects are its own deletes none that it does not know."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from aiocontainerd_metadata_sqlite import owned
from aiocontainerd_metadata_sqlite import store as store_module
from aiocontainerd_metadata_sqlite.store import SqliteMetadataStore

from aiocontainerd import context
from aiocontainerd.errors import FailedPrecondition, Internal, ReadOnlyFileSystem, Unavailable
from aiocontainerd.index import backup, repair
from aiocontainerd.interfaces.content import BlobInfo
from aiocontainerd.testing.disks import MemoryDisk
from aiocontainerd.testing.fakes import FakeBus, FakeContentStore, FakeSnapshotter, digest_of
from aiocontainerd.testing.metadata import committed, ingest

pytestmark = pytest.mark.anyio
ROOT_LABELS = {"containerd.io/gc.root": "any"}


class Root:
    """A database over backends that outlive it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "meta.db"
        self.blobs, self.layers = FakeContentStore(), FakeSnapshotter()
        self.others: dict[str, FakeSnapshotter] = {}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[SqliteMetadataStore]:
        snapshotters = {"fake": self.layers, **self.others}
        store = SqliteMetadataStore(self.path, content=self.blobs, snapshotters=snapshotters, bus=FakeBus(), sync=False)
        await store.open()
        try:
            with context.use(namespace="t"):
                yield store
        finally:
            await store.aclose()

    def names(self) -> set[str]:
        """Return blobs, ingests and snapshots, the latter without numbers."""
        snapshots = {name.rpartition("/")[2] for name in self.layers.infos}
        return {*self.blobs.blobs, *self.blobs.ingests, *snapshots}

    async def put(self, data: bytes) -> None:
        """Make a blob that no record knows."""
        async with await self.blobs.writer("crash") as writer:
            await writer.write(data)
            await writer.commit()

    def lose(self) -> None:
        for path in self.path.parent.glob("meta.db*"):
            path.unlink()


@pytest.fixture
async def root(tmp_path: Path) -> Root:
    """Return a root with a blob, an ingest and a chain of snapshots."""
    made = Root(tmp_path)
    async with made.open() as store:
        await fill(store)
        await store.collect()
    return made


async def fill(store: SqliteMetadataStore) -> None:
    await ingest(store, b"blob", ROOT_LABELS)
    await committed(store, "base", labels=ROOT_LABELS)
    await committed(store, "top", "base", labels=ROOT_LABELS)
    async with await store.content.writer("half") as writer:
        await writer.write(b"half")


def lose(root: Root) -> None:
    root.lose()


def empty(root: Root) -> None:
    root.lose()
    root.path.touch()


async def test_a_database_deletes_what_a_crash_left(root: Root) -> None:
    before = root.names()
    async with root.open() as store:
        await root.put(b"crash")
        await root.layers.prepare("t/7/crash")
        await store.collect()
        assert store.ownership.kept == {}
    assert root.names() == before


@pytest.mark.parametrize("damage", [lose, empty])
async def test_a_lost_database_keeps_all_and_collects_what_is_new(
    root: Root, damage: Callable[[Root], None], caplog: pytest.LogCaptureFixture
) -> None:
    before = root.names()
    damage(root)
    for _ in range(2):
        async with root.open() as store:
            assert store.ownership.kept == {"content": 1, "ingests": 1, "snapshots/fake": 2}
            await ingest(store, b"new")
            await store.snapshotter("fake").prepare("new")
            await store.collect()
            assert root.names() == before
    told = [message for message in caplog.messages if "does not know" in message]
    assert len(told) == 2
    assert "does not know 2 of 2 objects in content, and keeps them: it is new and the data is not" in told[0]


async def test_numbers_that_a_lost_database_gave_out_are_not_given_out_again(root: Root) -> None:
    highest = max(map(owned.number_of, root.layers.infos))
    lose(root)
    async with root.open() as store:
        await store.snapshotter("fake").prepare("base")
    assert sorted(map(owned.number_of, root.layers.infos))[-1] > highest


async def test_an_older_database_keeps_all_in_every_backend(root: Root, caplog: pytest.LogCaptureFixture) -> None:
    older = root.path.with_name("older")
    shutil.copy(root.path, older)
    async with root.open() as store:
        await ingest(store, b"later", ROOT_LABELS)
        await committed(store, "later", labels=ROOT_LABELS)
    before = root.names()
    shutil.copy(older, root.path)
    async with root.open() as store:
        await store.collect()
        assert store.ownership.kept == {"content": 1, "snapshots/fake": 1}
    assert root.names() == before
    assert "it is older than the data" in caplog.text


async def test_a_newer_database_put_back_keeps_what_was_made_meanwhile(root: Root) -> None:
    newer, older = root.path.with_name("newer"), root.path.with_name("older")
    shutil.copy(root.path, older)
    async with root.open() as store:
        await committed(store, "later", labels=ROOT_LABELS)
    shutil.copy(root.path, newer)
    shutil.copy(older, root.path)
    async with root.open() as store:
        await committed(store, "meanwhile", labels=ROOT_LABELS)
    shutil.copy(newer, root.path)
    async with root.open() as store:
        await store.collect()
    assert {"later", "meanwhile"} <= root.names()


async def test_a_crash_between_the_claims_of_two_backends_proves_nothing(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = root.path.with_name("older")
    shutil.copy(root.path, older)
    async with root.open() as store:
        await ingest(store, b"later", ROOT_LABELS)
        await committed(store, "later", labels=ROOT_LABELS)
    before = root.names()
    shutil.copy(older, root.path)

    def _crash(*_args: object) -> None:
        raise RuntimeError("crash")

    with monkeypatch.context() as patched:
        async with root.open() as store:
            pass
        shutil.copy(older, root.path)
        patched.setattr(owned, "_write_mark", _crash)
        async with root.open() as store:
            assert not store.ownership.is_claimed("content")
            await store.collect()
    async with root.open() as store:
        await store.collect()
    assert root.names() == before


async def test_a_database_of_another_root_keeps_all(root: Root, tmp_path: Path) -> None:
    other = Root(tmp_path / "other")
    other.path.parent.mkdir()
    async with other.open() as store:
        await committed(store, "else")
    before = root.names()
    shutil.copy(other.path, root.path)
    async with root.open() as store:
        await store.collect()
    assert root.names() >= before


async def test_a_mark_that_is_gone_keeps_what_is_unknown_and_is_made_again(root: Root) -> None:
    await root.put(b"unknown")
    (root.path.parent / "marks" / "content").unlink()
    async with root.open() as store:
        await store.collect()
        assert store.ownership.kept == {"content": 1}
        assert store.ownership.is_claimed("content")
    await root.put(b"crash")
    async with root.open() as store:
        await store.collect()
    assert digest_of(b"unknown") in root.blobs.blobs
    assert digest_of(b"crash") not in root.blobs.blobs


async def test_a_snapshotter_that_is_new_to_the_database_keeps_what_it_has(root: Root) -> None:
    root.others["old"] = FakeSnapshotter()
    await root.others["old"].prepare("x/1/somebodys")
    async with root.open() as store:
        await store.collect()
        assert store.ownership.kept == {"snapshots/old": 1}
    assert list(root.others["old"].infos) == ["x/1/somebodys"]


async def fork(root: Root) -> Root:
    """Return a copy of a root."""
    other = Root(root.path.parent / "copy")
    await anyio.to_thread.run_sync(shutil.copytree, root.path.parent, other.path.parent)
    for digest, blob in root.blobs.blobs.items():
        other.blobs.blobs[digest] = blob
    other.layers.infos.update(root.layers.infos)
    return other


async def test_of_two_roots_that_were_one_neither_has_the_index_of_the_other(
    root: Root, caplog: pytest.LogCaptureFixture
) -> None:
    other = await fork(root)
    async with root.open() as store:
        await ingest(store, b"here", ROOT_LABELS)
        await committed(store, "here", labels=ROOT_LABELS)
    async with other.open() as store:
        for number in range(9):
            await ingest(store, f"there {number}".encode(), ROOT_LABELS)
    before = root.names()
    shutil.copy(other.path, root.path)
    async with root.open() as store:
        await store.collect()
        assert store.ownership.kept == {"content": 1, "snapshots/fake": 1}
    assert root.names() == before
    assert "another copy of it has been in use here since" in caplog.text


async def test_what_only_a_lease_holds_is_kept_in_doubt(root: Root) -> None:
    async with root.open() as store:
        await store.leases.create("pull", {})
        with context.use(lease="pull"):
            await ingest(store, b"pulled")
            await committed(store, "unpacked")
    older = root.path.with_name("older")
    shutil.copy(root.path, older)
    async with root.open() as store:
        await ingest(store, b"later", ROOT_LABELS)
    before = root.names()
    shutil.copy(older, root.path)
    async with root.open() as store:
        await store.leases.delete("pull")
        await store.collect()
        assert store.ownership.kept == {"content": 2, "snapshots/fake": 1}
    assert root.names() == before


async def test_what_is_brought_while_the_database_is_closed_is_kept(
    root: Root, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root.blobs.index_mark = tmp_path / "blobs.mark"  # type: ignore[attr-defined]  # it is a backend on this disk now
    async with root.open() as store:
        await store.collect()
        await root.put(b"left by the stop")
    await root.put(b"brought")
    for _ in range(2):
        async with root.open() as store:
            await store.collect()
            assert store.ownership.kept == {"content": 1}
    assert digest_of(b"brought") in root.blobs.blobs
    assert digest_of(b"left by the stop") not in root.blobs.blobs
    assert "does not know 1 of 4 objects in content, and keeps them: it came from elsewhere" in caplog.text


async def test_after_a_kill_what_is_unknown_is_what_the_crash_left(root: Root, tmp_path: Path) -> None:
    root.blobs.index_mark = tmp_path / "blobs.mark"  # type: ignore[attr-defined]  # as above
    async with root.open():
        killed = root.path.with_name("killed")
        shutil.copy(root.path, killed)
        shutil.copy(f"{root.path}-wal", f"{killed}-wal")
        await root.put(b"crash")
    for ending in ("", "-wal"):
        shutil.copy(f"{killed}{ending}", f"{root.path}{ending}")
    async with root.open() as store:
        await store.collect()
    assert digest_of(b"crash") not in root.blobs.blobs


async def test_a_backend_that_cannot_be_listed_at_the_stop_does_not_hold_it_up(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.blobs.index_mark = tmp_path / "blobs.mark"  # type: ignore[attr-defined]  # as above

    async def hangs(*_args: object) -> AsyncIterator[BlobInfo]:
        await anyio.sleep_forever()
        yield BlobInfo(digest="", size=0, created_at_ns=0, updated_at_ns=0)

    monkeypatch.setattr(owned, "CLOSE_LIMIT_S", 0.01)
    with monkeypatch.context() as patched:
        async with root.open():
            patched.setattr(FakeContentStore, "walk", hangs)
            await root.put(b"crash")
    async with root.open() as store:
        await store.collect()
    assert digest_of(b"crash") not in root.blobs.blobs


@pytest.mark.parametrize(
    ("change", "cause"),
    [("DROP TABLE kept", "it has no table kept"), ("DELETE FROM identity", "it has no identity")],
)
async def test_a_database_without_its_tables_is_damaged(root: Root, change: str, cause: str) -> None:
    with sqlite3.connect(root.path) as db:
        db.execute(change)
    db.close()
    with pytest.raises(FailedPrecondition, match=f"is damaged: {cause}. .* aiocontainerd index restore "):
        async with root.open():
            pass
    databases = await anyio.to_thread.run_sync(repair.find, root.path.parent.parent)
    assert [cause in found.problem for found in databases if found.path == root.path] == [True]


async def test_a_database_of_another_program_is_refused_and_not_touched(root: Root) -> None:
    lose(root)
    with sqlite3.connect(root.path) as db:
        db.execute("CREATE TABLE bookmarks (id)")
    db.close()
    with pytest.raises(FailedPrecondition, match="was written by another program"):
        async with root.open():
            pass
    with sqlite3.connect(root.path) as db:
        assert db.execute("SELECT name FROM sqlite_schema").fetchall() == [("bookmarks",)]
    db.close()


def downgrade(root: Root) -> None:
    with sqlite3.connect(root.path) as db:
        for table in ("identity", "owned", "kept"):
            db.execute(f"DROP TABLE {table}")
        db.execute("PRAGMA user_version = 1")
    db.close()
    shutil.rmtree(root.path.parent / "marks")


async def test_an_upgrade_goes_on_deleting_what_a_crash_left(root: Root) -> None:
    before = root.names()
    downgrade(root)
    await root.put(b"crash")
    await root.layers.prepare("t/7/crash")
    async with root.open() as store:
        await store.collect()
        assert store.ownership.kept == {}
    assert root.names() == before


async def test_an_upgrade_over_data_with_numbers_beyond_its_own_keeps_all(root: Root) -> None:
    downgrade(root)
    await root.layers.prepare("t/5000/newer")
    async with root.open() as store:
        await store.collect()
    assert "newer" in root.names()


async def test_what_gets_a_record_again_is_no_longer_kept(root: Root) -> None:
    lose(root)
    async with root.open() as store:
        await ingest(store, b"blob", ROOT_LABELS)
        await store.collect()
        assert "content" not in store.ownership.kept
        await store.content.delete(digest_of(b"blob"))
        await store.collect()
    assert digest_of(b"blob") not in root.blobs.blobs


async def test_a_backend_that_cannot_be_listed_is_claimed_before_anything_is_deleted(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(root)
    before = root.names()

    async def fails(*_args: object) -> AsyncIterator[BlobInfo]:
        raise Unavailable("no connection")
        yield

    with monkeypatch.context() as patched:
        patched.setattr(FakeContentStore, "walk", fails)
        async with root.open() as store:
            await store.collect()
            assert not store.ownership.is_claimed("content")
            patched.undo()
            await store.collect()
            assert store.ownership.kept["content"] == 1
    assert root.names() == before


async def test_backends_that_could_not_be_listed_at_the_start_are_claimed_before_anything_is_made_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Root(tmp_path)

    async def fails(*_args: object) -> AsyncIterator[object]:
        raise Unavailable("no connection")
        yield

    with monkeypatch.context() as patched:
        for kind in (FakeContentStore, FakeSnapshotter):
            patched.setattr(kind, "walk", fails)
        async with root.open() as store:
            patched.undo()
            await fill(store)
            for name in ("top", "base"):
                await store.snapshotter("fake").remove(name)
            await store.content.delete(digest_of(b"blob"))
            await store.content.abort("half")
            await store.collect()
            assert (root.names(), store.ownership.kept) == (set(), {})


async def test_a_snapshotter_that_goes_and_comes_back_is_proven_again(root: Root) -> None:
    async with root.open() as store:
        store.follow("fake", None)
        await ingest(store, b"meanwhile")
        store.follow("fake", root.layers)
        await root.layers.prepare("t/7/crash")
        await store.collect()
        assert store.ownership.kept == {}
        assert "crash" not in root.names()


async def test_a_file_that_was_replaced_while_it_is_open_is_not_read(root: Root) -> None:
    async with root.open() as store:
        root.path.rename(root.path.with_name("moved"))
        root.path.touch()
        with pytest.raises(Internal, match="was replaced while the daemon runs"):
            await anyio.to_thread.run_sync(store.engine._connected_reader)


async def copies(root: Root) -> list[Path]:
    return await anyio.to_thread.run_sync(backup.copies, root.path)


async def test_the_database_is_copied_when_it_closes_if_it_changed(root: Root) -> None:
    first = await copies(root)
    assert len(first) == 1
    async with root.open():
        pass
    assert await copies(root) == first
    async with root.open() as store:
        await ingest(store, b"new", ROOT_LABELS)
    assert len(await copies(root)) == 2


async def test_the_database_is_copied_while_it_is_open(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "FIRST_COPY_S", 0.0)
    for copy in await copies(root):
        copy.unlink()
    async with root.open() as store, anyio.create_task_group() as group:
        await ingest(store, b"new", ROOT_LABELS)
        group.start_soon(store.keep_copies, 3600.0)
        while not await copies(root):  # noqa: ASYNC110 - the copy sets no event
            await anyio.sleep(0.01)
        group.cancel_scope.cancel()


async def test_a_copy_put_back_keeps_what_is_newer(root: Root) -> None:
    async with root.open() as store:
        await ingest(store, b"newer", ROOT_LABELS)
    shutil.copy((await copies(root))[1], root.path)
    async with root.open() as store:
        await store.collect()
        assert store.ownership.kept == {"content": 1}
    assert digest_of(b"newer") in root.blobs.blobs


@pytest.mark.root
async def test_a_read_only_root_is_listed_and_nothing_in_it_is_written_or_deleted(
    disk: MemoryDisk, caplog: pytest.LogCaptureFixture
) -> None:
    root = Root(disk.directory)
    async with root.open() as store:
        await fill(store)
        await store.collect()
    root.lose()
    async with root.open() as store:
        await ingest(store, b"new", ROOT_LABELS)
        kept = dict(store.ownership.kept)
        await root.put(b"of nobody")
    assert kept
    names, files = root.names(), disk.names()
    caplog.clear()
    disk.remount("ro")
    async with root.open() as store:
        assert [info.digest async for info in store.content.walk()] == [digest_of(b"new")]
        assert store.ownership.kept == kept
        with pytest.raises(ReadOnlyFileSystem, match=f"metadata database {root.path}: read-only file system"):
            await store.namespaces.create("other", {})
        with pytest.raises(ReadOnlyFileSystem, match=str(root.path)):
            await store.snapshotter("fake").prepare("s")
        for _ in range(2):
            assert (await store.collect()).removed == {}
        await store.engine.copy()
    assert (root.names(), disk.names(), caplog.messages) == (names, files, [])
    disk.remount("rw")
    async with root.open() as store:
        await store.collect()
        assert store.ownership.kept == kept
    assert digest_of(b"of nobody") not in root.names()
