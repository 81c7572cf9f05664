"""Which objects of each backend this database may delete (`aiocontainerd/index`).

A backend is *claimed* before anything in it is deleted: its mark is compared with the database. If the database cannot
prove that the objects are its own, it keeps those that it does not know, for good (table `kept`), and claims the rest.
So a lost or older database goes on, with new objects collected as ever and the others counted and told.

A database that had to keep something takes a new identity. Otherwise the newer one, put back later, would pass for the
index of all that was made meanwhile. Backends are judged by what the database was when it was opened.

A backend has its mark where its attribute `index_mark` says. One without, such as a proxy, has it beside the database.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any as Anything

import anyio
import anyio.to_thread
import msgspec

from aiocontainerd.errors import text_of
from aiocontainerd.index.claim import Standing, doubt
from aiocontainerd.index.mark import Mark, MarkFile
from aiocontainerd_metadata_sqlite import resources
from aiocontainerd_metadata_sqlite.engine import Engine
from aiocontainerd_metadata_sqlite.references import CONTENT, INGESTS
from aiocontainerd_metadata_sqlite.resources import Connection

log = logging.getLogger(__name__)

HELP = 'docs/plugins/operations.md, "An index that is lost"'
Names = Mapping[str, frozenset[str]]
"""Names of objects by type: `content` and `ingests` for a content store, `snapshots/<name>` for a snapshotter."""


class Backend(msgspec.Struct, frozen=True):
    """A backend to claim. `present` lists the names of all its objects."""

    type: str
    instance: Anything
    present: Callable[[], Awaitable[Names]]


class _Opened(msgspec.Struct, frozen=True):
    """What a database was when it was opened."""

    identity: str
    upgraded: bool
    generation: int


class Ownership:
    """The claims of one database. `advance` is for the writer of the engine, the rest for the event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._marks: dict[str, MarkFile] = {}
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
            if self._opened is None:
                self._opened = await self._engine.read(_opened)
                self._identity = self._opened.identity
            mark = MarkFile(self._place(backend))
            found = await anyio.to_thread.run_sync(mark.read)
            standing = await self._standing(self._opened, backend.type)
            told = False
            if found is None or doubt(standing, found):
                told = await self._claim_in_doubt(backend, mark, found, standing)
            elif found.identity == self._identity:
                await anyio.to_thread.run_sync(mark.open)
            else:
                await anyio.to_thread.run_sync(_write_mark, mark, Mark(self._identity, found.generation))
            self._marks[backend.type] = mark
            self._open = tuple(self._marks.values())
            await self._engine.write(lambda _db: None, frees=True)  # what was committed meanwhile reaches the new mark
            await self.count(backend.type)
            if not told:
                self._tell_kept(backend.type)

    def forget(self, resource_type: str) -> None:
        """Give up the claim of a backend that has gone. It is claimed again when it comes back."""
        mark = self._marks.pop(resource_type, None)
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

    def aclose(self) -> None:
        """Close the marks."""
        for resource_type in list(self._marks):
            self.forget(resource_type)
        while self._left:
            self._left.pop().close()

    def _place(self, backend: Backend) -> Path:
        own: Path | None = getattr(backend.instance, "index_mark", None)
        return own or self._engine.path.parent / "marks" / backend.type.replace("/", "-")

    async def _claim_in_doubt(self, backend: Backend, file: MarkFile, mark: Mark | None, standing: Standing) -> bool:
        """Claim a backend whose mark is missing, or that of another or newer database.

        Return whether something is kept, which is logged then.
        """
        present = await backend.present()
        known = await self._engine.read(lambda db: {one: _known(db, one, names) for one, names in present.items()})
        highest = max((number_of(name) for names in present.values() for name in names), default=0)
        reserved = await self._engine.read(_reserved)
        recognises = any(known.values()) and highest <= reserved
        cause = doubt(msgspec.structs.replace(standing, recognises=recognises), mark)
        unknown = {one: names - known[one] for one, names in present.items()} if cause else {}
        lost = sum(map(len, unknown.values()))
        renewed = os.urandom(16).hex() if (lost or mark is not None) and self._identity == standing.identity else ""
        await self._engine.write(lambda db: _claim(db, backend.type, unknown, highest, renewed))
        if renewed:
            await self._renew(renewed)
        await anyio.to_thread.run_sync(_write_mark, file, Mark(self._identity, standing.generation))
        if lost:
            log.warning(
                "%s does not know %d of %d objects in %s, and keeps them: %s; see %s",
                self._engine.path, lost, sum(map(len, present.values())), backend.type, cause, HELP,
            )  # fmt: skip
        return bool(lost)

    async def _renew(self, identity: str) -> None:
        """Write a new identity into the marks of the backends that are claimed already."""
        self._identity = identity
        for mark in self._open:
            await anyio.to_thread.run_sync(_write_mark, mark, Mark(identity, mark.generation))

    async def _standing(self, opened: _Opened, resource_type: str) -> Standing:
        """Return what the database was for a backend when it was opened, or when the backend went."""
        met = await self._engine.read(lambda db: _has_met(db, resource_type))
        return Standing(
            identity=self._identity if resource_type in self._reached else opened.identity,
            generation=self._reached.get(resource_type, opened.generation),
            met=met,
            upgraded=opened.upgraded,
            recognises=False,
        )

    def _tell_kept(self, resource_type: str) -> None:
        """Tell at each start what is still kept."""
        for one in (CONTENT, INGESTS) if resource_type == CONTENT else (resource_type,):
            if one in self.kept:
                log.warning(
                    "%d objects in %s are kept although no record knows them; see %s", self.kept[one], one, HELP
                )


