"""Group commit, savepoints, snapshots of readers, and what a crash leaves."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from aiocontainerd_metadata_sqlite import schema
from aiocontainerd_metadata_sqlite.engine import Engine

from aiocontainerd.errors import FailedPrecondition, Internal, ReadOnlyFileSystem, ResourceExhausted, Unavailable
from aiocontainerd.sys.mount import Mount, in_thread, mount_all, unmount_all
from aiocontainerd.testing.disks import MemoryDisk

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    engine = Engine(tmp_path / "meta.db")
    await engine.open()
    yield engine
    await engine.aclose()


def insert(name: str, db: sqlite3.Connection) -> str:
    db.execute("INSERT INTO namespaces (name) VALUES (?)", (name,))
    return name


def names(db: sqlite3.Connection) -> list[str]:
    return [row[0] for row in db.execute("SELECT name FROM namespaces ORDER BY name")]


async def test_eight_mutations_at_once_take_one_commit(engine: Engine) -> None:
    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(engine.write, partial(insert, f"n{number}"))
    statistics = engine.statistics()
    assert (statistics.commits, statistics.mutations, statistics.largest_group) == (1, 8, 8)
    assert len(await engine.read(names)) == 8


async def test_mutations_that_come_while_a_group_is_open_join_it_or_the_next(engine: Engine) -> None:
    async def several(task: int) -> None:
        for number in range(10):
            await engine.write(partial(insert, f"n{task}-{number}"))

    async with anyio.create_task_group() as group:
        for task in range(8):
            group.start_soon(several, task)
    assert engine.statistics().mutations == 80
    assert engine.statistics().commits <= 40


async def test_failing_mutation_harms_no_other_of_its_group(engine: Engine) -> None:
    outcomes: dict[str, object] = {}

    def fail_halfway(db: sqlite3.Connection) -> None:
        insert("half", db)
        raise ValueError("no")

    async def run(name: str) -> None:
        try:
            outcomes[name] = await engine.write(fail_halfway if name == "bad" else partial(insert, name))
        except ValueError as error:
            outcomes[name] = str(error)

    async with anyio.create_task_group() as group:
        for name in ("a", "bad", "b"):
            group.start_soon(run, name)
    assert outcomes == {"a": "a", "bad": "no", "b": "b"}
    assert await engine.read(names) == ["a", "b"]
    assert (engine.statistics().commits, engine.statistics().failed) == (1, 1)


async def test_group_whose_commit_fails_answers_every_caller_with_the_failure(engine: Engine) -> None:
    def lose_transaction(db: sqlite3.Connection) -> None:
        db.execute("ROLLBACK")
        raise sqlite3.OperationalError("disk I/O error")

    failures = []

    async def run(function: object) -> None:
        try:
            await engine.write(function)  # type: ignore[arg-type]  # one of two functions of a connection
        except Internal as error:
            failures.append(error.message)

    async with anyio.create_task_group() as group:
        group.start_soon(run, partial(insert, "a"))
        group.start_soon(run, lose_transaction)
    assert failures == [f"metadata database {engine.path}: disk I/O error"] * 2
    assert await engine.read(names) == []
    await engine.write(partial(insert, "later"))
    assert await engine.read(names) == ["later"]


async def test_a_file_system_that_was_read_only_is_written_again_by_the_next_change(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lose_transaction(db: sqlite3.Connection) -> None:
        db.execute("ROLLBACK")
        raise sqlite3.OperationalError("disk I/O error")

    refusal = FailedPrecondition("meta.db: read-only file system")
    with monkeypatch.context() as patch:
        patch.setattr("aiocontainerd_metadata_sqlite.engine.read_only", lambda _path, _what: refusal)
        for _ in range(2):
            with pytest.raises(FailedPrecondition, match="read-only file system"):
                await engine.write(lose_transaction)
    await engine.write(partial(insert, "later"))
    assert await engine.read(names) == ["later"]
    assert caplog.text.count("until it can be written, changes are refused") == 1
    assert caplog.text.count("can be written again") == 1


async def test_reads_that_fail_name_the_database(engine: Engine) -> None:
    with pytest.raises(Internal, match=r"metadata database .*meta\.db: no such table: nowhere"):
        await engine.read(lambda db: db.execute("SELECT 1 FROM nowhere"))
    with pytest.raises(Internal, match="readonly"):
        await engine.read(partial(insert, "a"))


async def test_lone_mutation_waits_for_nobody(engine: Engine) -> None:
    with anyio.fail_after(30):  # a busy disk may take seconds
        await engine.write(partial(insert, "alone"))
    assert engine.statistics().largest_group == 1


async def test_reads_see_everything_acknowledged(engine: Engine) -> None:
    for number in range(20):
        await engine.write(partial(insert, f"n{number:02}"))
        assert (await engine.read(names))[-1] == f"n{number:02}"


async def test_callbacks_run_in_commit_order_before_the_callers(engine: Engine) -> None:
    order: list[str] = []

    async def run(name: str) -> None:
        await engine.write(partial(insert, name), then=lambda done: order.append(f"then {done}"))
        order.append(f"caller {name}")

    async with anyio.create_task_group() as group:
        group.start_soon(run, "a")
        group.start_soon(run, "b")
    assert order == ["then a", "then b", "caller a", "caller b"]


async def test_cancelled_caller_learns_so_after_its_mutation_has_settled(engine: Engine) -> None:
    done: list[str] = []
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: engine.write(partial(insert, "a"), then=done.append))
            await anyio.lowlevel.checkpoint()
            scope.cancel()
    assert done == ["a"]
    assert await engine.read(names) == ["a"]


async def test_closed_engine_refuses_calls_and_closes_twice(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "meta.db")
    await engine.open()
    await engine.aclose()
    await engine.aclose()
    assert "closed" in repr(engine)
    with pytest.raises(Unavailable, match="not open"):
        await engine.write(names)
    with pytest.raises(Unavailable, match="not open"):
        await engine.read(names)


async def test_commits_are_synchronous_unless_told_otherwise(tmp_path: Path) -> None:
    for sync, level in ((True, 2), (False, 0)):
        engine = Engine(tmp_path / f"{sync}.db", sync=sync)
        await engine.open()
        assert await engine.write(lambda db: db.execute("PRAGMA synchronous").fetchone()[0]) == level
        assert await engine.read(lambda db: db.execute("PRAGMA journal_mode").fetchone()[0]) == "wal"
        await engine.aclose()


async def test_database_of_a_newer_version_is_refused_naming_versions_and_path(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()
    engine = Engine(path)
    with pytest.raises(FailedPrecondition) as failure:
        await engine.open()
    await engine.aclose()
    text = failure.value.message
    assert str(path) in text
    assert f"version {schema.VERSION + 1}" in text
    assert f"up to {schema.VERSION}" in text


async def test_migrations_run_from_every_older_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tmp_path / "meta.db")
    await engine.open()
    await engine.write(partial(insert, "kept"))
    await engine.aclose()
    step = "ALTER TABLE namespaces ADD COLUMN note TEXT;"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, step))
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    engine = Engine(tmp_path / "meta.db")
    await engine.open()
    assert await engine.read(lambda db: db.execute("SELECT name, note FROM namespaces").fetchall()) == [("kept", None)]
    await engine.aclose()


async def test_failed_migration_leaves_the_old_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE broken (;"))
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    engine = Engine(tmp_path / "meta.db")
    with pytest.raises(FailedPrecondition, match=r"meta\.db cannot be opened: .*syntax error"):
        await engine.open()
    await engine.aclose()
    connection = sqlite3.connect(tmp_path / "meta.db")
    assert connection.execute("PRAGMA user_version").fetchone() == (0,)
    connection.close()


_WRITES_FOR_EVER = """
import asyncio, sys
from functools import partial
from pathlib import Path
from aiocontainerd_metadata_sqlite.engine import Engine

