"""The native snapshotter: the contract, and what is on disk."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import anyio
import pytest
from aiocontainerd_snapshotter_native import snapshotter as module
from aiocontainerd_snapshotter_native.snapshotter import NativeSnapshotter

from aiocontainerd.sys.mount import Mount
from aiocontainerd.testing.snapshotter import OpenSnapshotter, SnapshotterContract, chain


class TestContract(SnapshotterContract):
    """The suite of aiocontainerd.testing.snapshotter."""

    @pytest.fixture
    def open_snapshotter(self) -> OpenSnapshotter:
        return NativeSnapshotter


@pytest.mark.anyio
async def test_mounts_are_bind_mounts_of_the_copy(tmp_path: Path) -> None:
    async with NativeSnapshotter(tmp_path) as snapshotter:
        parent = await chain(snapshotter, "c")
        source = str(tmp_path / "snapshots" / "2")
        assert await snapshotter.prepare("a", parent) == [Mount("bind", source, options=("rbind", "rw"))]


@pytest.mark.anyio
async def test_view_shows_its_parent_without_a_copy(tmp_path: Path) -> None:
    async with NativeSnapshotter(tmp_path) as snapshotter:
        parent = await chain(snapshotter, "c")
        source = str(tmp_path / "snapshots" / "1")
        assert await snapshotter.view("v", parent) == [Mount("bind", source, options=("rbind", "ro"))]


@pytest.mark.anyio
async def test_removal_deletes_the_copy(tmp_path: Path) -> None:
    async with NativeSnapshotter(tmp_path) as snapshotter:
        await snapshotter.prepare("a")
        await snapshotter.remove("a")
        assert list((tmp_path / "snapshots").iterdir()) == []


@pytest.mark.anyio
async def test_failed_copy_leaves_nothing(tmp_path: Path) -> None:
    async with NativeSnapshotter(tmp_path) as snapshotter:
        parent = await chain(snapshotter, "c")
        (tmp_path / "snapshots" / "1").rmdir()
        (tmp_path / "snapshots" / "1").write_text("no directory")
        with pytest.raises(OSError, match="cannot copy"):
            await snapshotter.prepare("a", parent)
        assert os.listdir(tmp_path / "snapshots") == ["1"]


@pytest.mark.anyio
async def test_copy_ends_with_the_call_that_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = tmp_path / "begun"
    monkeypatch.setattr(module, "_COPY", ("sh", "-c", 'touch "$0"; exec sleep 1000', str(begun)))
    async with NativeSnapshotter(tmp_path / "root") as snapshotter:
        parent = await chain(snapshotter, "c")
        call = asyncio.ensure_future(snapshotter.prepare("a", parent))
        while not begun.exists():  # noqa: ASYNC110 - another process makes it
            await anyio.sleep(0.005)
        call.cancel()
        with pytest.raises(asyncio.CancelledError), anyio.fail_after(10):
            await call
        assert [path.name for path in (tmp_path / "root" / "snapshots").iterdir()] == ["1"]
