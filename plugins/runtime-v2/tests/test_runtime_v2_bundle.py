"""Bundles on disk (facts/runtime 2.2)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from aiocontainerd_runtime_v2 import bundle as bundles
from aiocontainerd_runtime_v2.bootstrap import Endpoint
from aiocontainerd_runtime_v2.bundle import Bundle, Layout, root_gid

from aiocontainerd.errors import AlreadyExists, Unknown
from aiocontainerd.testing.disks import MemoryDisk


class Unmounts:
    """Records what would be unmounted."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def __call__(self, path: str, flags: int = 0) -> None:
        self.paths.append(path)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path / "state", tmp_path / "root", Unmounts())
    found.prepare()
    return found


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_bundle_has_its_entries_and_modes(layout: Layout) -> None:
    bundle = layout.create("ns", "c", b'{"linux":{}}')
    assert sorted(os.listdir(bundle.path)) == ["config.json", "log", "rootfs", "work"]
    assert [mode_of(path) for path in (layout.state, bundle.path.parent, bundle.path)] == [0o711, 0o711, 0o700]
    assert [mode_of(path) for path in (bundle.rootfs, bundle.work, bundle.work.parent)] == [0o711, 0o711, 0o711]
    assert stat.S_ISFIFO(bundle.log.stat().st_mode)
    assert mode_of(bundle.log) == 0o700
    assert (bundle.path / "work").readlink() == bundle.work
    assert (bundle.path / "config.json").read_bytes() == b'{"linux":{}}'


def test_a_bundle_without_a_spec_has_no_config(layout: Layout) -> None:
    assert not (layout.create("ns", "c", None).path / "config.json").exists()


def test_an_existing_bundle_is_an_error_and_stays(layout: Layout) -> None:
    bundle = layout.create("ns", "c", None)
    with pytest.raises(AlreadyExists):
        layout.create("ns", "c", None)
    assert bundle.rootfs.is_dir()


def test_an_existing_work_directory_is_made_anew(layout: Layout) -> None:
    old = layout.bundle("ns", "c").work
    (old / "left").mkdir(parents=True)
    assert os.listdir(layout.create("ns", "c", None).work) == []


def test_a_bad_spec_leaves_nothing(layout: Layout) -> None:
    told = {
        b"not json": "invalid character 'o' in literal null (expecting 'u')",
        b"": "unexpected end of JSON input",
        b"[1]": "json: cannot unmarshal array into Go value of type v2.ociSpecUserNS",
        b'{"linux":1}': "json: cannot unmarshal number into Go struct field ociSpecUserNS.Linux of type "
        "v2.linuxSpecUserNS",
    }
    for spec, text in told.items():
        with pytest.raises(Unknown) as refused:
            layout.create("ns", "c", spec)
        assert refused.value.message == text
    assert layout.present() == []
    assert layout.strays(set()) == []


def test_the_group_of_a_mapped_root_is_found(layout: Layout) -> None:
    mapped = b'{"linux":{"gidMappings":[{"containerID":9,"hostID":1,"size":1},{"containerID":0,"hostID":77,"size":9}]}}'
    assert root_gid(mapped) == 77
    assert root_gid(b'{"linux":{"gidMappings":[]}}') is None
    assert root_gid(b"{}") is None


@pytest.mark.root
def test_the_group_of_a_mapped_root_may_pass(layout: Layout) -> None:
    spec = b'{"linux":{"gidMappings":[{"containerID":0,"hostID":4321,"size":9}]}}'
    bundle = layout.create("ns", "c", spec)
    assert mode_of(bundle.path) == 0o710
    assert bundle.path.stat().st_gid == 4321


def test_removal_unmounts_first_and_takes_both_directories(layout: Layout) -> None:
    bundle = layout.create("ns", "c", None)
    layout.remove(bundle)
    layout.remove(bundle)
    assert isinstance(layout.unmount, Unmounts)
    assert layout.unmount.paths == [str(bundle.rootfs)]
    assert os.listdir(bundle.path.parent) == os.listdir(bundle.work.parent) == []


def test_a_root_that_stays_mounted_keeps_the_bundle(layout: Layout) -> None:
    bundle = layout.create("ns", "c", None)
    (bundle.rootfs / "file").touch()
    with pytest.raises(OSError, match="not empty"):
        layout.remove(bundle)
    assert (bundle.rootfs / "file").exists()


def test_only_directories_named_by_identifiers_are_bundles(layout: Layout) -> None:
    kept = [layout.create("a", "x", None), layout.create("b", "y", None)]
    (layout.state / "a" / ".x").mkdir()
    (layout.state / "a" / "file").touch()
    (layout.state / "a" / "link").symlink_to(kept[1].path)
    (layout.root / "a" / "gone").mkdir()
    assert layout.present() == kept
    assert layout.strays(set(kept)) == [layout.bundle("a", "gone")]


def test_what_is_read_after_a_restart_was_written(layout: Layout) -> None:
    bundle = layout.create("ns", "c", None)
    assert bundles.read_endpoint(bundle) is None
    assert bundles.read_shim_path(bundle) is None
    endpoint = Endpoint(3, "unix:///s/x")
    bundles.write_endpoint(bundle, endpoint)
    bundles.write_shim_path(bundle, Path("/usr/bin/shim"))
    bundles.write_sandbox(bundle, "pod")
    assert bundles.read_endpoint(bundle) == endpoint
    assert bundles.read_shim_path(bundle) == Path("/usr/bin/shim")
    modes = [mode_of(bundle.path / name) for name in ("bootstrap.json", "shim-binary-path", "sandbox")]
    assert modes == [0o644, 0o600, 0o600]


def test_an_empty_or_missing_bundle_is_empty(tmp_path: Path) -> None:
    bundle = Bundle("ns", "c", tmp_path / "b", tmp_path / "w")
    assert bundles.is_empty(bundle)
    bundle.path.mkdir()
    assert bundles.is_empty(bundle)
    (bundle.path / "config.json").touch()
    assert not bundles.is_empty(bundle)


@pytest.mark.root
def test_a_read_only_root_takes_no_bundle_and_nothing_is_left(disk: MemoryDisk, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state", disk.directory / "root", Unmounts())
    layout.prepare()
    layout.create("ns", "a", None)
    before = disk.names()
    disk.remount("ro")
    layout.prepare()
    layout.sweep()
    with pytest.raises(OSError, match=r"Read-only file system: '.*/root/ns/b'"):
        layout.create("ns", "b", None)
    with pytest.raises(OSError, match="Read-only file system"):
        layout.create("other", "b", None)
    assert [bundle.id for bundle in layout.present()] == ["a"]
    with pytest.raises(OSError, match="Read-only file system"):
        layout.remove(layout.bundle("ns", "a"))
    assert layout.present() == []
    assert disk.names() == before