def insert(name, db):
    db.execute("INSERT INTO namespaces (name) VALUES (?)", (name,))

async def write(engine, task):
    number = 0
    while True:
        await engine.write(partial(insert, f"{task}-{number}"))
        print(f"{task}-{number}", flush=True)
        number += 1

async def main():
    engine = Engine(Path(sys.argv[1]))
    await engine.open()
    await asyncio.gather(*(write(engine, task) for task in range(4)))

asyncio.run(main())
"""


async def test_nothing_acknowledged_is_lost_to_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    acknowledged = await anyio.to_thread.run_sync(_kill_while_writing, path)
    engine = Engine(path)
    await engine.open()
    found = set(await engine.read(names))
    await engine.aclose()
    assert len(acknowledged) >= 100
    assert set(acknowledged) <= found


def _kill_while_writing(path: Path) -> list[str]:
    """Return the names that a writer printed after they were acknowledged, until it was killed."""
    command = [sys.executable, "-c", _WRITES_FOR_EVER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline().strip() for _ in range(100)]
        os.kill(writer.pid, signal.SIGKILL)
        rest = [line.strip() for line in writer.stdout if line.endswith("\n")]
    return lines + rest


async def test_a_database_of_containerd_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    bolt = bytes(16) + b"\xed\xda\x0c\xed" + bytes(4076)
    path.write_bytes(bolt)
    with pytest.raises(FailedPrecondition, match=r"meta\.db was written by another program, probably containerd"):
        await Engine(path).open()
    assert path.read_bytes() == bolt
    assert [p.name for p in tmp_path.iterdir()] == ["meta.db"]


@pytest.mark.root
async def test_on_a_full_disk_only_what_frees_room_passes_until_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounts = [Mount("tmpfs", "tmpfs", options=("size=16m",))]
    await in_thread(mount_all, mounts, str(disk))
    try:
        engine = Engine(disk / "meta.db")
        await engine.open()
        for number in range(200):
            await engine.write(partial(insert, f"n{number}"))
        await anyio.to_thread.run_sync(fill, disk / "filler")
        with pytest.raises(ResourceExhausted, match="no space left on device"):
            await insert_for_ever(engine)
        for number in range(200):
            await engine.write(partial(remove, f"n{number}"), frees=True)
        with pytest.raises(ResourceExhausted):
            await engine.write(partial(insert, "still"))
        assert "n1" not in await engine.read(names)
        (disk / "filler").unlink()
        await engine.write(partial(insert, "again"))
        await engine.aclose()
    finally:
        await in_thread(unmount_all, mounts, str(disk))


def remove(name: str, db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM namespaces WHERE name = ?", (name,))


async def insert_for_ever(engine: Engine) -> None:
    for number in count():
        await engine.write(partial(insert, f"more{number}-{'x' * 1000}"))


def fill(path: Path) -> None:
    with suppress(OSError), open(path, "ab", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass


@pytest.mark.root
async def test_a_database_on_a_read_only_file_system_is_read_with_all_readers_and_migrated(
    disk: MemoryDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = disk.directory / "meta.db"
    writer = Engine(path)
    await writer.open()
    await writer.write(partial(insert, "a"))
    await writer.aclose()
    disk.remount("ro")
    added = "CREATE TABLE added (name TEXT) STRICT;"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, added))
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    engine = Engine(path)
    await engine.open()
    assert engine.is_copy
    found: list[list[str]] = []

    async def read() -> None:
        found.append(await engine.read(names))

    async with anyio.create_task_group() as group:
        for _ in range(9):
            group.start_soon(read)
    assert found == [["a"]] * 9
    assert await engine.read(lambda db: db.execute("SELECT count(*) FROM added").fetchone()) == (0,)
    for frees in (False, True):
        with pytest.raises(ReadOnlyFileSystem, match=rf"{path}: read-only file system"):
            await engine.write(partial(insert, "b"), frees=frees)
    await engine.aclose()
    assert disk.names() == ["meta.db", "meta.db.reserve"]


async def test_a_group_that_changes_nothing_does_not_pass_for_a_writable_file_system(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lose_transaction(db: sqlite3.Connection) -> None:
        db.execute("ROLLBACK")
        raise sqlite3.OperationalError("disk I/O error")

    refused = ReadOnlyFileSystem("meta.db: read-only file system")
    monkeypatch.setattr("aiocontainerd_metadata_sqlite.engine.read_only", lambda _path, _what: refused)
    with pytest.raises(ReadOnlyFileSystem):
        await engine.write(lose_transaction)
    await engine.write(lambda _db: None)
    assert "can be written again" not in caplog.text
