"""The base class of snapshotters. An author writes how a layer is made, mounted, measured and removed.

    class Acme(SnapshotterBase):
        async def make(self, layer, parents): ...
        async def mounts_of(self, layer, parents): return [Mount("bind", self.path(layer.id), options=("rbind", "rw"))]
        async def usage_of(self, layer): return await usage_of_tree(self.path(layer.id))
        async def discard(self, layer_id): await remove_tree(self.path(layer_id))
        async def stored(self): return await names_in(self.layers)

Order of work: files are made before their record is written, and deleted after the record is gone. So a crash between
any two steps leaves the tree of keys as it was before or as it is after. At worst it leaves files without a record;
`cleanup` finds those among the names that `stored` returns. It deletes neither files that are mounted somewhere nor
files that the records have lost (`Store.claim`). While a method of the author runs, only the keys of that
call are held.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import anyio.to_thread
import msgspec

from aiocontainerd import labels as label_rules
from aiocontainerd.errors import FailedPrecondition, Internal, InvalidArgument, Unimplemented, os_text, text_of
from aiocontainerd.filters import compile_filters
from aiocontainerd.gotext import quoted
from aiocontainerd.interfaces.snapshotter import Kind, SnapshotInfo, Usage
from aiocontainerd.snapshots import foreign
from aiocontainerd.snapshots.claims import Claims
from aiocontainerd.snapshots.layer import Layer, fields_of
from aiocontainerd.snapshots.owned import Claimed
from aiocontainerd.snapshots.store import Store
from aiocontainerd.snapshots.tree import KeyTree, with_info
from aiocontainerd.snapshots.used import names_in_use
from aiocontainerd.sys.mount import Mount

log = logging.getLogger(__name__)

DISCARDS_AT_ONCE = 4
_LARGEST_INT64 = (1 << 63) - 1
"""Layers whose files `cleanup` deletes at the same time."""
MOUNTED = "files of snapshot %s in %s stay: they are mounted"
HELP = 'docs/plugins/operations.md, "An index that is lost"'
CLOSE_LIMIT_S = 5.0
"""For listing the files when a snapshotter is closed; one that takes longer counts as after a crash."""
DISCARD_TIMEOUT_S = 600.0
"""The longest time for which removing the files of a useless layer may hold up a cancelled call."""


class SnapshotterBase:
    """A snapshotter with its records in `<root>/metadata.db`. Use it in `async with`, or call `start` and `aclose`.

    `can_rebase`: a commit may give a parent to a snapshot that has none. `removes_at_once`: `remove` deletes the files
    before it returns; otherwise `cleanup` deletes them.
    """

    can_rebase = False
    removes_at_once = True
    _started = False

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.layers = self.root / "snapshots"
        self._tree = KeyTree()
        self._store = Store(self.root / foreign.RECORDS)
        self._claims = Claims()
        self._in_flight: set[str] = set()
        self._removed: set[str] = set()
        self._kept: frozenset[str] = frozenset()
        self._claimed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.root}: {self._tree!r} {self._claims!r}>"

    # Methods that an author overrides.

    async def make(self, layer: Layer, parents: Sequence[Layer]) -> None:
        """Make the files of an active or view layer from `parents`, nearest first. `discard` follows a failure."""
        raise NotImplementedError

    async def mounts_of(self, layer: Layer, parents: Sequence[Layer]) -> list[Mount]:
        """Return the mounts of an active or view layer. Every start of a container waits for it: answer from memory."""
        raise NotImplementedError

    async def usage_of(self, layer: Layer) -> Usage:
        """Return the disk space of an active layer without its parents."""
        raise NotImplementedError

    async def discard(self, layer_id: str) -> None:
        """Delete the files of a layer that has no record. They may be whole, half made or gone already."""
        raise NotImplementedError

    async def stored(self) -> Iterable[str]:
        """Return the names of everything on storage: ids of layers, and leftovers that `discard` can delete."""
        raise NotImplementedError

    async def seal(self, layer: Layer, parents: Sequence[Layer]) -> None:
        """Prepare the files of an active layer for its commit. After a crash it may run again, or never."""

    def labels_of(self, layer: Layer) -> Mapping[str, str]:  # noqa: ARG002 - overridden with use of it
        """Return labels that `stat` and `walk` show in addition to those of the record."""
        return {}

    def path(self, layer_id: str, *names: str) -> str:
        """Return a path in the directory of a layer, `<root>/snapshots/<id>`."""
        return os.path.join(self.layers, layer_id, *names)

    @property
    def index_mark(self) -> Path:
        """Where the index that owns these snapshots leaves its mark (interfaces/snapshotter.py)."""
        return self.root / "index.mark"

    @property
    def kept(self) -> frozenset[str]:
        """Names on storage that the records do not know and that nobody may delete: the records were lost."""
        return self._kept

    def exports(self) -> dict[str, str]:
        """Return what introspection shows of the snapshots: how many are kept although no record knows them."""
        return {"kept": str(len(self._kept))} if self._kept else {}

    # Start and stop.

    @property
    def is_started(self) -> bool:
        """Whether `start` has read the records. A subclass whose `start` leaves that out is refused when it loads."""
        return self._started

    async def start(self) -> None:
        """Make the root (0700) and read the records. Raises FailedPrecondition when they cannot be used.

        Nothing is written beside records of another program.
        """
        await anyio.to_thread.run_sync(foreign.refuse, self.root)
        for directory in (self.root, self.layers):
            await anyio.to_thread.run_sync(partial(directory.mkdir, mode=0o700, parents=True, exist_ok=True))
        self._tree = KeyTree(*await self._store.load())
        try:
            stored = list(await self.stored())
            self._tree.skip_ids(stored)
            await self._claim(stored)
        except BaseException:
            await self.aclose()
            raise
        self._started = True

    async def _claim(self, stored: Sequence[str]) -> None:
        """Find out which files the records may delete, and tell which they must not."""
        cause = ""
        try:
            claimed = await self._store.claim(stored)
            self._claimed = True
        except (sqlite3.Error, OSError) as error:
            claimed = Claimed(frozenset(name for name in stored if name not in self._tree))
            cause = f"it cannot be written ({text_of(error)})"
        self._kept = claimed.kept
        if self._kept:
            log.warning(
                "%s does not know %d of the %d layers in %s, and keeps them: %s; %s",
                self._store.path, len(self._kept), len(stored), self.layers,
                claimed.cause or cause or "it was lost or put back earlier", claimed.remedy or f"see {HELP}",
            )  # fmt: skip

    async def aclose(self) -> None:
        """Close the records. A snapshotter mounts nothing, so it has nothing else to release."""
        with anyio.CancelScope(shield=True):
            if self._claimed:
                await self._note_leftovers()
            await self._store.aclose()

    async def _note_leftovers(self) -> None:
        """Write down which files no record knows. If that fails, they count as what a crash left."""
        self._claimed = False
        try:
            with anyio.fail_after(CLOSE_LIMIT_S):
                stored = list(await self.stored())
            await self._store.note_leftovers(stored)
        except Exception as error:  # noqa: BLE001 - the edge of a stop, which goes on
            log.debug("what is left in %s is not written down: %s", self.layers, error)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # The Snapshotter protocol.

    async def stat(self, key: str) -> SnapshotInfo:
        return self._shown(self._tree.get(key))

    async def mounts(self, key: str) -> list[Mount]:
        layer = self._tree.mountable(key)
        parents = self._tree.parents(layer)
        await self._require_files(layer, *parents)
        return await self._mounts_of(layer, parents)

    async def usage(self, key: str) -> Usage:
        layer = self._tree.get(key)
        if not layer.is_active:
            return layer.usage
        await self._require_files(layer)
        return await self._usage_of(layer)

    async def update(self, info: SnapshotInfo, paths: Sequence[str] = ()) -> SnapshotInfo:
        if not info.name:
            raise InvalidArgument("")
        for path in paths:
            if path != "labels" and not path.startswith("labels."):
                raise InvalidArgument(f"cannot update {quoted(path)} field on snapshot {quoted(info.name)}")
        async with self._claims.hold(info.name):
            layer = self._tree.get(info.name)
            changed = label_rules.update(layer.labels, info.labels, list(paths) or ["labels"])
            layer = with_info(layer, labels=changed, updated_at_ns=time.time_ns())
            await self._record(layer)
        return self._shown(layer)

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        return await self._create(Kind.ACTIVE, key, parent, labels)

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        return await self._create(Kind.VIEW, key, parent, labels)

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        async with self._claims.hold(name, key, *filter(None, [parent])) as claim:
            self._tree.check_free(name)
            layer = self._rebased(self._tree.active(key), parent)
            with self._claims.pin(parent):
                claim.release(*{parent} - {name, key, ""})
                parents = self._tree.parents(layer)
                await self._require_files(layer, *parents)
                await self.seal(layer, parents)
                layer = msgspec.structs.replace(layer, usage=await self._usage_of(layer))
                now = time.time_ns()
                await self._record(
                    with_info(
                        layer,
                        kind=Kind.COMMITTED,
                        name=name,
                        labels=label_rules.without_empty(labels or {}),
                        created_at_ns=now,
                        updated_at_ns=now,
                    )
                )

    async def remove(self, key: str) -> None:
        async with self._claims.hold(key):
            layer = self._tree.childless(key)
            if self._claims.is_pinned(key):
                raise FailedPrecondition("cannot remove snapshot with child")
            self._in_flight.add(layer.id)
            try:
                await self._forget(layer)
                self._removed.add(layer.id)
            finally:
                self._in_flight.discard(layer.id)
        if self.removes_at_once:
            await self._discard_quietly(layer.id)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[SnapshotInfo]:
        chosen = compile_filters(filters)
        for layer in self._tree.sorted():
            info = self._shown(layer)
            if chosen.matches(fields_of(info)):
                yield info

    async def cleanup(self) -> None:
        """Delete files that have no record, unless they are mounted. Raise the last failure at the end.

        Raises ReadOnlyFileSystem, and deletes nothing, while the records were opened on a read-only file system.
        """
        if self._store.is_copy:
            raise self._store.refusal()
        failures: list[Exception] = []
        useless = [name for name in await self.stored() if self._is_useless(name)]
        used = await self._in_use(useless)
        for name in used.intersection(useless):
            log.warning(MOUNTED, name, self.layers)

        async def discard(names: Iterator[str]) -> None:
            for name in names:
                if name in used or not self._is_useless(name):
                    continue
                try:
                    await self._discard(name)
                except Exception as error:  # noqa: BLE001 - a layer's failure must not keep the files of others
                    failures.append(error)

        names = iter(useless)
        async with anyio.create_task_group() as group:
            for _ in range(DISCARDS_AT_ONCE):
                group.start_soon(discard, names)
        await self._store.copy_if_due()
        if failures:
            raise failures[-1]

    def _is_useless(self, name: str) -> bool:
        return not (name in self._tree or name in self._in_flight or name in self._kept)

    async def _in_use(self, names: Sequence[str]) -> set[str]:
        """Return those of `names` whose files are mounted.

        For what this process has removed itself, its own mounts count. Whatever else is there may belong to a container
        of an earlier daemon, so the mounts of every process count.
        """
        if not names:
            return set()
        everywhere = not self._removed.issuperset(names)
        return await anyio.to_thread.run_sync(names_in_use, str(self.layers), everywhere)

    # Helpers.

    async def _create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str] | None) -> list[Mount]:
        async with self._claims.hold(key, *filter(None, [parent])) as claim:
            below = self._tree.parent(parent)
            self._tree.check_free(key)
            layer = self._new(kind, key, below, label_rules.without_empty(labels or {}))
            with self._claims.pin(parent):
                claim.release(parent)
                parents = self._tree.parents(layer)
                await self._require_files(*parents)
                await self._make(layer, parents)
        return await self._mounts_of(layer, parents)

    async def _require_files(self, *layers: Layer) -> None:
        """Raise FailedPrecondition, which names the snapshot and its path, if the files of a layer are gone."""
        missing = await anyio.to_thread.run_sync(self._without_files, layers)
        if missing and (gone := {layer.id for layer in missing}.difference(await self.stored())):
            layer = next(layer for layer in missing if layer.id in gone)
            raise FailedPrecondition(
                f"snapshot {layer.key} has lost its files: {self.path(layer.id)} is missing; "
                "remove the snapshot and make it again"
            )

    def _without_files(self, layers: Sequence[Layer]) -> list[Layer]:
        return [layer for layer in layers if not os.path.lexists(self.path(layer.id))]

    async def _mounts_of(self, layer: Layer, parents: Sequence[Layer]) -> list[Mount]:
        found: object = await self.mounts_of(layer, parents)
        if not isinstance(found, list) or not all(isinstance(mount, Mount) for mount in found):
            raise Internal(f"{type(self).__name__}.mounts_of returned {_form(found)}, not a list of Mount")
        for mount in found:
            _check_fields(mount, f"{type(self).__name__}.mounts_of")
        return found

    async def _usage_of(self, layer: Layer) -> Usage:
        found: object = await self.usage_of(layer)
        if not isinstance(found, Usage):
            raise Internal(f"{type(self).__name__}.usage_of returned {_form(found)}, not Usage")
        _check_fields(found, f"{type(self).__name__}.usage_of")
        if max(found.size, found.inodes) > _LARGEST_INT64:
            raise Internal(f"{type(self).__name__}.usage_of returned {found}, which has more than 63 bits")
        return found

    def _new(self, kind: Kind, key: str, parent: Layer | None, labels: Mapping[str, str]) -> Layer:
        now = time.time_ns()
        info = SnapshotInfo(
            kind=kind,
            name=key,
            parent=parent.key if parent else "",
            labels=labels,
            created_at_ns=now,
            updated_at_ns=now,
        )
        return Layer(id=self._tree.next_id(), info=info, parent_id=parent.id if parent else "")

    async def _make(self, layer: Layer, parents: Sequence[Layer]) -> None:
        self._in_flight.add(layer.id)
        try:
            await self.make(layer, parents)
            await self._record(layer)
        except BaseException:
            if layer.id not in self._tree:
                with anyio.move_on_after(DISCARD_TIMEOUT_S, shield=True):
                    await self._discard_quietly(layer.id)
            raise
        finally:
            self._in_flight.discard(layer.id)

    def _rebased(self, layer: Layer, parent: str) -> Layer:
        if not parent or layer.parent_id:
            return layer
        below = self._tree.parent(parent)
        if not self.can_rebase:
            raise Unimplemented(f"snapshot {layer.key} cannot be given a parent by this snapshotter")
        return with_info(msgspec.structs.replace(layer, parent_id=below.id if below else ""), parent=parent)

    async def _record(self, layer: Layer) -> None:
        with anyio.CancelScope(shield=True):  # the tree must follow the database, also for a cancelled caller
            await self._store.put(layer)
            self._tree.put(layer)

    async def _forget(self, layer: Layer) -> None:
        with anyio.CancelScope(shield=True):
            await self._store.delete(layer.id)
            self._tree.drop(layer)

    async def _discard(self, name: str) -> None:
        self._in_flight.add(name)
        try:
            await self.discard(name)
            self._removed.discard(name)
        finally:
            self._in_flight.discard(name)

    async def _discard_quietly(self, name: str) -> None:
        try:
            if await self._in_use([name]):
                log.warning(MOUNTED, name, self.layers)
                return
            await self._discard(name)
        except OSError as error:
            log.warning("files of snapshot %s in %s are left for cleanup: %s", name, self.root, os_text(error))
        except Exception:  # the records are right already, and cleanup will try again
            log.warning("files of snapshot %s in %s are left for cleanup", name, self.root, exc_info=True)

    def _shown(self, layer: Layer) -> SnapshotInfo:
        extra = self.labels_of(layer)
        return with_info(layer, labels={**layer.labels, **extra}).info if extra else layer.info


def _check_fields(record: msgspec.Struct, method: str) -> None:
    """Raise Internal for a field whose value is not of its type: records do not check what they are made of."""
    try:
        msgspec.convert(msgspec.to_builtins(record), type(record))
    except (msgspec.ValidationError, TypeError) as error:
        raise Internal(f"{method} returned {type(record).__name__} with a wrong value: {error}") from error


def _form(value: object) -> str:
    """Return the type of a value, for error messages; for a list the types of its items."""
    if isinstance(value, list) and value:
        return f"a list of {', '.join(sorted({type(item).__name__ for item in value}))}"
    return type(value).__name__
