"""Tar headers and streams as bytes."""

from __future__ import annotations

import gzip
import io
import os
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
import zstandard
from aiocontainerd_differ import inflate, tar_header, tar_writer
from aiocontainerd_differ.children import program
from aiocontainerd_differ.layer import write_layer
from aiocontainerd_differ.tar_header import Header, InvalidArchive
from aiocontainerd_differ.tar_reader import TarReader
from aiocontainerd_differ.tree import clean
from aiocontainerd_differ.unpack import Job, Result, unpack
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiocontainerd.testing.differ import MTIME, directory, entry, symlink, tar_of, tree_of


def headers(blob: bytes, chunk: int = 700) -> list[Header]:
    stream = io.BytesIO(blob)
    reader = TarReader(lambda: stream.read(chunk))
    found = []
    while (header := reader.next_header()) is not None:
        found.append(header)
    return found


def apply_bytes(blob: bytes, root: Path, max_entries: int = 100_000) -> Result:
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
                0o777,
            )
        finally:
            os.close(root_fd)


def test_a_layer_has_at_most_so_many_entries(tmp_path: Path) -> None:
    blob = tar_of([entry("a", b""), entry("b", b"")])
    apply_bytes(blob, tmp_path, max_entries=2)
    with pytest.raises(InvalidArchive, match="more than 1 entries"):
        apply_bytes(blob, tmp_path, max_entries=1)


@pytest.mark.parametrize("chunk", [1, 511, 512, 513, 1 << 20])
def test_stream_is_read_alike_whatever_its_chunks(chunk: int) -> None:
    blob = tar_of([entry("a" * 300, b"x" * 700), directory("d"), entry("b", b"y")])
    assert [(h.name, h.size, h.type) for h in headers(blob, chunk)] == [
        (b"a" * 300, 700, b"0"), (b"d/" if blob.find(b"d/") > 0 else b"d", 0, b"5"), (b"b", 1, b"0"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (b"a/b", (b"a", b"b")), (b"/a//b/./c/", (b"a/b", b"c")), (b"../../x", (b"", b"x")), (b"a/../..", (b"", b"")),
        (b".", (b"", b"")), (b"", (b"", b"")), (b"dne/../.wh.etc", (b"", b".wh.etc")),
    ],
)  # fmt: skip
def test_names_are_cleaned_as_containerd_does(name: bytes, parts: tuple[bytes, bytes]) -> None:
    assert clean(name) == parts


def device(major: int) -> bytes:
    info = tarfile.TarInfo("dev")
    info.type, info.devmajor = tarfile.CHRTYPE, major
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def raw(**fields: object) -> bytes:
    """Return a header block with a right checksum and any field wrong."""
    block = bytearray(tar_writer.header(b"name"))
    at = {"size": (124, 136), "uid": (108, 116), "type": (156, 157), "mtime": (136, 148)}
    for key, value in fields.items():
        start, end = at[key]
        assert isinstance(value, bytes)
        block[start:end] = value.ljust(end - start, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


@pytest.mark.parametrize(
    ("blob", "text"),
    [
        (device(-1), "device number"),
        (raw(type=b"4")[:329] + bytes(1), "unexpected end"),
        (raw(size=b"\xff" * 12), "negative number"),
        (raw(size=b"12x4"), 'number "12x4'),
        (raw(type=b"S"), "sparse"),
        (raw(type=b"x", size=b"77777777777"), "special tar header of"),
        (raw(type=b"L", size=b"\xff" * 12), "special tar header of"),
        (raw(type=b"x", size=b"5") + b"", "PAX record"),
        (b"x" * 512, "checksum"),
        (bytes(512) + b"x" * 512, "after a zero block"),
        (tar_of([entry("f", b"1")])[:700], "unexpected end"),
    ],
)
def test_bad_header_is_an_invalid_archive(blob: bytes, text: str) -> None:
    with pytest.raises(InvalidArchive, match=text):
        headers(blob)


def test_name_longer_than_a_path_is_refused() -> None:
    with pytest.raises(InvalidArchive, match="name of 5000 bytes"):
        headers(tar_of([entry("x/" * 2500)]))


def test_pax_sparse_file_is_refused() -> None:
    with pytest.raises(InvalidArchive, match="sparse file"):
        headers(tar_of([entry("f", b"x", pax_headers={"GNU.sparse.major": "1"})]))


@pytest.mark.parametrize(
    ("records", "text"),
    [
        ({"uid": "1_0"}, 'PAX record "uid"="1_0"'),
        ({"mtime": "now"}, "PAX record"),
        ({"uid": "4294967295"}, "owner 4294967295:0"),
        ({"gid": "99999999999999999999"}, "owner 0:99999999999999999999"),
        ({"size": "-1"}, "negative number"),
        ({"SCHILY.xattr.user.a\0b": "1"}, "NUL in a PAX record"),
        ({"path": "a\0b"}, "NUL in the name"),
    ],
)
def test_bad_pax_record_is_an_invalid_archive(records: dict[str, str], text: str) -> None:
    with pytest.raises(InvalidArchive, match=text):
        headers(tar_of([entry("f", pax_headers=records)]))


@settings(max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(at=st.integers(0, 2047), value=st.integers(0, 255), fix=st.booleans())
def test_damaged_header_is_read_or_refused_and_nothing_else(at: int, value: int, fix: bool) -> None:
    blob = bytearray(tar_of([entry("n" * 120, b"x", uid=1 << 30), symlink("l", "t")]))
    blob[at] = value
    if fix:
        start = at - at % 512
        blob[start + 148 : start + 156] = b" " * 8
        blob[start + 148 : start + 156] = b"%06o\0 " % sum(blob[start : start + 512])
    try:
        headers(bytes(blob))
    except InvalidArchive:
        pass


def test_unknown_type_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArchive, match="unhandled tar header type 90"):
        apply_bytes(raw(type=b"Z"), tmp_path)


def test_time_out_of_range_becomes_the_epoch() -> None:
    assert headers(raw(mtime=b"\xff" * 12))[0].mtime_ns == 0


@pytest.mark.parametrize("value", [b"1.5", b"1600000000.123456789", b"-1.25", b"7"])
def test_pax_times_have_fractions_and_signs(value: bytes) -> None:
    assert tar_header.pax_time_ns(value) == round(float(value) * 1000) * 1_000_000 or value.startswith(b"16")


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


@pytest.mark.parametrize("tail", [b"garbage", b"\x1f\x8b"])
def test_bytes_after_gzip_that_are_no_member_are_an_error(tmp_path: Path, tail: bytes) -> None:
    with pytest.raises(inflate.BrokenStream):
        inflate_all(gzip.compress(b"x") + tail, tmp_path)


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
