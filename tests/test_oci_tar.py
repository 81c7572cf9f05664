"""Tar headers and streams as bytes: what Go's archive/tar reads is read, what it refuses is refused (facts/core 8)."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiocontainerd.oci import tar_sparse
from aiocontainerd.oci.tar_header import Header, InvalidArchive, pax_records, pax_time_ns
from aiocontainerd.oci.tar_reader import TarReader
from aiocontainerd.testing.differ import directory, entry, symlink, tar_of

PIECE = 4096
"""Bytes of data between the holes of the tests: a hole of a file system is not smaller."""


class Found(NamedTuple):
    header: Header
    data: bytes


def entries(blob: bytes, chunk: int = 700) -> list[Found]:
    stream = io.BytesIO(blob)
    reader = TarReader(lambda: stream.read(chunk))
    found = []
    while (header := reader.next_header()) is not None:
        parts = []
        while part := reader.read(1000):
            parts.append(part)
        found.append(Found(header, b"".join(parts)))
    return found


def headers(blob: bytes, chunk: int = 700) -> list[Header]:
    return [found.header for found in entries(blob, chunk)]


FIELDS = {
    "name": (0, 100), "mode": (100, 108), "uid": (108, 116), "gid": (116, 124), "size": (124, 136), "mtime": (136, 148),
    "checksum": (148, 156), "type": (156, 157), "link": (157, 257), "magic": (257, 265), "major": (329, 337),
    "minor": (337, 345), "prefix": (345, 500), "pieces": (386, 482), "more": (482, 483), "real_size": (483, 495),
    "trailer": (508, 512),
}  # fmt: skip
GNU = b"ustar  \0"


def block(**fields: bytes) -> bytes:
    """Return a header block: a ustar one of an empty file, with any field replaced and a right checksum."""
    made = bytearray(512)
    told = {"name": b"name", "mode": b"0000644\0", "type": b"0", "magic": b"ustar\x0000", **fields}
    for key, value in told.items():
        start, end = FIELDS[key]
        assert len(value) <= end - start
        made[start : start + len(value)] = value
    if "checksum" not in fields:
        made[148:156] = b" " * 8
        made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made)


def pax(data: bytes, kind: bytes = b"x") -> bytes:
    return block(type=kind, size=b"%o" % len(data)) + data + bytes(-len(data) % 512)


def record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = next(n for n in range(rest, rest + 9) if n == rest + len(str(n)))
    return b"%d %s=%s\n" % (length, key, value)


def one(blob: bytes) -> Header:
    (header,) = headers(blob)
    return header


@pytest.mark.parametrize("chunk", [1, 511, 512, 513, 1 << 20])
def test_stream_is_read_alike_whatever_its_chunks(chunk: int) -> None:
    blob = tar_of([entry("a" * 300, b"x" * 700), directory("d"), entry("b", b"y")])
    assert [(h.name.rstrip(b"/"), h.size, h.type) for h in headers(blob, chunk)] == [
        (b"a" * 300, 700, b"0"), (b"d", 0, b"5"), (b"b", 1, b"0"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"", 0), (b"\0" * 8, 0), (b" " * 8, 0), (b"0000017\0", 15), (b"000017 \0", 15), (b"17", 15), (b"     17 ", 15),
        (b"\0\0\0 17\0\0", 15), (b"17\0junk", 15), (b"00000017", 15), (b"77777777", 0o77777777),
        (b"\x80\0\0\0\0\0\1\0", 256), (b"\xff" * 7 + b"\xfe", 0xFFFFFFFE), (b"\xff" * 8, -1),
        (b"\x80\0\0\1\0\0\0\5", 5), (b"\xff" * 4 + bytes(3) + b"\5", 5),
    ],
)  # fmt: skip
def test_every_legal_number_is_read_and_an_owner_has_32_bits(field: bytes, value: int) -> None:
    header = one(block(uid=field, gid=field))
    assert (header.uid, header.gid) == (value, value)


@pytest.mark.parametrize("field", [b"18", b"1 7", b"-1", b"+7", b"0x7", b"1_7", b"7\xb2"])
def test_a_number_that_is_not_octal_is_refused(field: bytes) -> None:
    with pytest.raises(InvalidArchive, match=r"number .* in a tar header"):
        headers(block(uid=field))


def test_a_number_of_more_than_64_bits_is_refused() -> None:
    assert one(block(mtime=b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7)).mtime_ns == 0
    with pytest.raises(InvalidArchive, match="number"):
        headers(block(mtime=b"\x80\0\0\1" + bytes(8)))


@pytest.mark.parametrize("value", [b"-1", b"4294967295", b"+4294967295"])
def test_the_last_owner_is_the_kernels_word_for_no_change(value: bytes) -> None:
    assert one(pax(record(b"uid", value)) + block()).uid == -1


@pytest.mark.parametrize(
    ("spelled", "right"),
    [
        (b"%06o\0 ", True), (b"%07o\0", True), (b"%6o \0", True), (b" %6o ", True), (b"%08o", True), (b"\0%6o\0", True),
        (b"%05o\0x ", True), (b"-%05o\0", False), (b"0o%5o\0", False), (b"\x80%6o\0", False),
    ],
)  # fmt: skip
def test_the_checksum_is_a_number_like_any_other_but_octal(spelled: bytes, right: bool) -> None:
    blob = block(name=b"n", checksum=b" " * 8)
    assert sum(blob) < 0o100000
    blob = block(name=b"n", checksum=(spelled % sum(blob))[:8])
    if right:
        assert one(blob).name == b"n"
    else:
        with pytest.raises(InvalidArchive, match="checksum"):
            headers(blob)


def test_the_checksum_may_be_the_sum_of_signed_bytes() -> None:
    name = "é".encode() * 3
    blob = block(name=name, checksum=b" " * 8)
    signed = sum(byte - 256 if byte > 127 else byte for byte in blob)
    assert one(block(name=name, checksum=b"%06o\0 " % signed)).name == name
    with pytest.raises(InvalidArchive, match="wrong checksum"):
        headers(block(name=name, checksum=b"%06o\0 " % (signed + 1)))


FILE = block(name=b"f", size=b"1") + b"x" + bytes(511)


@pytest.mark.parametrize(
    "end",
    [b"", bytes(512), bytes(1024), bytes(10240), bytes(1024) + b"garbage", bytes(1024) + FILE],
    ids=["nothing", "one-zero-block", "two", "twenty", "garbage-after", "archive-after"],
)
def test_an_archive_may_end_in_any_of_these_ways(end: bytes) -> None:
    assert [(found.header.name, found.data) for found in entries(FILE + end)] == [(b"f", b"x")]


@pytest.mark.parametrize("left", [0, 1, 300, 510])
def test_the_padding_of_the_last_entry_may_be_missing(left: int) -> None:
    assert [found.data for found in entries(FILE[: 513 + left])] == [b"x"]
    assert headers(pax(record(b"path", b"p"))[: 512 + 20]) == []


@pytest.mark.parametrize(
    ("blob", "text"),
    [
        (FILE[:512], "unexpected end"),
        (FILE + FILE[:300], "unexpected end"),
        (FILE + bytes(100), "unexpected end"),
        (FILE + bytes(600), "unexpected end"),
        (bytes(512) + b"x" * 512, "after a zero block"),
        (b"x" * 512, "checksum"),
        (block(size=b"\xff" * 12), "negative size"),
        (block(type=b"x", size=b"77777777777"), "special tar header of"),
        (block(type=b"L", size=b"\xff" * 12), "special tar header of"),
        (block(type=b"3", major=b"\xff" * 8), "device number -1:0"),
        (tar_of([entry("x/" * 2500)]), "name of 5000 bytes"),
    ],
)
def test_bad_archive_is_refused(blob: bytes, text: str) -> None:
    with pytest.raises(InvalidArchive, match=text):
        headers(blob)


@pytest.mark.parametrize(
    ("records", "text"),
    [
        ({"uid": "1_0"}, 'PAX record "uid"="1_0"'),
        ({"uid": "9223372036854775808"}, "PAX record"),
        ({"mtime": "now"}, "PAX record"),
        ({"mtime": "1.2x"}, "PAX record"),
        ({"atime": "never"}, "PAX record"),
        ({"size": "-1"}, "negative size"),
        ({"SCHILY.xattr.user.a\0b": "1"}, "NUL in a PAX record"),
        ({"path": "a\0b"}, "NUL in a PAX record"),
        ({"uname": "a\0b"}, "NUL in a PAX record"),
    ],
)
def test_bad_pax_record_is_an_invalid_archive(records: dict[str, str], text: str) -> None:
    with pytest.raises(InvalidArchive, match=text):
        headers(tar_of([entry("f", pax_headers=records)]))


@pytest.mark.parametrize("data", [b"x", b"4 a=", b"05 a=", b"9 a=b\n", b"6 =ab\n", b"6 aab\n", b"6 a=bc", b"-6 a=b\n"])
def test_malformed_pax_record_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArchive, match="PAX record"):
        pax_records(data)


def test_pax_records_may_have_odd_lengths_and_signs() -> None:
    assert pax_records(b"000000000000000000000000031 a=b\n"[1:]) == {b"a": b"b"}
    assert pax_records(b"+7 a=b\n7 c=1=2\n"[:7]) == {b"a": b"b"}
    assert one(pax(record(b"uid", b"+5") + record(b"path", b"")) + block()).uid == 5


def test_a_size_counts_only_where_there_is_data() -> None:
    link = pax(record(b"size", b"-1")) + block(type=b"2", size=b"7777", link=b"t") + FILE
    assert [(h.name, h.size) for h in headers(link)] == [(b"name", 0), (b"f", 1)]


def test_long_names_of_gnu_win_and_end_at_a_nul() -> None:
    long = block(type=b"L", size=b"13", magic=GNU) + b"long\0junk\0\0".ljust(512, b"\0")
    assert one(pax(record(b"path", b"pax")) + long + block()).name == b"long"


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, b"p/name"),
        ({"trailer": b"tar\0", "prefix": b"p" * 131 + b"12345670123 12345670123 "}, b"p" * 131 + b"/name"),
        ({"magic": bytes(8)}, b"name"),
        ({"magic": GNU, "prefix": b"12345670123\0" * 2}, b"name"),
        ({"magic": GNU, "prefix": b"home/old/docker"}, b"home/old/docker/name"),
    ],
    ids=["ustar", "star", "v7", "gnu-times", "go-before-1.8"],
)
def test_a_prefix_is_where_its_format_has_one(fields: dict[str, bytes], name: bytes) -> None:
    assert one(block(**{"prefix": b"p", **fields})).name == name


@pytest.mark.parametrize(("name", "kind"), [(b"d/", b"5"), (b"f", b"0")])
def test_the_oldest_type_is_told_by_the_whole_name(name: bytes, kind: bytes) -> None:
    assert one(block(type=b"\0", name=name)).type == kind
    assert one(pax(record(b"path", name)) + block(type=b"\0")).type == kind


def test_time_out_of_range_becomes_the_epoch() -> None:
    assert one(block(mtime=b"\xff" * 12)).mtime_ns == 0
    assert one(pax(record(b"mtime", b"9223372036.854775807")) + block()).mtime_ns == 2**63 - 1
    assert one(pax(record(b"mtime", b"9223372036.854775808")) + block()).mtime_ns == 0


def test_an_attribute_may_be_empty() -> None:
    assert one(pax(record(b"SCHILY.xattr.user.mark", b"")) + block()).xattrs == {b"user.mark": b""}


@pytest.mark.parametrize("told", [record(b"comment", b"c"), b""], ids=["some", "none"])
def test_names_and_records_before_a_global_header_are_not_for_the_entry_after_it(told: bytes) -> None:
    long = block(type=b"L", size=b"5", magic=GNU) + b"long\0".ljust(512, b"\0")
    header = one(long + pax(record(b"uid", b"5") + record(b"path", b"p")) + pax(told, kind=b"g") + block())
    assert (header.name, header.uid) == (b"name", 0)


@pytest.mark.parametrize(
    ("value", "ns"),
    [
        (b"1.5", 1500000000), (b"-1.25", -1250000000), (b"7", 7000000000), (b"7.", 7000000000),
        (b"1600000000.1234567899", 1600000000123456789),
    ],
)  # fmt: skip
def test_pax_times_have_fractions_and_signs(value: bytes, ns: int) -> None:
    assert pax_time_ns(value) == ns


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


# Files with holes: "ab" at 3, "cd" at 8, 12 bytes in all.
SPARSE = b"\0\0\0ab\0\0\0cd\0\0"
DATA = b"abcd" + bytes(508)
VERSION_1 = record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0")


def sparse_0_0(*pieces: tuple[bytes, bytes], count: bytes = b"2", size: bytes = b"12") -> bytes:
    told = [record(b"GNU.sparse.size", size), record(b"GNU.sparse.numblocks", count)]
    for offset, length in pieces:
        told += [record(b"GNU.sparse.offset", offset), record(b"GNU.sparse.numbytes", length)]
    return pax(b"".join(told)) + block(size=b"4") + DATA


def sparse_0_1(sparse_map: bytes, **more: bytes) -> bytes:
    told = {"name": b"real", "size": b"12", "numblocks": b"2", "map": sparse_map, **more}
    return pax(b"".join(record(b"GNU.sparse." + k.encode(), v) for k, v in told.items())) + block(size=b"4") + DATA


def sparse_1_0(sparse_map: bytes, *, size: int = 516, real: bytes = b"12") -> bytes:
    told = VERSION_1 + record(b"GNU.sparse.name", b"real") + record(b"GNU.sparse.realsize", real)
    return pax(told) + block(size=b"%o" % size) + sparse_map.ljust(512, b"\0") + DATA


def old_gnu(pieces: bytes, *, more: bytes = b"", real: bytes = b"14", magic: bytes = GNU) -> bytes:
    extended = b"\1" if more else b""
    return block(type=b"S", size=b"4", magic=magic, pieces=pieces, more=extended, real_size=real) + more + DATA


def piece(offset: int, length: int) -> bytes:
    return b"%011o\0%011o\0" % (offset, length)


@pytest.mark.parametrize(
    "blob",
    [
        sparse_0_0((b"3", b"2"), (b"8", b"2")),
        sparse_0_1(b"3,2,8,2"),
        sparse_0_1(b"3,2,8,2", major=b"0", minor=b"1"),
        sparse_0_1(b"+3,2,8,2,12,0", numblocks=b"3"),
        sparse_1_0(b"2\n3\n2\n8\n2\n"),
        sparse_1_0(b"3\n3\n2\n8\n2\n12\n0\n"),
        old_gnu(piece(3, 2) + piece(8, 2)),
        old_gnu(piece(3, 2), more=(piece(8, 2) + bytes(456) + b"\0").ljust(512, b"\0")),
        old_gnu(b"", more=bytes(504) + b"\1" + bytes(7) + (piece(3, 2) + piece(8, 2)).ljust(512, b"\0")),
    ],
    ids=["0.0", "0.1", "0.1-versioned", "0.1-end", "1.0", "1.0-end", "old", "old-extended", "old-extended-twice"],
)
@pytest.mark.parametrize("chunk", [1, 700, 1 << 20])
def test_files_with_holes_are_read(blob: bytes, chunk: int) -> None:
    found = entries(blob + FILE, chunk)
    assert [(item.header.type, item.header.size, item.data) for item in found] == [(b"0", 12, SPARSE), (b"0", 1, b"x")]
    assert found[0].header.name in (b"real", b"name")


def test_a_file_with_holes_can_be_skipped_and_copied(tmp_path: Path) -> None:
    stream = io.BytesIO(sparse_1_0(b"2\n3\n2\n8\n2\n") * 2 + FILE)
    reader = TarReader(lambda: stream.read(512))
    reader.next_header()
    reader.next_header()
    with (tmp_path / "f").open("wb") as file:
        reader.copy_data(file.fileno())
    assert (tmp_path / "f").read_bytes() == SPARSE
    assert reader.next_header() is not None
    assert reader.next_header() is None


def test_a_hole_takes_no_room(tmp_path: Path) -> None:
    blob = sparse_1_0(b"1\n4294967296\n4\n", real=b"8589934592")
    stream = io.BytesIO(blob)
    reader = TarReader(lambda: stream.read(512))
    reader.next_header()
    with (tmp_path / "f").open("wb") as file:
        reader.copy_data(file.fileno())
    assert (tmp_path / "f").stat().st_size == 8589934592
    assert (tmp_path / "f").stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("version", [(b"1", b"1"), (b"2", b"0"), (b"", b"5")])
def test_an_unknown_sparse_format_is_an_ordinary_file(version: tuple[bytes, bytes]) -> None:
    told = record(b"GNU.sparse.major", version[0]) + record(b"GNU.sparse.minor", version[1])
    assert entries(pax(told) + FILE)[0].data == b"x"


@pytest.mark.parametrize(
    ("blob", "text"),
    [
        (sparse_0_1(b"3,2,8,3"), "4 bytes of data, not 5"),
        (sparse_0_1(b"3,2,8,1"), "4 bytes of data, not 3"),
        (sparse_0_1(b"3,2,8,2", numblocks=b"3"), "another length"),
        (sparse_0_1(b"3,2,8,2", numblocks=b""), "malformed map"),
        (sparse_0_1(b"8,2,3,2"), "piece of 2 bytes at 3"),
        (sparse_0_1(b"3,2,4,2"), "piece of 2 bytes at 4"),
        (sparse_0_1(b"3,2,11,2"), "piece of 2 bytes at 11"),
        (sparse_0_1(b"-3,2,8,2"), "at -3"),
        (sparse_0_1(b"3,-2,8,6"), "piece of -2 bytes"),
        (sparse_0_1(b"3,2,8,x"), "malformed map"),
        (sparse_0_1(b"3,2,8,2", size=b"-1"), "sparse file of -1 bytes"),
        (sparse_0_1(b"3,2,8,2", size=b"x"), "malformed map"),
        (sparse_0_0((b"3", b"2"), (b"8,2", b"2")), "out of order"),
        (pax(record(b"GNU.sparse.numbytes", b"3")) + FILE, "out of order"),
        (sparse_1_0(b"-1\n"), "negative number of pieces"),
        (sparse_1_0(b"x\n"), "malformed map"),
        (sparse_1_0(b"9\n1\n", size=512), "ends in its map"),
        (sparse_1_0(b"", size=100), "ends in its map"),
        (old_gnu(piece(3, 2) + piece(8, 2), magic=b"ustar\x0000"), "not GNU's"),
        (old_gnu(piece(3, 2) + b"x" * 12), "number"),
        (pax(record(b"GNU.sparse.map", b"0,0") + record(b"GNU.sparse.numblocks", b"1")) + block(type=b"5"), "no file"),
        (pax(VERSION_1) + block(size=b"10000000") + (b"9" * 511 + b"\n") * 4096, "malformed map"),
        (pax(VERSION_1) + block(size=b"10000000") + b"99999999\n".ljust(512, b"1") + b"1" * (2 << 20), "too long"),
        (old_gnu(b"", more=(bytes(504) + b"\1" + bytes(7)) * 4096), "too long"),
    ],
)  # fmt: skip
def test_a_wrong_map_of_holes_is_refused(blob: bytes, text: str) -> None:
    with pytest.raises(InvalidArchive, match=text):
        entries(blob)


def test_runs_tell_a_file_from_start_to_end() -> None:
    assert tar_sparse.runs([(3, 2), (8, 2)], 12) == [(3, 2), (3, 2), (2, 0)]
    assert tar_sparse.runs([], 5) == [(5, 0)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make a tree of files with holes at the start, in the middle, at the end, with many of them, and without any."""
    made = tmp_path / "tree"
    made.mkdir()
    holes = {
        "start": [(1, 1)], "middle": [(0, 1), (9, 1)], "end": [(0, 1), (5, 0)], "all": [(8, 0)], "none": [(0, 3)],
        "many": [(n * 2 + 1, 1) for n in range(40)],
    }  # fmt: skip
    for name, pieces in holes.items():
        with (made / name).open("wb") as file:
            for at, length in pieces:
                file.truncate(at * PIECE)
                file.seek(at * PIECE)
                file.write(os.urandom(length * PIECE))
    (made / ("n" * 120)).write_bytes(b"long name")
    return made


