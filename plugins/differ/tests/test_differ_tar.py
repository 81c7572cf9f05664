"""Tar headers and streams as bytes."""

from __future__ import annotations

import gzip
import io
import os
import stat
import subprocess
import tarfile
import tempfile
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from aiocontainerd_differ import inflate, tar_writer
from aiocontainerd_differ import tree as trees
from aiocontainerd_differ.children import program
from aiocontainerd_differ.layer import write_layer
from aiocontainerd_differ.tree import clean
from aiocontainerd_differ.unpack import Job, Result, unpack
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiocontainerd.oci.tar_header import InvalidArchive
from aiocontainerd.oci.zstd_frames import FrameTracker
from aiocontainerd.testing.differ import MTIME, directory, entry, hard_link, symlink, tar_of, tree_of


def apply_bytes(blob: bytes, root: Path, max_entries: int = 100_000, *, ahead: bool = True) -> Result:
    with tempfile.TemporaryFile() as file:
        file.write(blob)
        file.seek(0)
        root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return unpack(
                Job(
                    blob_fd=file.fileno(),
                    root_fd=root_fd,
                    overlay=False,
                    lowers=[],
                    in_user_namespace=False,
                    sniff=True,
                    max_entries=max_entries,
                ),
                ahead=ahead,
            )
        finally:
            os.close(root_fd)


def test_a_layer_has_at_most_so_many_entries(tmp_path: Path) -> None:
    blob = tar_of([entry("a", b""), entry("b", b"")])
    apply_bytes(blob, tmp_path, max_entries=2)
    with pytest.raises(InvalidArchive, match="more than 1 entries"):
        apply_bytes(blob, tmp_path, max_entries=1)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (b"a/b", (b"a", b"b")), (b"/a//b/./c/", (b"a/b", b"c")), (b"../../x", (b"", b"x")), (b"a/../..", (b"", b"")),
        (b".", (b"", b"")), (b"", (b"", b"")), (b"dne/../.wh.etc", (b"", b".wh.etc")),
    ],
)  # fmt: skip
def test_names_are_cleaned_as_containerd_does(name: bytes, parts: tuple[bytes, bytes]) -> None:
    assert clean(name) == parts


def test_unknown_type_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArchive, match="unhandled tar header type 90"):
        apply_bytes(tar_of([entry("name", type=b"Z")]), tmp_path)


def test_a_link_to_itself_must_be_there(tmp_path: Path) -> None:
    apply_bytes(tar_of([entry("a", b"x"), hard_link("a", "./a")]), tmp_path)
    assert (tmp_path / "a").read_bytes() == b"x"
    with pytest.raises(FileNotFoundError):
        apply_bytes(tar_of([hard_link("b", "b")]), tmp_path)


def test_written_header_is_read_back_by_tarfile() -> None:
    name = "dir/" * 40 + "é"
    block = tar_writer.header(name.encode(), uid=1 << 30, gid=5, mode=0o4755, size=0, mtime_s=-3, link=b"l" * 150)
    with tarfile.open(fileobj=io.BytesIO(block + tar_writer.END)) as archive:
        (member,) = archive.getmembers()
    assert (member.name, member.uid, member.gid, member.mode, member.mtime) == (name, 1 << 30, 5, 0o4755, -3)


def inflate_all(data: bytes, tmp_path: Path) -> bytes:
    (tmp_path / "blob").write_bytes(data)
    with (tmp_path / "blob").open("rb") as file:
        return b"".join(inflate.inflated(file.fileno()))


def test_compressed_streams_of_several_parts_are_one(tmp_path: Path) -> None:
    one, two = os.urandom(300_000), bytes(2_000_000)
    assert inflate_all(gzip.compress(one) + gzip.compress(two) + bytes(100), tmp_path) == one + two
    zstd = zstandard.compress(one) + zstandard.compress(two)
    assert inflate_all(zstd, tmp_path) == one + two
    assert inflate_all(b"plain", tmp_path) == b"plain"
    assert inflate_all(b"", tmp_path) == b""


def test_chunks_of_a_bomb_stay_small(tmp_path: Path) -> None:
    (tmp_path / "bomb").write_bytes(gzip.compress(bytes(50_000_000)))
    with (tmp_path / "bomb").open("rb") as file:
        assert max(map(len, inflate.inflated(file.fileno()))) <= inflate.CHUNK_BYTES


