"""The reflink snapshotter: the contract, what a clone keeps, and that blocks are shared where that is possible."""

from __future__ import annotations

import ast
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from aiocontainerd_snapshotter_reflink import clone
from aiocontainerd_snapshotter_reflink.plugin import ReflinkSnapshotter
from anyio import from_thread, to_thread

from aiocontainerd.plugin import Mount
from aiocontainerd.testing.snapshotter import OpenSnapshotter, SnapshotterContract, chain

PACKAGE = Path(clone.__file__).parent
SIZE_BYTES = 4 << 20


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Mount an XFS, which clones files, and yield its path."""
    if os.geteuid() != 0:
        pytest.skip("mounting an XFS image needs root")
    mkfs = shutil.which("mkfs.xfs", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if mkfs is None:
        pytest.skip("mkfs.xfs (package xfsprogs) is not installed")
    directory = tmp_path_factory.mktemp("xfs")
    image, mount_point = directory / "image", directory / "mnt"
    with image.open("xb") as file:
        file.truncate(512 << 20)
    mount_point.mkdir()
    subprocess.run([mkfs, "-q", "-m", "reflink=1", image], check=True)
    mounted = subprocess.run(["mount", "-t", "xfs", "-o", "loop", image, mount_point], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"an XFS image cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", mount_point], check=True)
        image.unlink()


class TestContract(SnapshotterContract):
    """The suite of aiocontainerd.testing.snapshotter, with plain copies or clones, whatever the file system has."""

    @pytest.fixture
    def open_snapshotter(self) -> OpenSnapshotter:
        return ReflinkSnapshotter


class TestContractOfClones(SnapshotterContract):
    """The same suite on a file system that clones."""

    @pytest.fixture
    def open_snapshotter(self, xfs: Path, tmp_path: Path) -> Iterator[OpenSnapshotter]:
        def opened(root: Path) -> ReflinkSnapshotter:
            return ReflinkSnapshotter(xfs / tmp_path.name / root.name)

        yield opened
        shutil.rmtree(xfs / tmp_path.name)


def used_bytes(path: Path) -> int:
    os.sync()
    status = os.statvfs(path)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


@pytest.mark.root
@pytest.mark.anyio
async def test_clones_take_no_space_until_they_are_written(xfs: Path) -> None:
    async with ReflinkSnapshotter(xfs / "space") as snapshotter:
        await snapshotter.prepare("base")
        (xfs / "space/snapshots/1/big").write_bytes(os.urandom(SIZE_BYTES))
        await snapshotter.commit("c", "base")
        before = used_bytes(xfs)
        await snapshotter.prepare("a", "c")
        assert used_bytes(xfs) - before < SIZE_BYTES // 4
        parent, child = xfs / "space/snapshots/1/big", xfs / "space/snapshots/2/big"
        assert child.read_bytes() == parent.read_bytes()
        with child.open("r+b") as file:
            file.write(b"changed")
        assert parent.read_bytes()[:7] != b"changed"


@pytest.mark.anyio
async def test_file_system_is_asked_to_clone_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ioctl(new: object, request: int, old: int) -> None:
        asked.append((request, os.readlink(f"/proc/self/fd/{old}")))

    monkeypatch.setattr(clone, "ioctl", ioctl)
    source = tree(tmp_path, one=b"1", two=b"22")
    await clone_of(source)
    assert sorted(asked) == [(clone.FICLONE, f"{source}/one"), (clone.FICLONE, f"{source}/two")]


@pytest.mark.anyio
async def test_data_is_copied_where_nothing_can_be_cloned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cannot_clone(monkeypatch)
    data = os.urandom(200_000)
    target = await clone_of(tree(tmp_path, file=data, empty=b""))
    assert (target / "file").read_bytes() == data
    assert (target / "empty").read_bytes() == b""


@pytest.mark.anyio
async def test_copies_keep_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cannot_clone(monkeypatch)
    source = tree(tmp_path, sparse=b"begin")
    os.truncate(source / "sparse", 64 << 20)
    copy = (await clone_of(source)) / "sparse"
    assert copy.stat().st_size == 64 << 20
    assert copy.read_bytes()[:5] == b"begin"
    assert copy.stat().st_blocks * 512 < 1 << 20


@pytest.mark.anyio
async def test_times_modes_and_links_are_kept(tmp_path: Path) -> None:
    source = tree(tmp_path, file=b"x")
    (source / "d").mkdir(mode=0o750)
    os.link(source / "file", source / "d" / "again")
    (source / "dangling").symlink_to("/nowhere")
    os.mkfifo(source / "fifo", 0o600)
    for name in ("file", "d", "."):
        os.utime(source / name, ns=(1_000_000_001, 2_000_000_002))
    target = await clone_of(source)
    for name in ("file", "d", "."):
        assert (target / name).stat().st_mtime_ns == 2_000_000_002
    assert stat.S_IMODE((target / "d").stat().st_mode) == 0o750
    assert (target / "file").samefile(target / "d" / "again")
    assert not (target / "file").samefile(source / "file")
    assert (target / "dangling").readlink() == Path("/nowhere")
    assert stat.S_ISFIFO((target / "fifo").stat().st_mode)


@pytest.mark.anyio
async def test_link_to_a_directory_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("x")
    source = tree(tmp_path)
    (source / "link").symlink_to(tmp_path / "outside")
    assert (await clone_of(source) / "link").is_symlink()


@pytest.mark.anyio
async def test_cancelled_call_ends_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def cancel_the_call(_source: str, target: str, _first_copies: object) -> None:
        made.append(target)
        from_thread.run_sync(scope.cancel)

    monkeypatch.setattr(clone, "clone_entry", cancel_the_call)
    source = tree(tmp_path, one=b"1", two=b"2", three=b"3")
    with anyio.CancelScope() as scope:
        await clone_of(source)
    assert len(made) == 1


@pytest.mark.anyio
async def test_failed_clone_leaves_nothing(tmp_path: Path) -> None:
    async with ReflinkSnapshotter(tmp_path) as snapshotter:
        parent = await chain(snapshotter, "c")
        source = tmp_path / "snapshots/1"
        source.rmdir()
        source.touch()
        with pytest.raises(NotADirectoryError, match="snapshots/1"):
            await snapshotter.prepare("a", parent)
        assert list((tmp_path / "snapshots").iterdir()) == [source]


@pytest.mark.anyio
async def test_view_shows_its_parent_without_a_copy(tmp_path: Path) -> None:
    async with ReflinkSnapshotter(tmp_path) as snapshotter:
        parent = await chain(snapshotter, "c")
        source = str(tmp_path / "snapshots/1")
        assert await snapshotter.view("v", parent) == [Mount("bind", source, options=("rbind", "ro"))]


def test_logic_is_forty_lines_at_most() -> None:
    lines = sum(len(body_lines(path)) for path in PACKAGE.glob("*.py"))
    assert 0 < lines <= 40


def body_lines(module: Path) -> set[int]:
    """Numbers of the lines of functions, without their signatures and docstrings."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            for statement in body:
                found.update(range(statement.lineno, (statement.end_lineno or statement.lineno) + 1))
    return found


def tree(directory: Path, **files: bytes) -> Path:
    source = directory / "source"
    source.mkdir()
    for name, data in files.items():
        (source / name).write_bytes(data)
    return source


async def clone_of(source: Path) -> Path:
    target = source.parent / "target"
    await to_thread.run_sync(clone.clone_tree, str(source), str(target))
    return target


def cannot_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    def ioctl(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(clone, "ioctl", ioctl)
