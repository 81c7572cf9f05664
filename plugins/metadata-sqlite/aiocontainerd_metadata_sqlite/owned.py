"""Which objects of each backend this database may delete (`aiocontainerd/index`).

A backend is *claimed* before anything in it is deleted: its mark is compared with the database. If the database cannot
prove that the objects are its own, it keeps those that it does not know, for good (table `kept`), and claims the rest.
So a lost or older database goes on, with new objects collected as ever and the others counted and told. It also keeps
what it knows but would collect soon: a newer database may have it in use.

A database takes a new identity each time it is opened, and remembers those that it had (table `past`). So of two
databases that were one, neither passes for the index of what the other has made since: a copy of a root, or an older
database that was in use before the newer one was put back. Backends are judged by what the database was when it was
opened.

A database that was closed knows what was in its backends then. What is there beyond that when it is opened is not left
by a crash: somebody brought it, such as by copying another root over this one. That is kept too.

A backend has its mark where its attribute `index_mark` says. One without, such as a proxy, has it beside the database.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any as Anything

import anyio
import anyio.to_thread
import msgspec

from aiocontainerd.errors import text_of
from aiocontainerd.index.claim import BROUGHT, Standing, doubt
from aiocontainerd.index.database import way_back
from aiocontainerd.index.mark import Mark, MarkFile, renewal
from aiocontainerd_metadata_sqlite import resources
from aiocontainerd_metadata_sqlite.collect import recorded
from aiocontainerd_metadata_sqlite.engine import Engine
from aiocontainerd_metadata_sqlite.references import CONTENT, INGESTS
from aiocontainerd_metadata_sqlite.resources import Connection

log = logging.getLogger(__name__)

HELP = 'docs/plugins/operations.md, "An index that is lost"'
_PAST = 1000
"""Identities that are remembered, the newest of them."""
CLOSE_LIMIT_S = 5.0
"""For listing the backends when the database is closed; one that takes longer counts as after a crash."""
Names = Mapping[str, frozenset[str]]
"""Names of objects by type: `content` and `ingests` for a content store, `snapshots/<name>` for a snapshotter."""


class Backend(msgspec.Struct, frozen=True):
    """A backend to claim. `present` lists the names of all its objects."""

    type: str
    instance: Anything
    present: Callable[[], Awaitable[Names]]


class _Opened(msgspec.Struct, frozen=True):
    """What a database was when it was opened. `closed` are the backends that it saw when it was closed."""

    identity: str
    past: frozenset[str]
    upgraded: bool
    generation: int
    closed: frozenset[str]
    leftovers: Mapping[str, frozenset[str]]


class Ownership:
    """The claims of one database. `advance` is for the writer of the engine, the rest for the event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._marks: dict[str, MarkFile] = {}
        self._backends: dict[str, Backend] = {}
        self._open: tuple[MarkFile, ...] = ()
        self._left: list[MarkFile] = []
        self._turn = anyio.Lock()
        self._opened: _Opened | None = None
        self._identity = ""
        self._reached: dict[str, int] = {}
        self.kept: dict[str, int] = {}
        """How many objects of each type are kept although no record knows them."""
        self.changed: Callable[[], object] = lambda: None
        """Is called when `kept` changed."""

    def __repr__(self) -> str:
        return f"<Ownership of {sorted(self._marks)}, kept: {self.kept}>"

    async def claim(self, backend: Backend) -> None:
        """Claim a backend, if it is not claimed yet. Raise what listing it, or writing the claim down, raises."""
        async with self._turn:
            if backend.type in self._marks:
                return
            opened = self._opened or await self._open_anew()
            mark = MarkFile(self._place(backend))
            found = await anyio.to_thread.run_sync(mark.read)
            standing = await self._standing(opened, backend.type)
            told = False
            if found is None or doubt(standing, found) or self._was_closed(backend):
                told = await self._claim_in_doubt(backend, mark, found, standing)
            elif found.identity == self._identity:
                await anyio.to_thread.run_sync(mark.open)
            else:
                await anyio.to_thread.run_sync(_renew_mark, mark, Mark(self._identity, found.generation))
            self._marks[backend.type] = mark
            self._backends[backend.type] = backend
            self._open = tuple(self._marks.values())
            await self._engine.write(lambda _db: None, frees=True)  # what was committed meanwhile reaches the new mark
            await self.count(backend.type)
            if not told:
                await self._tell_kept(backend.type)

    async def _open_anew(self) -> _Opened:
        """Take a new identity, and return what the database was before."""
        opened, identity = await self._engine.write(_renewed, frees=True)
        self._opened, self._identity = opened, identity
        return opened

    def forget(self, resource_type: str) -> None:
        """Give up the claim of a backend that has gone. It is claimed again when it comes back."""
        mark = self._marks.pop(resource_type, None)
        self._backends.pop(resource_type, None)
        self._open = tuple(self._marks.values())
        if mark is not None:
            self._left.append(mark)
            self._reached[resource_type] = mark.generation

    def is_claimed(self, resource_type: str) -> bool:
        """Return whether the backend is claimed."""
        return resource_type in self._marks

    def advance(self, generation: int) -> None:
        """Note in every mark that the database has reached a generation. Called after the commit, by its thread."""
        for mark in self._open:
            try:
                mark.advance(generation)
            except OSError as error:
                log.error(
                    "the mark %s cannot be written, so an older index could pass for this one: %s", mark, text_of(error)
                )

    async def count(self, resource_type: str) -> None:
        """Forget kept names that have a record by now, and count the rest."""
        types = (CONTENT, INGESTS) if resource_type == CONTENT else (resource_type,)
        before = dict(self.kept)
        for one in types:
            left = await self._engine.read(partial(_count, one))
            if left and not self._engine.is_copy:
                left = await self._engine.write(partial(_forget_known, one), frees=True)
            self.kept[one] = left
        self.kept = {one: left for one, left in self.kept.items() if left}
        if self.kept != before:
            self.changed()

    async def note_leftovers(self) -> None:
        """Write down what no record knows in the backends with marks of their own, before the database is closed.

        A backend that cannot be listed is left out. Raise what the database raises.
        """
        for backend in list(self._backends.values()):
            if not _has_own_mark(backend):
                continue
            try:
                with anyio.fail_after(CLOSE_LIMIT_S):
                    present = await backend.present()
            except Exception as error:  # noqa: BLE001 - the edge of a backend: it counts as after a crash
                log.debug("cannot list %s at the stop: %s", backend.type, error)
                continue
            await self._engine.write(lambda db, b=backend, p=present: _close(db, b.type, p), frees=True)  # type: ignore[misc]  # mypy infers no lambda with a default

    def aclose(self) -> None:
        """Close the marks."""
        for resource_type in list(self._marks):
            self.forget(resource_type)
        while self._left:
            self._left.pop().close()

    def _was_closed(self, backend: Backend) -> bool:
        """Return whether the database saw this backend when it was closed last, and this is the first claim since."""
        opened = self._opened
        return (
            opened is not None
            and backend.type in opened.closed
            and backend.type not in self._reached
            and _has_own_mark(backend)
        )

    def _place(self, backend: Backend) -> Path:
        own: Path | None = getattr(backend.instance, "index_mark", None)
        return own or self._engine.path.parent / "marks" / backend.type.replace("/", "-")

    async def _claim_in_doubt(self, backend: Backend, file: MarkFile, mark: Mark | None, standing: Standing) -> bool:
        """Claim a backend whose mark is missing, or that of another or newer database.

        Return whether something is kept, which is logged then.
        """
        present = await backend.present()
        known = await self._engine.read(lambda db: {one: recorded(db, one) for one in present})
        highest = max((number_of(name) for names in present.values() for name in names), default=0)
        reserved = await self._engine.read(_reserved)
        recognises = any(known[one] & names for one, names in present.items()) and highest <= reserved
        cause = doubt(msgspec.structs.replace(standing, recognises=recognises), mark)
        if cause:
            mine = await self._engine.read(lambda db: {one: _staying(db, one) for one in present})
        else:
            mine = await self._engine.read(lambda db: {one: known[one] | _kept(db, one) for one in present})
        unknown: dict[str, frozenset[str]] = {}
        if cause or self._was_closed(backend):
            assert self._opened is not None
            leftovers = {} if cause else self._opened.leftovers
            unknown = {one: names - mine[one] - leftovers.get(one, frozenset()) for one, names in present.items()}
        lost = sum(map(len, unknown.values()))
        if cause or mark is None or lost:
            await self._engine.write(lambda db: _claim(db, backend.type, unknown, highest))
        if cause or mark is None:
            await anyio.to_thread.run_sync(_write_mark, file, Mark(self._identity, standing.generation))
        else:
            await anyio.to_thread.run_sync(_renew_mark, file, Mark(self._identity, mark.generation))
        if lost:
            remedy = await anyio.to_thread.run_sync(way_back, self._engine.path)
            log.warning(
                "%s does not know %d of %d objects in %s, and keeps them: %s; %s",
                self._engine.path, lost, sum(map(len, present.values())), backend.type, cause or BROUGHT,
                remedy or f"see {HELP}",
            )  # fmt: skip
        return bool(lost)

    async def _standing(self, opened: _Opened, resource_type: str) -> Standing:
        """Return what the database was for a backend when it was opened, or when the backend went."""
        met = await self._engine.read(lambda db: _has_met(db, resource_type))
        return Standing(
            identity=self._identity if resource_type in self._reached else opened.identity,
            past=opened.past,
            generation=self._reached.get(resource_type, opened.generation),
            met=met,
            upgraded=opened.upgraded,
            recognises=False,
        )

    async def _tell_kept(self, resource_type: str) -> None:
        """Tell at each start what is still kept."""
        if not self.kept:
            return
        remedy = await anyio.to_thread.run_sync(way_back, self._engine.path) or f"see {HELP}"
        for one in (CONTENT, INGESTS) if resource_type == CONTENT else (resource_type,):
            if one in self.kept:
                log.warning("%d objects in %s are kept although no record knows them; %s", self.kept[one], one, remedy)