def zstd_with_window(log: int) -> bytes:
    """Return a stream whose frame asks for a window of so many bits, as `zstd --long` makes it."""
    parameters = zstandard.ZstdCompressionParameters(window_log=log, chain_log=10, hash_log=10)
    maker = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return maker.compress(b"x" * 1000) + maker.flush()


def test_a_zstd_window_is_as_large_as_gos_decoder_takes_it(tmp_path: Path) -> None:
    assert inflate_all(zstd_with_window(29), tmp_path) == b"x" * 1000
    with pytest.raises(inflate.BrokenStream, match="too much memory"):
        inflate_all(zstd_with_window(30), tmp_path)


@pytest.mark.parametrize("tail", [b"garbage", b"\x1f\x8b"])
def test_bytes_after_gzip_that_are_no_member_are_an_error(tmp_path: Path, tail: bytes) -> None:
    with pytest.raises(inflate.BrokenStream):
        inflate_all(gzip.compress(b"x") + tail, tmp_path)


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 100, b"garbage", b"\x28\xb5\x2f", b"\x50\x2a\x4d\x18\4\0\0\0abc"])
def test_bytes_after_zstd_that_are_no_frame_are_an_error(tmp_path: Path, tail: bytes) -> None:
    with pytest.raises(inflate.BrokenStream):
        inflate_all(zstandard.compress(b"x") + tail, tmp_path)


def zstd(data: bytes, *, checksum: bool = True, size: bool = True, level: int = 3) -> bytes:
    maker = zstandard.ZstdCompressor(level, write_checksum=checksum, write_content_size=size)
    return maker.compress(data)


SKIPPABLE = b"\x5a\x2a\x4d\x18\x05\0\0\0hello"
TAR = tar_of([directory("d"), entry("d/f", bytes(range(256)) * 2), symlink("l", "d")])
STREAMS = {
    "gzip": gzip.compress(TAR),
    "gzip-named": b"\x1f\x8b\x08\x08" + gzip.compress(TAR)[4:10] + b"name\0" + gzip.compress(TAR)[10:],
    "gzip-stored": gzip.compress(TAR[:1500], 0) + gzip.compress(TAR[1500:]),
    "gzip-members": gzip.compress(TAR[:700]) + gzip.compress(b"") + gzip.compress(TAR[700:]),
    "zstd": zstd(TAR),
    "zstd-without-checksum": zstd(TAR, checksum=False),
    "zstd-without-size": zstd(TAR, size=False),
    "zstd-frames": zstd(TAR[:700]) + SKIPPABLE + zstd(b"") + zstd(TAR[700:], checksum=False) + SKIPPABLE,
    "zstd-skippable-first": SKIPPABLE + zstd(TAR),
    "zstd-stream": zstandard.ZstdCompressor(write_checksum=True).multi_compress_to_buffer([TAR])[0].tobytes(),
}


def ends_of_parts(name: str) -> set[int]:
    """Return where a stream may be cut and is whole all the same: where a member or frame ends."""
    return {
        "gzip-stored": {len(gzip.compress(TAR[:1500], 0))},
        "gzip-members": {len(gzip.compress(TAR[:700])), len(gzip.compress(TAR[:700]) + gzip.compress(b""))},
        "zstd-frames": {
            len(zstd(TAR[:700])), len(zstd(TAR[:700]) + SKIPPABLE), len(zstd(TAR[:700]) + SKIPPABLE + zstd(b"")),
            len(STREAMS["zstd-frames"]) - len(SKIPPABLE),
        },
        "zstd-skippable-first": {len(SKIPPABLE)},
    }.get(name, set())  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_cut_anywhere_is_an_error(tmp_path: Path, name: str) -> None:
    stream = STREAMS[name]
    assert inflate_all(stream, tmp_path) == TAR
    whole = []
    for end in range(4, len(stream)):
        try:
            inflate_all(stream[:end], tmp_path)
        except inflate.BrokenStream:
            continue
        whole.append(end)
    assert set(whole) <= ends_of_parts(name)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_cut_before_its_magic_number_is_no_tar(tmp_path: Path, name: str) -> None:
    for end in range(1, 4):
        with pytest.raises((InvalidArchive, inflate.BrokenStream)):
            apply_bytes(STREAMS[name][:end], tmp_path)


