"""The metadata contract over the SQLite store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiocontainerd_metadata_sqlite.store import SqliteMetadataStore

from aiocontainerd.testing.fakes import FakeBus, FakeContentStore, FakeSnapshotter
from aiocontainerd.testing.metadata import (
    ContainerContract,
    ContentContract,
    ImageContract,
    LeaseContract,
    NamespaceContract,
    SnapshotterNameContract,
)


@pytest.fixture
def bus() -> FakeBus:
    return FakeBus()


@pytest.fixture
def blobs() -> FakeContentStore:
    return FakeContentStore()


@pytest.fixture
def layers() -> FakeSnapshotter:
    return FakeSnapshotter()


@pytest.fixture
async def metadata(
    tmp_path: Path, bus: FakeBus, blobs: FakeContentStore, layers: FakeSnapshotter
) -> AsyncIterator[SqliteMetadataStore]:
    store = SqliteMetadataStore(tmp_path / "meta.db", content=blobs, snapshotters={"fake": layers}, bus=bus, sync=False)
    await store.open()
    yield store
    await store.aclose()


class TestNamespaces(NamespaceContract):
    pass


class TestContainers(ContainerContract):
    pass


class TestContent(ContentContract):
    pass


class TestSnapshotters(SnapshotterNameContract):
    pass


class TestImages(ImageContract):
    pass


class TestLeases(LeaseContract):
    pass