def number_of(name: str) -> int:
    """Return the number in `<namespace>/<number>/<key>`; 0 for a name that the backend made up."""
    parts = name.split("/", 2)
    return int(parts[1]) if len(parts) == 3 and parts[1].isdecimal() else 0


def _write_mark(file: MarkFile, mark: Mark) -> None:
    file.path.parent.mkdir(mode=0o700, exist_ok=True)
    file.replace(mark)


def _renew_mark(file: MarkFile, mark: Mark) -> None:
    """Write a mark in the place of one that the database had before. On a full disk, that one goes on."""
    try:
        _write_mark(file, mark)
    except OSError:
        file.open()


def _has_own_mark(backend: Backend) -> bool:
    """Return whether a backend is on this host's disk, so that listing it is quick."""
    return getattr(backend.instance, "index_mark", None) is not None


def _renewed(db: Connection) -> tuple[_Opened, str]:
    """Give the database the next identity. Return what it was before, and the identity."""
    before, upgraded = db.execute("SELECT id, upgraded FROM identity").fetchone()
    identity = renewal(before)
    past = frozenset(row[0] for row in db.execute("SELECT id FROM past"))
    closed = frozenset(row[0] for row in db.execute("SELECT type FROM owned WHERE closed"))
    leftovers: dict[str, set[str]] = {}
    for one, key in db.execute("SELECT type, key FROM leftovers"):
        leftovers.setdefault(one, set()).add(key)
    db.execute("INSERT INTO past (id) VALUES (?)", (before,))
    db.execute("DELETE FROM past WHERE number <= (SELECT max(number) FROM past) - ?", (_PAST,))
    db.execute("UPDATE identity SET id = ?", (identity,))
    db.execute("UPDATE owned SET closed = 0")
    db.execute("DELETE FROM leftovers")
    left = {one: frozenset(names) for one, names in leftovers.items()}
    return _Opened(before, past, bool(upgraded), resources.generation(db), closed, left), identity


