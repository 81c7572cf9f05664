"""Define what the fault suite does to plugins: a first state, one operation of each kind, and how to see the state.

The same functions run in the child that is killed and in the test that looks at what is left.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from aiocontainerd import kinds
from aiocontainerd.interfaces.content import ContentStore
from aiocontainerd.interfaces.snapshotter import Kind, SnapshotInfo, Snapshotter
from aiocontainerd.sys.mount import Mount, temp_mount

LABEL = "containerd.io/snapshot/test"
BLOB = b"a blob that is there before"
HALF = b"an ingest of two halves: the first, and the second"
CUT = 24
FRESH = b"an ingest that is begun"

State = dict[str, Any]
Step = Callable[[Any], Awaitable[object]]


def digest_of(data: bytes) -> str:
    """Return the sha256 digest of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Scenario(msgspec.Struct, frozen=True):
    """`setup` may use a directory; `others` are calls about other keys, which go on while an operation hangs."""

    setup: Callable[[Any, Path], Awaitable[object]]
    operations: Mapping[str, Step]
    state: Callable[[Any], Awaitable[State]]
    others: Mapping[str, Step]


# Snapshotters.


async def _snapshots(snapshotter: Snapshotter, directory: Path) -> None:
    parent = ""
    for name in ("one", "two"):
        mounts = await snapshotter.prepare(f"{name}-active", parent)
        await write_file(mounts, directory, name)
        await snapshotter.commit(name, f"{name}-active", {LABEL: name})
        parent = name
    await snapshotter.prepare("active", "two", {LABEL: "1"})
    await snapshotter.view("view", "two")
    await snapshotter.prepare("unwanted", "one")


async def write_file(mounts: Sequence[Mount], directory: Path, name: str) -> None:
    """Put a file, which holds its own name, and a link to it into a mounted tree; without root nothing is mounted."""
    if os.geteuid() != 0:
        return
    async with temp_mount(mounts, directory) as tree:
        Path(tree, "files").mkdir(exist_ok=True)
        Path(tree, "files", name).write_text(name)
        Path(tree, f"link-{name}").symlink_to(f"files/{name}")


async def read_files(mounts: Sequence[Mount], directory: Path) -> dict[str, str]:
    """Return the targets of the links of a mounted tree."""
    async with temp_mount(mounts, directory, readonly=True) as tree:
        return {path.name: path.read_text() for path in sorted(Path(tree).glob("link-*"))}


async def snapshot_state(snapshotter: Snapshotter) -> State:
    """Return key -> kind, parent, labels."""
    return {
        info.name: [int(info.kind), info.parent, dict(sorted(info.labels.items()))] async for info in snapshotter.walk()
    }


SNAPSHOTTER = Scenario(
    setup=_snapshots,
    operations={
        "prepare": lambda s: s.prepare("new", "two", {LABEL: "new"}),
        "prepare-without-parent": lambda s: s.prepare("new"),
        "view": lambda s: s.view("new", "two"),
        "commit": lambda s: s.commit("three", "active", {LABEL: "three"}),
        "update": lambda s: s.update(SnapshotInfo(kind=Kind.ACTIVE, name="active", labels={LABEL: "2"})),
        "remove": lambda s: s.remove("unwanted"),
    },
    state=snapshot_state,
    others={
        "stat": lambda s: s.stat("one"),
        "walk": snapshot_state,
        "mounts": lambda s: s.mounts("view"),
        "prepare": lambda s: s.prepare("other"),
        "commit": lambda s: s.commit("other-committed", "other"),
        "remove": lambda s: s.remove("other-committed"),
    },
)

# Content stores.


async def ingest(store: ContentStore, ref: str, data: bytes, expected: str = "", *, commit: bool = True) -> None:
    """Write what is missing of `data`, and commit it."""
    async with await store.writer(ref) as writer:
        await writer.write(data[writer.offset :])
        if commit:
            await writer.commit(len(data), expected or digest_of(data))


async def _blobs(store: ContentStore, _directory: Path) -> None:
    await ingest(store, "blob", BLOB)
    await ingest(store, "half", HALF[:CUT], commit=False)
    await ingest(store, "unwanted", FRESH, commit=False)


async def content_state(store: ContentStore) -> State:
    """Return the digests of the blobs, and the refs of the ingests."""
    return {
        "blobs": [info.digest async for info in store.walk()],
        "ingests": sorted(status.ref for status in await store.statuses()),
    }


CONTENT = Scenario(
    setup=_blobs,
    operations={
        "write": lambda s: ingest(s, "new", FRESH, commit=False),
        "commit": lambda s: ingest(s, "half", HALF),
        "delete": lambda s: s.delete(digest_of(BLOB)),
        "abort": lambda s: s.abort("unwanted"),
    },
    state=content_state,
    others={
        "info": lambda s: s.info(digest_of(BLOB)),
        "walk": content_state,
        "ingest": lambda s: ingest(s, "other", b"other"),
        "delete": lambda s: s.delete(digest_of(b"other")),
    },
)

BY_KIND: Mapping[str, Scenario] = {kinds.SNAPSHOTTER: SNAPSHOTTER, kinds.CONTENT: CONTENT}
