"""Snapshotters with one mistake each, for the suites to find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
from aiocontainerd_snapshotter_native.snapshotter import NativeSnapshotter

from aiocontainerd.interfaces.snapshotter import Kind, SnapshotInfo
from aiocontainerd.plugin import Layer


class ForgetsLabels(NativeSnapshotter):
    """Commits without the labels it is given."""

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:  # noqa: ARG002 - the mistake
        await super().commit(name, key, None, parent)


class CommitsViews(NativeSnapshotter):
    """Takes a view for an active snapshot."""

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        info = await self.stat(key)
        if info.kind == Kind.VIEW:
            await self.remove(key)
            await self.prepare(key, info.parent)
        await super().commit(name, key, labels, parent)


class LosesTree(NativeSnapshotter):
    """Begins anew whenever it starts."""

    async def start(self) -> None:
        await anyio.Path(self.root, "metadata.db").unlink(missing_ok=True)
        await super().start()


class BlocksTheLoop(NativeSnapshotter):
    """Reads a file in the event loop."""

    async def stat(self, key: str) -> SnapshotInfo:
        with open(self.root / "metadata.db", "rb") as records:  # noqa: ASYNC230 - the mistake
            records.read(1)
        return await super().stat(key)


class CommitsInTwoSteps(NativeSnapshotter):
    """Labels a snapshot after it was committed."""

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        await super().commit(name, key, None, parent)
        await self.update(SnapshotInfo(kind=Kind.COMMITTED, name=name, labels=labels or {}))


class OneAtATime(NativeSnapshotter):
    """Makes one layer after the other, whatever they are."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._lock = anyio.Lock()

    async def make(self, layer: Layer, parents: Sequence[Layer]) -> None:
        async with self._lock:
            await super().make(layer, parents)
