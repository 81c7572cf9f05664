"""Marks beside data, what they prove, and databases that are another program's or damaged."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from aiocontainerd.errors import NotFound
from aiocontainerd.index import backup, database, repair
from aiocontainerd.index.claim import Standing, doubt
from aiocontainerd.index.database import DamagedDatabaseError, ForeignDatabaseError
from aiocontainerd.index.mark import Mark, MarkFile, is_related, renewal
from aiocontainerd.index.reserve import Reserve, is_full, with_room
from aiocontainerd.sys.mount import Mount, mount_all, unmount_all

ONE, OTHER = "1" * 32, "2" * 32
SIBLING, PAST = "1" * 16 + "3" * 16, "1" * 16 + "4" * 16
INDEX = Standing(identity=ONE, generation=7, met=True, upgraded=False, recognises=True)
WHAT = "test database"


def replaced(standing: Standing, **changes: object) -> Standing:
    return msgspec.structs.replace(standing, **changes)


def test_a_mark_comes_back_as_it_was_written(tmp_path: Path) -> None:
    file = MarkFile(tmp_path / "mark")
    assert file.read() is None
    file.replace(Mark(ONE, 3))
    file.advance(12)
    assert MarkFile(tmp_path / "mark").read() == Mark(ONE, 12)
    assert [path.name for path in tmp_path.iterdir()] == ["mark"]
    file.close()


def test_the_generation_of_a_mark_does_not_go_back(tmp_path: Path) -> None:
    file = MarkFile(tmp_path / "mark")
    file.replace(Mark(ONE, 3))
    file.advance(2)
    assert file.read() == Mark(ONE, 3)
    file.close()
    file.advance(9)
    assert file.read() == Mark(ONE, 3)


def test_a_mark_can_be_opened_and_goes_on(tmp_path: Path) -> None:
    first = MarkFile(tmp_path / "mark")
    first.replace(Mark(ONE, 3))
    first.close()
    second = MarkFile(tmp_path / "mark")
    second.open()
    second.advance(4)
    assert (second.generation, second.read()) == (4, Mark(ONE, 4))
    second.close()
    second.close()


@pytest.mark.parametrize("text", [b"", b"\0" * 90, b"\xff\xfe", b"aiocontainerd index 12 generation 3\n"])
def test_a_mark_of_rubbish_says_nothing(tmp_path: Path, text: bytes) -> None:
    file = MarkFile(tmp_path / "mark")
    file.path.write_bytes(text)
    assert file.read() is None
    with pytest.raises(FileNotFoundError):
        file.open()


def test_the_mark_of_the_index_itself_proves_it() -> None:
    assert doubt(INDEX, Mark(ONE, 7)) == ""
    assert doubt(INDEX, Mark(ONE, 6)) == "", "after a power failure the mark may be behind"
    assert doubt(replaced(INDEX, past=frozenset([PAST])), Mark(PAST, 7)) == "", "it takes a new identity at each start"


def test_the_next_identity_is_another_one_of_the_same_index() -> None:
    assert renewal(ONE) != ONE
    assert is_related(renewal(ONE), ONE)
    assert not is_related(OTHER, ONE)


@pytest.mark.parametrize(
    ("standing", "mark", "cause"),
    [
        (INDEX, Mark(ONE, 8), "it is older than the data (generation 7, the data has 8)"),
        (INDEX, Mark(OTHER, 1), "the data belongs to another index"),
        (replaced(INDEX, generation=0), Mark(OTHER, 1), "it is new and the data is not"),
        (INDEX, Mark(SIBLING, 7), "another copy of it has been in use here since"),
        (INDEX, Mark(SIBLING, 8), "it is older than the data (generation 7, the data has 8)"),
        (INDEX, None, "the mark beside the data is gone"),
        (replaced(INDEX, met=False), None, "it is new and the data is not"),
        (replaced(INDEX, met=False, upgraded=True, recognises=False), None, "it recognises nothing of the data"),
        (replaced(INDEX, met=False, upgraded=True), None, ""),
        (replaced(INDEX, upgraded=True), None, "the mark beside the data is gone"),
    ],
)
def test_what_leaves_an_index_in_doubt(standing: Standing, mark: Mark | None, cause: str) -> None:
    assert doubt(standing, mark) == cause


def made(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("CREATE TABLE t (a TEXT NOT NULL) STRICT")
    db.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 100)
    return db


def test_a_missing_or_empty_file_and_one_of_sqlite_are_not_foreign(tmp_path: Path) -> None:
    path = tmp_path / "i.db"
    database.refuse_foreign(path, WHAT)
    path.touch()
    database.refuse_foreign(path, WHAT)
    made(path).close()
    database.refuse_foreign(path, WHAT)


@pytest.mark.parametrize("offset", [16, 4096 + 16])
def test_a_database_of_containerd_is_foreign(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "i.db"
    path.write_bytes(bytes(offset) + b"\xed\xda\x0c\xed" + bytes(100))
    with pytest.raises(ForeignDatabaseError, match=rf"{WHAT} {path} was written by another program, probably contain"):
        database.refuse_foreign(path, WHAT)


def test_rubbish_is_a_damaged_database_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a b.db"
    path.write_bytes(b"rubbish" * 1000)
    with pytest.raises(DamagedDatabaseError) as refused:
        database.refuse_foreign(path, WHAT)
    assert f"aiocontainerd index restore --empty '{path}' (there is no copy" in str(refused.value)


def test_a_damaged_page_is_found_and_the_newest_copy_named(tmp_path: Path) -> None:
    path = tmp_path / "i.db"
    db = made(path)
    copy = backup.make(db, path)
    database.check(db, path, WHAT)
    db.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\x5a" * 4096)
    with pytest.raises(DamagedDatabaseError, match="damaged: ") as refused:
        database.check(sqlite3.connect(path), path, WHAT)
    assert f"run: aiocontainerd index restore {path} (to the copy of {backup.time_of(copy)})" in str(refused.value)


def test_a_truncated_database_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "i.db"
    made(path).close()
    with path.open("r+b") as file:
        file.truncate(8192)
    with pytest.raises(DamagedDatabaseError):
        database.check(sqlite3.connect(path), path, WHAT)


def test_a_sound_table_without_rowid_is_not_damaged(tmp_path: Path) -> None:
    path = tmp_path / "i.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("CREATE TABLE t (a TEXT NOT NULL, b TEXT NOT NULL, c INTEGER, PRIMARY KEY (b, c)) STRICT, WITHOUT ROWID")
    db.execute("INSERT INTO t VALUES ('a', 'b', 1)")
    database.check(db, path, WHAT)


def directory(path: Path) -> None:
    path.mkdir()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/null")


def lost_link(path: Path) -> None:
    path.symlink_to("/nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("name", "make", "cause"),
    [
        ("meta.db", directory, "it is a directory"),
        ("meta.db", fifo, "it is a fifo"),
        ("meta.db", device, "it is a device"),
        ("meta.db", lost_link, "it is a link to /nowhere, which is missing"),
        ("meta.db", loop, "it is not accessible: .*/meta.db: too many levels of symbolic links"),
        ("meta.db-wal", directory, "its log meta.db-wal is a directory"),
    ],
)
def test_what_is_no_file_is_damaged_and_a_copy_takes_its_place(
    tmp_path: Path, name: str, make: Callable[[Path], None], cause: str
) -> None:
    root = tmp_path / "a %41? b"
    path = root / "plugin" / "meta.db"
    path.parent.mkdir(parents=True)
    db = made(path)
    backup.make(db, path)
    db.close()
    if name == path.name:
        path.unlink()
    make(path.with_name(name))
    with pytest.raises(DamagedDatabaseError, match=f"is damaged: {cause}. .* run: aiocontainerd index restore '"):
        database.refuse_foreign(path, WHAT)
    (found,) = repair.find(root)
    assert "is damaged" in found.problem
    assert repair.restore(path) is not None
    database.refuse_foreign(path, WHAT)
    assert [found.problem for found in repair.find(root)] == [""]


def test_a_copy_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    db = made(path)
    backup.make(db, path)
    db.execute("DELETE FROM t")
    newest = backup.make(db, path)
    db.close()
    newest.write_bytes(newest.read_bytes()[:3000])
    path.write_bytes(b"damaged")
    (older,) = [copy for copy in backup.copies(path) if copy != newest]
    os.utime(older, (0, 0))
    assert "(to the copy of 1970-01-01T00:00:00Z)" in str(database.damaged(path, WHAT, "x"))
    repair.restore(path)
    assert sqlite3.connect(path).execute("SELECT count(*) FROM t").fetchone() == (100,)
    older.write_bytes(b"")
    assert "index restore --empty" in str(database.damaged(path, WHAT, "x"))
    assert "(no copy can be read; it begins empty)" in str(database.damaged(path, WHAT, "x"))
    with pytest.raises(NotFound, match="that can be read; --empty"):
        repair.restore(path)


def indexed(path: Path, identity: str, rows: int) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("CREATE TABLE identity (id TEXT)")
    db.execute("INSERT INTO identity VALUES (?)", (identity,))
    db.execute("CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT)")
    db.executemany("INSERT INTO t VALUES (?)", [(None,)] * rows)
    return db


def rows_of(path: Path) -> int:
    return int(sqlite3.connect(path).execute("SELECT count(*) FROM t").fetchone()[0])


def test_the_copy_of_a_lost_database_outlives_the_copies_of_the_next_ones(tmp_path: Path) -> None:
    path = tmp_path / "root" / "plugin" / "meta.db"
    path.parent.mkdir(parents=True)
    right = indexed(path, ONE, 50)
    backup.make(right, path)
    right.close()
    for identity in (OTHER, SIBLING):
        path.unlink()
        db = indexed(path, identity, 5)
        for _ in range(backup.KEPT + 1):
            backup.set_apart(path, {identity})
            backup.make(db, path)
        db.close()
    assert [rows_of(copy) for copy in backup.copies(path)] == [5, 5, 5]
    assert "stop the daemon and run: aiocontainerd index restore --former " in database.way_back(path)
    assert repair.find(tmp_path / "root")[0].former == backup.time_of(backup.former(path))
    repair.restore(path, former=True)
    assert rows_of(path) == 50
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE kept (name TEXT)")
    repair.release(path)
    assert database.way_back(path) == ""
    with pytest.raises(NotFound, match="that was there before"):
        repair.restore(path, former=True)


def test_the_log_of_a_database_is_moved_aside_with_it(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    db = made(path)
    backup.make(db, path)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("INSERT INTO t VALUES ('last')")
    aside = repair.restore(path)
    db.close()
    assert aside is not None
    assert sqlite3.connect(aside).execute("SELECT count(*) FROM t").fetchone() == (101,)


def test_the_newest_copies_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "i.db"
    db = made(path)
    for number in range(backup.KEPT + 2):
        db.execute("INSERT INTO t VALUES (?)", (str(number),))
        backup.make(db, path)
    found = [sqlite3.connect(copy).execute("SELECT count(*) FROM t").fetchone()[0] for copy in backup.copies(path)]
    assert found == [105, 104, 103]
    assert len(list(tmp_path.iterdir())) == 1 + backup.KEPT


def test_a_copy_that_fails_leaves_the_copies_before(tmp_path: Path) -> None:
    path = tmp_path / "i.db"
    db = made(path)
    backup.make(db, path)
    db.execute("BEGIN")
    with pytest.raises(sqlite3.Error):
        backup.make(db, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["i.db", "i.db.backup-1"]


def test_a_root_shows_its_databases_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("a", "b", "c", "d"):
        (root / name).mkdir(parents=True)
    db = made(root / "a" / "meta.db")
    db.execute("CREATE TABLE kept (name TEXT)")
    db.execute("INSERT INTO kept VALUES ('x')")
    copy = backup.make(db, root / "a" / "meta.db")
    db.close()
    (root / "b" / "metadata.db").write_bytes(b"rubbish")
    (root / "c" / "metadata.db").touch()
    (root / "d" / "metadata.db.backup-1").write_bytes(copy.read_bytes())
    sound, damaged, empty, missing = repair.find(root)
    assert (sound.problem, sound.kept, sound.copies) == ("", 1, (backup.time_of(copy),))
    assert "is damaged" in damaged.problem
    assert (empty.problem, missing.problem) == ("empty", "missing")
    assert missing.path == root / "d" / "metadata.db"


def test_restoring_puts_the_newest_copy_in_place_and_moves_the_rest_aside(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    db = made(path)
    backup.make(db, path)
    db.close()
    path.write_bytes(b"damaged")
    path.with_name("meta.db-wal").write_bytes(b"of the damaged one")
    aside = repair.restore(path)
    assert aside is not None
    assert aside.read_bytes() == b"damaged"
    assert not path.with_name("meta.db-wal").exists()
    assert sqlite3.connect(path).execute("SELECT count(*) FROM t").fetchone() == (100,)


def test_restoring_without_a_copy_changes_nothing_unless_it_shall_begin_empty(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    path.write_bytes(b"damaged")
    with pytest.raises(NotFound, match="--empty"):
        repair.restore(path)
    assert path.read_bytes() == b"damaged"
    assert repair.restore(path, empty=True) is not None
    assert not path.exists()


def test_releasing_forgets_what_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    db = made(path)
    db.execute("CREATE TABLE kept (name TEXT)")
    db.executemany("INSERT INTO kept VALUES (?)", [("x",), ("y",)])
    db.close()
    assert (repair.release(path), repair.release(path)) == (2, 0)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 4 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    mounts = [Mount("tmpfs", "tmpfs", options=("size=4m",))]
    mount_all(mounts, str(path))
    try:
        yield path
    finally:
        unmount_all(mounts, str(path))


def fill(path: Path) -> None:
    with suppress(OSError), open(path / "filler", "ab", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass


@pytest.mark.root
def test_a_reserve_holds_room_on_the_disk_and_gives_it_back(small: Path) -> None:
    reserve = Reserve(small / "i.db", 1 << 20)
    assert reserve.fill()
    assert reserve.path.stat().st_blocks * 512 == (4 << 20) // 32
    fill(small)
    with pytest.raises(OSError, match="No space"):
        (small / "new").write_bytes(bytes(4096))
    assert reserve.release()
    assert not reserve.release()
    (small / "new").write_bytes(bytes(4096))
    assert not reserve.fill()
    assert not reserve.has_room()
    (small / "filler").unlink()
    assert reserve.has_room()
    assert reserve.fill()


@pytest.mark.root
def test_the_log_of_an_open_database_has_room_that_nobody_else_gets(small: Path) -> None:
    path = small / "i.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE t (a TEXT)")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    fill(small)
    with pytest.raises(sqlite3.OperationalError) as refused:
        db.execute("INSERT INTO t VALUES ('x')")
    assert is_full(refused.value)
    (small / "filler").unlink()
    assert Reserve(path, 1 << 20).hold_log()
    fill(small)
    db.execute("INSERT INTO t VALUES ('x')")
    db.close()


@pytest.mark.root
def test_a_step_that_finds_the_disk_full_is_done_again_with_the_reserve(small: Path) -> None:
    reserve = Reserve(small / "i.db", 1 << 20)
    reserve.fill()
    fill(small)

    def step() -> int:
        return (small / "new").write_bytes(bytes(4096))

    assert with_room(reserve, step) == 4096
    with pytest.raises(OSError, match="No such file"):
        with_room(reserve, lambda: (small / "missing" / "new").write_bytes(b"x"))