def _close(db: Connection, owned: str, present: Names) -> None:
    """Note what no record knows in a backend, and that it was listed."""
    db.execute("UPDATE owned SET closed = 1 WHERE type = ?", (owned,))
    for one, names in present.items():
        left = names - recorded(db, one) - _kept(db, one)
        db.executemany("INSERT OR IGNORE INTO leftovers VALUES (?, ?)", [(one, name) for name in left])


def _staying(db: Connection, resource_type: str) -> frozenset[str]:
    """Return the names of records that stay until somebody removes them. Ingests never do, and are soon made anew."""
    return recorded(db, resource_type, held=resource_type != INGESTS)


def _kept(db: Connection, resource_type: str) -> frozenset[str]:
    return frozenset(row[0] for row in db.execute("SELECT key FROM kept WHERE type = ?", (resource_type,)))


def _has_met(db: Connection, resource_type: str) -> bool:
    """Return whether the database has claimed a backend before."""
    return bool(db.execute("SELECT EXISTS (SELECT 1 FROM owned WHERE type = ?)", (resource_type,)).fetchone()[0])


def _claim(db: Connection, owned: str, unknown: Names, number: int) -> None:
    """Keep unknown objects, and give out no backend number up to `number` any more."""
    db.execute("INSERT OR IGNORE INTO owned (type) VALUES (?)", (owned,))
    db.executemany(
        "INSERT OR IGNORE INTO kept VALUES (?, ?)", [(one, name) for one, names in unknown.items() for name in names]
    )
    missing = number - _reserved(db)
    if missing > 0:
        resources.reserve_numbers(db, resources.BACKEND_NUMBERS, missing)


def _reserved(db: Connection) -> int:
    row = db.execute("SELECT reserved FROM sequences WHERE name = ?", (resources.BACKEND_NUMBERS,)).fetchone()
    return int(row[0]) if row else 0


def _count(resource_type: str, db: Connection) -> int:
    return int(db.execute("SELECT count(*) FROM kept WHERE type = ?", (resource_type,)).fetchone()[0])


def _forget_known(resource_type: str, db: Connection) -> int:
    kept = _kept(db, resource_type)
    known = [(resource_type, name) for name in kept & _staying(db, resource_type)]
    db.executemany("DELETE FROM kept WHERE type = ? AND key = ?", known)
    return len(kept) - len(known)