@pytest.mark.parametrize("pieces", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("name", [name for name in STREAMS if name.startswith("zstd")])
def test_frames_are_followed_whatever_the_pieces(name: str, pieces: int) -> None:
    stream, frames, whole = STREAMS[name], FrameTracker(), []
    for at in range(0, len(stream), pieces):
        frames.feed(stream[at : at + pieces])
        if frames.complete:
            whole.append(min(at + pieces, len(stream)))
    assert whole[-1] == len(stream)
    assert set(whole) <= ends_of_parts(name) | {len(stream)}


def test_frames_of_many_blocks_are_followed() -> None:
    blocks = b"".join(b"\x02\x00\x00a" for _ in range(1000))  # repeated bytes: none of them
    frame = b"\x28\xb5\x2f\xfd\x00\x58" + blocks + b"\x01\x00\x00"
    frames = FrameTracker()
    frames.feed(frame)
    assert frames.complete
    assert zstandard.ZstdDecompressor().decompressobj().decompress(frame) == b""


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..") and not name.startswith(".wh.") and len(name.encode()) < 200
)
MODES = st.integers(0, 0o777).map(lambda mode: mode | 0o400)
NODES = st.one_of(
    st.tuples(st.just("file"), st.binary(max_size=2000), MODES),
    st.tuples(st.just("link"), st.text("abc/.", min_size=1, max_size=120), MODES),
)
TREES = st.recursive(
    st.dictionaries(NAMES, NODES, max_size=4),
    lambda below: st.dictionaries(NAMES, st.one_of(NODES, below), max_size=4),
    max_leaves=12,
)


def make(tree: dict[str, object], root: Path) -> None:
    for name, node in tree.items():
        if isinstance(node, dict):
            (root / name).mkdir()
            make(node, root / name)
            os.utime(root / name, (1_500_000_000, 1_500_000_000))
            continue
        assert isinstance(node, tuple)
        kind, content, mode = node
        if kind == "link":
            (root / name).symlink_to(content)
        else:
            (root / name).write_bytes(content)
            (root / name).chmod(mode)
        os.utime(root / name, (1_600_000_000, 1_600_000_000), follow_symlinks=False)


def layer_of(lower: Path, upper: Path) -> tuple[bytes, Result]:
    """Return the layer, as it is without compression, that makes the tree `lower` the tree `upper`."""
    made: list[bytes] = []
    fds = [os.open(path, os.O_RDONLY) for path in (lower, upper)]
    written = write_layer(fds[0], fds[1], "", None, made.append)
    for fd in fds:
        os.close(fd)
    return b"".join(made), written


@pytest.mark.root
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
@given(tree=TREES, tar_format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_archive_of_any_tree_applies_to_an_equal_tree(tree: dict[str, object], tar_format: int) -> None:
    with tempfile.TemporaryDirectory() as directory_name:
        base = Path(directory_name)
        for name in ("source", "copy", "again", "empty"):
            (base / name).mkdir()
        make(tree, base / "source")
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
            archive.add(base / "source", arcname=".")
        apply_bytes(buffer.getvalue(), base / "copy")
        assert tree_of(base / "copy") == tree_of(base / "source")
        blob, written = layer_of(base / "empty", base / "source")
        assert vars(apply_bytes(blob, base / "again")) == vars(written)
        assert tree_of(base / "again") == tree_of(base / "source")


@pytest.mark.root
def test_any_file_with_two_names_has_them_in_the_layer_too(tmp_path: Path) -> None:
    source, copy, empty = tmp_path / "source", tmp_path / "copy", tmp_path / "empty"
    for path in (source, copy, empty):
        path.mkdir()
    (source / "file").write_bytes(b"x")
    (source / "link").symlink_to("nowhere")
    os.mkfifo(source / "pipe")
    os.mknod(source / "null", stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(source / "socket", stat.S_IFSOCK)
    names = [path.name for path in source.iterdir()]
    for name in names:
        os.link(source / name, source / f"{name}-too", follow_symlinks=False)
    apply_bytes(layer_of(empty, source)[0], copy)
    kept = sorted(name for name in names if name != "socket")
    assert sorted(path.name for path in copy.iterdir()) == sorted([*kept, *(f"{name}-too" for name in kept)])
    assert [os.path.samestat((copy / name).lstat(), (copy / f"{name}-too").lstat()) for name in kept] == [True] * 4


@pytest.mark.root
@pytest.mark.parametrize("first", [True, False])
def test_an_opaque_mark_keeps_all_that_its_layer_made(tmp_path: Path, *, first: bool) -> None:
    below = ["a/old", "a/kept/old", "a/kept/deep/old", "a/gone/old"]
    apply_bytes(tar_of([entry(name) for name in below]), tmp_path)
    made = [
        directory("a/new"), entry("a/new/f"), directory("a/new/sub"), entry("a/new/sub/f"),
        entry("a/missing/parents/f"), entry("a/kept/f"), entry("a/kept/deep/missing/f"), symlink("a/l", "kept"),
        entry("a/l/through"),
    ]  # fmt: skip
    mark = entry("a/.wh..wh..opq")
    apply_bytes(tar_of([mark, *made] if first else [*made, mark]), tmp_path)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir()}
    assert files == {info.name for info, _ in made if info.isreg()} - {"a/l/through"} | {"a/kept/through"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"new", "missing", "kept", "l"}


@pytest.mark.root
def test_an_opaque_mark_that_is_repeated_costs_no_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apply_bytes(tar_of([entry(name) for name in ("a/old", "a/b/old", "a/c/old")]), tmp_path)
    kept = [entry("a/b/f"), entry("a/c/f")]
    marks = [entry("a/b/.wh..wh..opq"), *[entry("a/.wh..wh..opq")] * 50, entry("a/c/.wh..wh..opq")]
    listed: list[int] = []
    names_in = os.listdir

    def listing(fd: int) -> list[str]:
        listed.append(fd)
        return names_in(fd)

    monkeypatch.setattr(os, "listdir", listing)
    apply_bytes(tar_of([*kept, *marks]), tmp_path)
    assert len(listed) == 3, "one walk of each of a/b, a, a/c"
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"a/b/f", "a/c/f"}


