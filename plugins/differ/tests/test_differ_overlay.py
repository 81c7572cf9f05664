"""Layers straight into an overlay's upper directory, and trees behind real mounts."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from aiocontainerd_content_local.store import LocalStore
from aiocontainerd_differ import applying, comparing, differ
from aiocontainerd_differ.differ import WalkingDiffer
from aiocontainerd_differ.targets import Target, direct_target, overlay_guide

from aiocontainerd.errors import Unknown
from aiocontainerd.interfaces.differ import ApplyOptions, CompareOptions
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.sys.mount import Mount, mounts_under, temp_mount
from aiocontainerd.testing.content import digest_of, ingest
from aiocontainerd.testing.differ import LAYER, bind, directory, entry, hard_link, symlink, tar_of, tree_of

pytestmark = pytest.mark.root


@pytest.fixture
def content(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "content")


@pytest.fixture
def walking(content: LocalStore, tmp_path: Path) -> WalkingDiffer:
    return WalkingDiffer(content, str(tmp_path / "tmpmounts"))


@pytest.fixture
def layers(tmp_path: Path) -> Iterator[Path]:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    yield tmp_path
    assert mounts_under(str(tmp_path)) == []


def overlay(base: Path) -> list[Mount]:
    options = (f"workdir={base}/work", f"upperdir={base}/upper", f"lowerdir={base}/lower")
    return [Mount("overlay", "overlay", "", options)]


def view(base: Path) -> list[Mount]:
    return [Mount("bind", f"{base}/lower", "", ("rbind", "ro"))]


async def put(content: LocalStore, blob: bytes) -> Descriptor:
    await ingest(content, digest_of(blob), blob)
    return Descriptor(LAYER, digest_of(blob), len(blob))


@pytest.mark.anyio
async def test_a_layer_over_mapped_ones_keeps_the_owners_of_the_image(
    layers: Path, content: LocalStore, walking: WalkingDiffer
) -> None:
    """Check it for a parent: the kernel's copy has the mapped owner, which would be mapped a second time."""
    (layers / "lower" / "d").mkdir()
    os.chown(layers / "lower" / "d", 5, 6)
    mapping = ("uidmap=0:100000:65536", "gidmap=0:200000:65536")
    mounts = [Mount("overlay", "overlay", "", (*overlay(layers)[0].options, *mapping))]
    await walking.apply(await put(content, tar_of([entry("d/f", uid=7, gid=8)])), mounts, ApplyOptions())
    for name, owner in {"d": (5, 6), "d/f": (7, 8)}.items():
        status = (layers / "upper" / name).stat()
        assert (status.st_uid, status.st_gid) == owner


@pytest.mark.anyio
async def test_whiteouts_become_overlay_marks_and_missing_parents_are_copied_up(
    layers: Path, content: LocalStore, walking: WalkingDiffer
) -> None:
    lower, upper = layers / "lower", layers / "upper"
    (lower / "p/q").mkdir(parents=True)
    (lower / "p/q/old").touch()
    (lower / "gone").touch()
    os.chown(lower / "p", 11, 12)
    (lower / "p").chmod(0o2750)
    os.setxattr(lower / "p", "user.kept", b"1")
    os.setxattr(lower / "p", "trusted.dropped", b"1")
    os.utime(lower / "p", (1, 1))
    blob = tar_of([entry("p/q/new", uid=3, gid=4), entry("p/q/.wh..wh..opq"), entry(".wh.gone", uid=9)])
    await walking.apply(await put(content, blob), overlay(layers), ApplyOptions(sync_fs=True))
    parent = (upper / "p").stat()
    assert (stat.S_IMODE(parent.st_mode), parent.st_uid, parent.st_gid, parent.st_mtime) == (0o2750, 11, 12, 1)
    assert os.listxattr(upper / "p") == ["user.kept"]
    assert os.getxattr(upper / "p/q", "trusted.overlay.opaque") == b"y"
    gone = (upper / "gone").lstat()
    assert (stat.S_ISCHR(gone.st_mode), gone.st_rdev, gone.st_uid) == (True, 0, 9)
    assert ((upper / "p/q/new").stat().st_uid, (upper / "p/q/new").stat().st_gid) == (3, 4)


@pytest.mark.anyio
async def test_difference_of_an_overlay_applies_to_an_equal_tree(
    layers: Path, content: LocalStore, walking: WalkingDiffer
) -> None:
    base = tar_of([directory("a"), entry("a/x", b"1"), entry("a/y"), directory("b"), entry("b/z"), entry("keep")])
    lower = await put(content, base)
    await walking.apply(lower, bind(layers / "lower"), ApplyOptions())
    change = tar_of(
        [entry("a/x", b"2"), entry("a/.wh.y"), entry("b/.wh..wh..opq"), entry("b/n"), hard_link("h", "b/n")]
    )
    await walking.apply(await put(content, change), overlay(layers), ApplyOptions())
    made = await walking.compare(view(layers), overlay(layers), CompareOptions(media_type=LAYER))
    (layers / "copy").mkdir()
    await walking.apply(lower, bind(layers / "copy"), ApplyOptions())
    await walking.apply(made, bind(layers / "copy"), ApplyOptions())
    assert sorted(tree_of(layers / "copy")) == ["a", "a/x", "b", "b/n", "h", "keep"]
    assert (layers / "copy/a/x").read_bytes() == b"2"
    assert os.listdir(layers / "tmpmounts") == []


