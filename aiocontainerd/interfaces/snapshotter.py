"""Snapshotters (kind `io.containerd.snapshotter.v1`): file-system trees that are made from one another.

Vocabulary. A *snapshot* has a *key* and perhaps a *parent*. It is *active* (being written), a *view* (read-only look at
a parent) or *committed* (immutable, may be a parent). The *mounts* of an active or view snapshot are what to mount,
in order, to see its tree; the snapshotter itself leaves nothing mounted.

Life cycle. `prepare(key, parent)` makes an active snapshot that starts as a copy of its committed parent, or empty for
parent "". `commit(name, key)` turns it into the committed snapshot `name`: `key` is gone, its labels are replaced.
`view` makes a view. `remove` refuses a snapshot that has children. Removal of files may wait until `cleanup`.

What must fail and how (facts/core 6): a key that exists: AlreadyExists `snapshot "<key>": already exists`; a parent
that does not: NotFound `parent snapshot <parent> does not exist`; a parent not committed: InvalidArgument containing
`is not committed snapshot`; mounts of a committed snapshot: FailedPrecondition containing `not active or view`;
commit of a view: FailedPrecondition containing `is not active`; removal with children: FailedPrecondition
`cannot remove snapshot with child`; a missing key: NotFound `snapshot <key> does not exist`.

Nothing is half made: a crash between any two steps leaves the tree of keys as it was before or as it is after, and at
worst a directory that `cleanup` deletes. Two calls about different keys never wait for each other.

A backend whose data lies in a directory has there a file for the index that owns it; its path is the attribute
`index_mark` (`aiocontainerd/index/mark.py`). Without one, the index keeps that file beside itself.

A backend knows no namespaces; the metadata plugin gives each namespace its own view of the same Protocol and calls
the backend with keys `<namespace>/<sequence>/<key>`.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, TypeVar

import msgspec

from aiocontainerd.errors import InvalidArgument
from aiocontainerd.interfaces.rules import LONG, QUICK, WORK, deadline, items
from aiocontainerd.sys.mount import Mount

T = TypeVar("T")
_NONE: Mapping[str, str] = MappingProxyType({})


class Kind(enum.IntEnum):
    """Kinds of snapshots; the numbers are those of the API."""

    UNKNOWN = 0
    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


class SnapshotInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a snapshot."""

    kind: Kind
    name: str
    parent: str = ""
    labels: Mapping[str, str] = _NONE
    created_at_ns: int = 0
    updated_at_ns: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Disk space of one snapshot without its parents: bytes and inodes."""

    size: int = 0
    inodes: int = 0


class Snapshotter(Protocol):
    """Snapshots of one backend or of one namespace."""

    @deadline(QUICK)
    async def stat(self, key: str) -> SnapshotInfo: ...

    @deadline(WORK)
    async def update(self, info: SnapshotInfo, paths: Sequence[str] = ()) -> SnapshotInfo:
        """Change labels: all of them, or those that `paths` name (`labels`, `labels.<key>`)."""
        ...

    @deadline(WORK)
    async def usage(self, key: str) -> Usage: ...

    @deadline(QUICK)
    async def mounts(self, key: str) -> list[Mount]: ...

    @deadline(WORK)
    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]: ...

    @deadline(WORK)
    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]: ...

    @deadline(WORK)
    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        """Commit `key` as `name`. `parent` is for an active snapshot without one (capability `rebase`)."""
        ...

    @deadline(WORK, always=True)
    async def remove(self, key: str) -> None: ...

    @items(WORK)
    def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[SnapshotInfo]:
        """Yield every snapshot that a filter matches, sorted by key."""
        ...

    @deadline(LONG, always=True)
    async def cleanup(self) -> None:
        """Delete what removed snapshots left behind."""
        ...


def named(name: str, loaded: Mapping[str, T]) -> T:
    """Return the snapshotter of a request. Raises InvalidArgument where it names none or one that is not loaded."""
    if not name:
        raise InvalidArgument("snapshotter argument missing")
    if name not in loaded:
        raise InvalidArgument(f"snapshotter not loaded: {name}")
    return loaded[name]