def number_of(name: str) -> int:
    """Return the number in `<namespace>/<number>/<key>`; 0 for a name that the backend made up."""
    parts = name.split("/", 2)
    return int(parts[1]) if len(parts) == 3 and parts[1].isdecimal() else 0


def _write_mark(file: MarkFile, mark: Mark) -> None:
    file.path.parent.mkdir(mode=0o700, exist_ok=True)
    file.replace(mark)


def _opened(db: Connection) -> _Opened:
    identity, upgraded = db.execute("SELECT id, upgraded FROM identity").fetchone()
    return _Opened(identity, bool(upgraded), resources.generation(db))


def _has_met(db: Connection, resource_type: str) -> bool:
    """Return whether the database has claimed a backend before."""
    return bool(db.execute("SELECT EXISTS (SELECT 1 FROM owned WHERE type = ?)", (resource_type,)).fetchone()[0])


def _known(db: Connection, resource_type: str, names: Collection[str]) -> frozenset[str]:
    """Return those of `names` that have a record in any namespace."""
    return frozenset(names) & _recorded(db, resource_type)


def _recorded(db: Connection, resource_type: str) -> frozenset[str]:
    """Return the names that records of a type have in their backend."""
    if resource_type == CONTENT:
        rows = db.execute("SELECT DISTINCT key FROM resources WHERE type = 'content'")
    elif resource_type == INGESTS:
        rows = db.execute("SELECT backend_ref FROM ingests")
    else:
        rows = db.execute("SELECT backend_key FROM snapshots WHERE snapshotter = ?", (resource_type.partition("/")[2],))
    return frozenset(row[0] for row in rows)


def _claim(db: Connection, owned: str, unknown: Names, number: int, renewed: str) -> None:
    """Keep unknown objects, give out no backend number up to `number` any more, and take the identity `renewed`."""
    if renewed:
        db.execute("UPDATE identity SET id = ?", (renewed,))
    db.execute("INSERT OR IGNORE INTO owned VALUES (?)", (owned,))
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
    kept = {row[0] for row in db.execute("SELECT key FROM kept WHERE type = ?", (resource_type,))}
    known = [(resource_type, name) for name in kept & _recorded(db, resource_type)]
    db.executemany("DELETE FROM kept WHERE type = ? AND key = ?", known)
    return len(kept) - len(known)
