"""The walking differ against the contract of differs, over a local content store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from aiocontainerd_content_local.store import LocalStore
from aiocontainerd_differ import applying
from aiocontainerd_differ.differ import WalkingDiffer

from aiocontainerd.interfaces.content import BlobInfo, ContentStore
from aiocontainerd.testing.differ import DifferContract


class LabelledStore(LocalStore):
    """A local store that takes label updates, as the metadata store's view of it does."""

    async def update(self, info: BlobInfo, paths: Sequence[str] = ()) -> BlobInfo:
        return info


@pytest.fixture
def content(tmp_path: Path) -> LocalStore:
    return LabelledStore(tmp_path / "content")


@pytest.fixture
def differ(content: ContentStore, tmp_path: Path) -> WalkingDiffer:
    return WalkingDiffer(content, str(tmp_path / "tmpmounts"))


class TestInThread(DifferContract):
    """Small layers."""


class TestInChild(DifferContract):
    """Every layer in a child process."""

    @pytest.fixture(autouse=True)
    def no_small_layers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(applying, "SMALL_BYTES", -1)