@pytest.mark.anyio
async def test_difference_of_an_overlay_is_the_same_with_and_without_its_upper_directory(
    layers: Path, content: LocalStore, walking: WalkingDiffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = [directory(f"d{n}") for n in range(3)] + [entry(f"d{n}/f{m}", b"1") for n in range(3) for m in range(3)]
    await walking.apply(await put(content, tar_of(base)), bind(layers / "lower"), ApplyOptions())
    async with temp_mount(overlay(layers), layers / "tmpmounts") as merged:
        tree = Path(merged)
        (tree / "d0/f0").write_bytes(b"2")
        (tree / "d0/f1").unlink()
        shutil.rmtree(tree / "d1")
        (tree / "d1").mkdir()
        (tree / "d1/f2").write_bytes(b"new")
        (tree / "d2/f0").touch()
        (tree / "d2/f0").rename(tree / "moved")
        (tree / "new/deep").mkdir(parents=True)
        os.setxattr(tree / "d2", "user.x", b"1")
    assert overlay_guide(view(layers), overlay(layers)) == str(layers / "upper")
    options = CompareOptions(media_type=LAYER)
    guided = await walking.compare(view(layers), overlay(layers), options)
    monkeypatch.setattr(comparing, "overlay_guide", lambda lower, upper: "")
    assert await walking.compare(view(layers), overlay(layers), options) == guided


def test_upper_directory_guides_only_over_what_the_lower_mounts_show(layers: Path) -> None:
    others = [
        [Mount("bind", str(layers), "", ("ro",))],
        [Mount("overlay", "overlay", "", ("lowerdir=/a:/b",))],
        [],
        overlay(layers),
    ]
    for other in others:
        assert overlay_guide(other, overlay(layers)) == ""
    assert overlay_guide(view(layers), view(layers)) == ""


@pytest.mark.anyio
async def test_layer_goes_through_a_real_mount_where_there_is_no_directory(
    layers: Path, content: LocalStore, walking: WalkingDiffer
) -> None:
    mounts = [Mount("bind", str(layers / "lower"), "", ("rbind", "rw")), Mount("tmpfs", "tmpfs", "/", ())]
    assert direct_target(mounts) is None
    await walking.apply(await put(content, tar_of([entry("f")])), mounts, ApplyOptions())
    assert os.listdir(layers / "lower") == []
    with pytest.raises(Unknown, match="Read-only file system"):
        await walking.apply(await put(content, tar_of([entry("g")])), view(layers), ApplyOptions())


def test_only_a_writable_plain_mount_is_written_to_directly(tmp_path: Path) -> None:
    assert direct_target(bind(tmp_path)) == Target(str(tmp_path))
    upper = Mount("overlay", "overlay", "", ("lowerdir=/b:/a", "upperdir=/u", "workdir=/w"))
    assert direct_target([upper]) == Target("/u", overlay=True, lowers=("/b", "/a"))
    mapped = Mount("overlay", "overlay", "", (*upper.options, "uidmap=0:1:1", "gidmap=0:1:1"))
    assert direct_target([mapped]) == direct_target([upper])
    assert direct_target([Mount("bind", str(tmp_path), "", ("rw", "uidmap=0:1:1"))]) is None
    for option in ("userxattr", "ro"):
        assert direct_target([Mount("overlay", "overlay", "", (*upper.options, option))]) is None
    assert direct_target([Mount("overlay", "overlay", "", ("lowerdir=/b:/a",))]) is None
    assert direct_target([Mount("bind", str(tmp_path), "", ("ro",))]) is None


@pytest.mark.anyio
@pytest.mark.parametrize("small", [-1, 1 << 30])
async def test_cancelled_apply_ends_soon_and_leaves_nothing_running(
    layers: Path, content: LocalStore, walking: WalkingDiffer, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(applying, "SMALL_BYTES", small)
    many = tar_of([entry(f"d{n % 50}/f{n}", b"x" * 100) for n in range(20_000)])
    layer = await put(content, many)
    task = asyncio.ensure_future(walking.apply(layer, bind(layers / "lower"), ApplyOptions()))
    while not os.listdir(layers / "lower"):  # noqa: ASYNC110 - another process writes there
        await anyio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError), anyio.fail_after(10):
        await task
    count = sum(len(files) for _, _, files in os.walk(layers / "lower"))
    await anyio.sleep(0.05)
    assert sum(len(files) for _, _, files in os.walk(layers / "lower")) == count < 20_000
    assert walking.statistics() == {"applying": 0}


@pytest.mark.anyio
@pytest.mark.parametrize("call", ["apply", "compare"])
async def test_child_that_notices_nothing_is_killed_with_its_call(
    layers: Path, content: LocalStore, walking: WalkingDiffer, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    begun = layers / "begun"
    for module in (applying, comparing):
        monkeypatch.setattr(module, "program", lambda _call: ["sh", "-c", f"touch {begun}; exec sleep 1000"])
    monkeypatch.setattr(applying, "SMALL_BYTES", -1)
    lower = bind(layers / "lower")
    layer = await put(content, tar_of([entry("f")]))
    calls = {
        "apply": lambda: walking.apply(layer, lower, ApplyOptions()),
        "compare": lambda: walking.compare(lower, bind(layers / "upper"), CompareOptions()),
    }
    task = asyncio.ensure_future(calls[call]())
    while not begun.exists():  # noqa: ASYNC110 - another process makes it
        await anyio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError), anyio.fail_after(10):
        await task
    assert await content.statuses() == []


@pytest.mark.anyio
async def test_apply_that_takes_too_long_is_ended(layers: Path, content: LocalStore) -> None:
    walking = differ.WalkingDiffer(content, str(layers / "tmpmounts"))
    with pytest.raises(TimeoutError), anyio.fail_after(0):
        await walking.apply(await put(content, tar_of([symlink("a", "b")])), bind(layers / "lower"), ApplyOptions())
