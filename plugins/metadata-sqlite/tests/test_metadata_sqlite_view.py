"""The snapshotter contract over a namespace's view."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiocontainerd_metadata_sqlite.store import SqliteMetadataStore

from aiocontainerd import context
from aiocontainerd.interfaces.snapshotter import Snapshotter
from aiocontainerd.testing.fakes import FakeBus, FakeContentStore, FakeSnapshotter
from aiocontainerd.testing.snapshotter import OpenSnapshotter, SnapshotterRecordsContract


class TestSnapshotterView(SnapshotterRecordsContract):
    @pytest.fixture
    def open_snapshotter(self) -> OpenSnapshotter:
        backend = FakeSnapshotter()

        @asynccontextmanager
        async def opened(root: Path) -> AsyncIterator[Snapshotter]:
            root.mkdir(exist_ok=True)
            path = root / "meta.db"
            store = SqliteMetadataStore(
                path, content=FakeContentStore(), snapshotters={"fake": backend}, bus=FakeBus(), sync=False
            )
            await store.open()
            with context.use(namespace="contract"):
                if not await store.leases.list():
                    await store.leases.create("l", {})
                with context.use(lease="l"):
                    view = store.snapshotter("fake")
                    view.cleanup = store.collect  # type: ignore[method-assign,assignment]  # who cleans up a view
                    yield view
            await store.aclose()

        return opened
