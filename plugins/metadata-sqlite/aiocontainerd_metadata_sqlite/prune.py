"""Delete from the backends what no namespace has (facts/core 10): blobs, ingests, and snapshots child-first."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence

import anyio
import anyio.lowlevel

from aiocontainerd.errors import ContainerdError, FailedPrecondition, NotFound, ReadOnlyFileSystem, Unimplemented
from aiocontainerd_metadata_sqlite import snapshot_rows
from aiocontainerd_metadata_sqlite.content import NamespacedContent
from aiocontainerd_metadata_sqlite.engine import Engine
from aiocontainerd_metadata_sqlite.references import INGESTS, SNAPSHOTS
from aiocontainerd_metadata_sqlite.resources import Connection
from aiocontainerd_metadata_sqlite.snapshots import NamespacedSnapshotter

log = logging.getLogger(__name__)

_BATCH = 200
_REMOVALS_AT_ONCE = 16
"""Removals that a backend is asked for at once; a backend with group commit then commits them together."""


async def prune_content(engine: Engine, content: NamespacedContent, limit_s: float) -> None:
    """Delete blob files and abort ingests that are in no namespace. Raise ContainerdError, TimeoutError.

    `limit_s` limits each call of the backend. A file is claimed before the last look whether a namespace has it, so
    that no call can begin to use the file between that look and its deletion.
    """
    with anyio.fail_after(limit_s):
        digests = [info.digest async for info in content.backend.walk()]
    for at in range(0, len(digests), _BATCH):
        batch = digests[at : at + _BATCH]
        unknown = await engine.read(lambda db, batch=batch: _unknown_blobs(db, batch))  # type: ignore[misc]  # mypy infers no lambda with a default
        if unknown:
            await _delete_blobs(engine, content, unknown, limit_s)
    await _abort_ingests(engine, content, limit_s)


async def prune_snapshots(engine: Engine, snapshotter: NamespacedSnapshotter, limit_s: float) -> bool:
    """Remove a backend's unknown snapshots and let it clean up. Return False if some must wait for the next time.

    `limit_s` limits each call of the backend.
    """
    backend = snapshotter.backend
    with anyio.fail_after(limit_s):
        parents = {info.name: info.parent async for info in backend.walk()}
    busy = frozenset(snapshotter.in_progress)
    known = await engine.read(lambda db: snapshot_rows.known_names(db, snapshotter.name))
    kept = await engine.read(lambda db: kept_names(db, SNAPSHOTS + snapshotter.name))
    held: list[str] = []

    async def remove(keys: Iterator[str]) -> None:
        for key in keys:
            await anyio.lowlevel.checkpoint()  # a backend that answers at once must not keep others from the loop
            if not await _removed(snapshotter, key, limit_s):
                held.append(key)

    for wave in doomed(parents, known, busy, kept):
        keys = iter(wave)
        async with anyio.create_task_group() as group:
            for _ in range(min(_REMOVALS_AT_ONCE, len(wave))):
                group.start_soon(remove, keys)
    await _clean_up(snapshotter, limit_s)
    return not held


async def _removed(snapshotter: NamespacedSnapshotter, key: str, limit_s: float) -> bool:
    """Remove a snapshot from the backend. Return False if the backend has to keep it for now."""
    try:
        with anyio.fail_after(limit_s):
            await snapshotter.backend.remove(key)
    except NotFound:
        return True
    except ReadOnlyFileSystem:
        return False  # cleaning up tells
    except FailedPrecondition as held:
        log.info("snapshotter %s keeps snapshot %s for now: %s", snapshotter.name, key, held)
        return False
    return True


def doomed(
    parents: Mapping[str, str], known: Mapping[str, int], busy: Collection[str], kept: Collection[str] = ()
) -> list[list[str]]:
    """Return the backend snapshots to remove, in waves: children are in an earlier wave than their parents. Pure.

    `parents` has every snapshot of the backend, `known` the numbers of the records. What is `kept` stays, with all of
    its parents. A record whose own snapshot is missing, while another snapshot has its number, is a commit that was cut
    short. That snapshot stays as long as the record, so that the commit can be tried again.
    """
    waiting = {(_namespace(name), number) for name, number in known.items() if name not in parents}
    garbage = {name for name in parents if name not in known and name not in busy and _numbered(name) not in waiting}
    garbage -= _with_ancestors(kept, parents)
    children: dict[str, list[str]] = {}
    for name in sorted(garbage):
        children.setdefault(parents[name], []).append(name)
    waves, wave = [], sorted(name for name in garbage if parents[name] not in garbage)
    while wave:
        waves.append(wave)
        wave = [child for name in wave for child in children.get(name, ())]
    return waves[::-1]


def _with_ancestors(names: Collection[str], parents: Mapping[str, str]) -> set[str]:
    found: set[str] = set()
    for name in names:
        while name in parents and name not in found:
            found.add(name)
            name = parents[name]
    return found


def _namespace(backend_key: str) -> str:
    return backend_key.partition("/")[0]


def _numbered(backend_key: str) -> tuple[str, int]:
    namespace, _, rest = backend_key.partition("/")
    number = rest.partition("/")[0]
    return namespace, int(number) if number.isdecimal() else -1


async def _clean_up(snapshotter: NamespacedSnapshotter, limit_s: float) -> None:
    try:
        with anyio.fail_after(limit_s):
            await snapshotter.backend.cleanup()
    except (Unimplemented, NotImplementedError):
        log.debug("snapshotter %s has nothing to clean up", snapshotter.name)


async def _delete_blobs(engine: Engine, content: NamespacedContent, unknown: Sequence[str], limit_s: float) -> None:
    claimed = content.pins.claim(unknown)
    try:
        for digest in await engine.read(lambda db: _unknown_blobs(db, claimed)):
            await anyio.lowlevel.checkpoint()
            with anyio.fail_after(limit_s):
                await _forgiving_delete(content, digest)
    finally:
        content.pins.release(claimed)


async def _forgiving_delete(content: NamespacedContent, digest: str) -> None:
    try:
        await content.backend.delete(digest)
    except NotFound:
        log.debug("blob %s is gone already", digest)


async def _abort_ingests(engine: Engine, content: NamespacedContent, limit_s: float) -> None:
    """Abort ingests without a row. Rows are made before their ingests, so the ingests are listed first."""
    with anyio.fail_after(limit_s):
        present = [status.ref for status in await content.backend.statuses()]
    if not present:
        return
    known = await engine.read(
        lambda db: {row[0] for row in db.execute("SELECT backend_ref FROM ingests")} | kept_names(db, INGESTS)
    )
    for ref in present:
        if ref not in known:
            await _forgiving_abort(content, ref, limit_s)


async def _forgiving_abort(content: NamespacedContent, ref: str, limit_s: float) -> None:
    try:
        with anyio.fail_after(limit_s):
            await content.backend.abort(ref)
    except ContainerdError as error:
        log.debug("ingest %s is not aborted: %s", ref, error)


def kept_names(db: Connection, resource_type: str) -> set[str]:
    """Return the backend names that must stay although no record knows them (`owned`)."""
    return {row[0] for row in db.execute("SELECT key FROM kept WHERE type = ?", (resource_type,))}


def _unknown_blobs(db: Connection, digests: Sequence[str]) -> list[str]:
    query = (
        "SELECT j.value FROM json_each(?) j"
        " WHERE NOT EXISTS (SELECT 1 FROM resources r WHERE r.type = 'content' AND r.key = j.value)"
        " AND NOT EXISTS (SELECT 1 FROM kept k WHERE k.type = 'content' AND k.key = j.value)"
    )
    return [row[0] for row in db.execute(query, (json.dumps(list(digests)),))]
