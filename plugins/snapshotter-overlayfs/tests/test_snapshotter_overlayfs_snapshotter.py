"""The overlayfs snapshotter: the contract, and its exact mounts."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from aiocontainerd_snapshotter_overlayfs.snapshotter import (
    GID_MAPPING_LABEL,
    UID_MAPPING_LABEL,
    UPPER_LABEL,
    OverlaySnapshotter,
    Settings,
)

from aiocontainerd.sys.mount import Mount, temp_mount
from aiocontainerd.testing.snapshotter import OpenSnapshotter, SnapshotterContract, chain, read, write

SETTINGS = Settings(overlay_options=("index=off",), id_mapped=True)
MAPS = {UID_MAPPING_LABEL: "0:1000:65536", GID_MAPPING_LABEL: "0:2000:65536"}


class TestContract(SnapshotterContract):
    """The suite of aiocontainerd.testing.snapshotter."""

    can_rebase = True

    @pytest.fixture
    def open_snapshotter(self) -> OpenSnapshotter:
        return lambda root: OverlaySnapshotter(root, SETTINGS)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.anyio
async def test_no_parent_is_a_bind_mount(tmp_path: Path) -> None:
    async with OverlaySnapshotter(tmp_path, SETTINGS) as snapshotter:
        fs = f"{tmp_path}/snapshots/1/fs"
        assert await snapshotter.prepare("a") == [Mount("bind", fs, options=("rw", "rbind"))]
        assert (await snapshotter.view("v"))[0].options == ("ro", "rbind")


@pytest.mark.anyio
async def test_active_on_parents_is_an_overlay_nearest_layer_first(tmp_path: Path) -> None:
    async with OverlaySnapshotter(tmp_path, SETTINGS) as snapshotter:
        await chain(snapshotter, "one", "two")
        base = f"{tmp_path}/snapshots"
        assert await snapshotter.prepare("a", "two") == [
            Mount(
                "overlay",
                "overlay",
                options=(
                    f"workdir={base}/3/work",
                    f"upperdir={base}/3/fs",
                    f"lowerdir={base}/2/fs:{base}/1/fs",
                    "index=off",
                ),
            )
        ]


@pytest.mark.anyio
async def test_view_of_one_parent_is_a_bind_and_of_two_an_overlay(tmp_path: Path) -> None:
    async with OverlaySnapshotter(tmp_path, SETTINGS) as snapshotter:
        await chain(snapshotter, "one", "two")
        base = f"{tmp_path}/snapshots"
        assert await snapshotter.view("v1", "one") == [Mount("bind", f"{base}/1/fs", options=("ro", "rbind"))]
        assert await snapshotter.view("v2", "two") == [
            Mount("overlay", "overlay", options=(f"lowerdir={base}/2/fs:{base}/1/fs", "index=off"))
        ]


@pytest.mark.anyio
async def test_modes_of_directories(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        async with OverlaySnapshotter(tmp_path / "root") as snapshotter:
            await snapshotter.prepare("a")
            await snapshotter.view("v")
    finally:
        os.umask(before)
    layers = tmp_path / "root" / "snapshots"
    assert (_mode(tmp_path / "root"), _mode(layers), _mode(layers / "1")) == (0o700, 0o700, 0o700)
    assert (_mode(layers / "1" / "fs"), _mode(layers / "1" / "work")) == (0o755, 0o711)
    assert not (layers / "2" / "work").exists()


@pytest.mark.anyio
@pytest.mark.root
async def test_changes_belong_to_the_mapped_root_or_the_parents_owner(tmp_path: Path) -> None:
    async with OverlaySnapshotter(tmp_path, SETTINGS) as snapshotter:
        await snapshotter.prepare("a", labels=MAPS)
        assert ((tmp_path / "snapshots/1/fs").stat().st_uid, (tmp_path / "snapshots/1/fs").stat().st_gid) == (
            1000,
            2000,
        )
        await snapshotter.commit("c", "a")
        await snapshotter.prepare("b", "c")
        assert (tmp_path / "snapshots/2/fs").stat().st_uid == 1000


@pytest.mark.anyio
@pytest.mark.root
async def test_mapping_labels_become_the_first_mount_options(tmp_path: Path) -> None:
    async with OverlaySnapshotter(tmp_path, SETTINGS) as snapshotter:
        await write(await snapshotter.prepare("c-active"), tmp_path / "tmp", {"file": "x"})
        await snapshotter.commit("c", "c-active")
        mounts = await snapshotter.prepare("a", "c", labels=MAPS)
        assert mounts[0].options[:2] == ("uidmap=0:1000:65536", "gidmap=0:2000:65536")
        async with temp_mount(mounts, tmp_path / "tmp") as directory:
            assert (os.stat(f"{directory}/file").st_uid, os.stat(f"{directory}/file").st_gid) == (1000, 2000)


@pytest.mark.anyio
async def test_mapping_labels_mean_nothing_where_the_kernel_cannot_map(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: changes owner")
    async with OverlaySnapshotter(tmp_path) as snapshotter:
        mounts = await snapshotter.prepare("a", labels=MAPS)
        assert mounts[0].options == ("rw", "rbind")


@pytest.mark.anyio
async def test_upper_directory_is_shown_as_a_label_when_asked(tmp_path: Path) -> None:
    async with OverlaySnapshotter(tmp_path, Settings(upper_label=True)) as snapshotter:
        await snapshotter.prepare("a")
        upper = f"{tmp_path}/snapshots/1/fs"
        assert (await snapshotter.stat("a")).labels == {UPPER_LABEL: upper}
        assert [info.labels async for info in snapshotter.walk()] == [{UPPER_LABEL: upper}]


@pytest.mark.anyio
@pytest.mark.parametrize("sync_remove", [False, True])
async def test_files_are_deleted_at_cleanup_unless_sync_remove(tmp_path: Path, sync_remove: bool) -> None:
    async with OverlaySnapshotter(tmp_path, Settings(sync_remove=sync_remove)) as snapshotter:
        await snapshotter.prepare("a")
        await snapshotter.remove("a")
        assert (tmp_path / "snapshots" / "1").exists() is not sync_remove
        await snapshotter.cleanup()
        assert not (tmp_path / "snapshots" / "1").exists()


@pytest.mark.anyio
@pytest.mark.root
async def test_whiteouts_and_opaque_directories_in_a_layer_hide_what_is_below(tmp_path: Path) -> None:
    temp = tmp_path / "tmp"
    async with OverlaySnapshotter(tmp_path / "root", SETTINGS) as snapshotter:
        await write(await snapshotter.prepare("a1"), temp, {"gone": "1", "dir/old": "1", "kept": "1"})
        await snapshotter.commit("c1", "a1")
        await snapshotter.prepare("a2", "c1")
        upper = tmp_path / "root/snapshots/2/fs"
        os.mknod(upper / "gone", 0o020000, os.makedev(0, 0))
        (upper / "dir").mkdir()
        os.setxattr(upper / "dir", "trusted.overlay.opaque", b"y")
        await snapshotter.commit("c2", "a2")
        assert await read(await snapshotter.view("v", "c2"), temp) == {"kept": "1"}