@pytest.mark.parametrize(
    "command",
    [
        *(f"tar --format={kind} -c tree" for kind in ("v7", "ustar", "oldgnu", "gnu", "pax")),
        *(f"tar -S --format={kind} -c tree" for kind in ("oldgnu", "gnu")),
        *(f"tar -S --format=pax --sparse-version={version} -c tree" for version in ("0.0", "0.1", "1.0")),
        *(f"bsdtar --format={kind} -cf - tree" for kind in ("ustar", "pax", "paxr", "gnutar", "v7")),
        "tar --format=pax -b1 -c tree",
    ],
)
def test_what_real_tools_write_is_read(tree: Path, command: str) -> None:
    done = subprocess.run(command.split(), cwd=tree.parent, capture_output=True)
    skipped = {b"n" * 120} if "v7" in command or "ustar" in command else set()
    assert done.returncode == 0 or skipped, done.stderr
    found = {item.header.name.rpartition(b"/")[2]: item.data for item in entries(done.stdout) if item.header.size}
    assert found == {
        os.fsencode(path.name): path.read_bytes() for path in tree.iterdir() if os.fsencode(path.name) not in skipped
    }


def test_tarfile_agrees_about_its_own_formats() -> None:
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        blob = tar_of([entry("a/" * 60 + "f", b"data"), symlink("l", "t" * 90)], kind)
        assert [(h.size, h.type) for h in headers(blob)] == [(4, b"0"), (0, b"2")]