@pytest.mark.root
def test_memory_does_not_grow_with_the_entries_of_a_new_directory(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        blob = tar_of([directory(f"d{count}"), *(entry(f"d{count}/{n:0100}") for n in range(count))])
        tracemalloc.start()
        try:
            apply_bytes(blob, tmp_path, ahead=False)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak(3000), peak(9000)
    assert many - few < 6000 * 20, f"{(many - few) // 6000} bytes an entry"


@pytest.mark.root
def test_a_directory_of_many_files_is_removed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "_AT_ONCE", 7)
    entries = [entry(f"d/{n}") for n in range(50)] + [entry(f"d/{n}/{m}") for n in range(50, 60) for m in range(9)]
    apply_bytes(tar_of([*entries, entry(".wh.d")]), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_xattrs_are_set_but_not_the_kernels_own(tmp_path: Path) -> None:
    capability = b"\x01\x00\x00\x02" + bytes(16)
    records = {
        "SCHILY.xattr.user.a": "1", "SCHILY.xattr.trusted.b": "2", "SCHILY.xattr.user.overlay.c": "3",
        "SCHILY.xattr.security.capability": capability.decode("latin-1"),
    }  # fmt: skip
    blob = tar_of([entry("f", b"x", mode=0o4755, uid=5, pax_headers=records), symlink("l", "f")])
    apply_bytes(blob, tmp_path)
    assert sorted(os.listxattr(tmp_path / "f")) == ["security.capability", "user.a"]
    assert os.getxattr(tmp_path / "f", "security.capability") == capability
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o4755


@pytest.mark.root
def test_what_replaces_a_directory_keeps_its_own_time(tmp_path: Path) -> None:
    entries = [
        directory("a", mtime=1), entry("a", b"file", mtime=2), directory("b", mtime=3), symlink("b", "a"),
        directory("c/x", mtime=4), entry("d/x", mtime=5), symlink("c", "d"), directory("e", mtime=6),
    ]  # fmt: skip
    apply_bytes(tar_of(entries), tmp_path)
    times = {path: described[3] for path, described in tree_of(tmp_path).items()}
    assert {path: times[path] for path in ("a", "b", "d/x", "e")} == {"a": 2, "b": MTIME, "d/x": 5, "e": 6}


def test_a_child_imports_little() -> None:
    """Check it because each layer of an image starts a child, whose imports are part of every pull."""
    script = program("print(*sys.modules)")
    loaded = subprocess.run(script, capture_output=True, text=True, check=True).stdout.split()
    assert "aiocontainerd_differ.extract" in loaded
    assert not {"json", "re", "enum", "typing", "contextlib"}.intersection(loaded)
